"""Adapters: nothing at first, the same merged and unmerged, saved alone, refused on another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen import lora as core
from audiogen.adapters import Adapter
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Condition
from audiogen.lm import lora
from audiogen.lm.lora import LoraConfig
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.sample import TokenRequest, generate_tokens

CONFIG = LMConfig(num_codebooks=3, codebook_size=11, dim=24, num_layers=2, num_heads=4, dropout=0.1)
STEPS = torch.arange(2 * 3 * 7).reshape(2, 3, 7) % 12


def model(seed: int = 0) -> TokenLM:
    torch.manual_seed(seed)
    return TokenLM(CONFIG).eval()


def text() -> Condition:
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return Condition(torch.randn(2, 5, 24, generator=random) * mask[..., None], mask)


def adapted(config: LoraConfig = LoraConfig(rank=5, alpha=10.0), seed: int = 2) -> TokenLM:  # noqa: B008
    """A model whose adapters have learned something."""
    lm = model()
    lora.add(lm, config)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in core.adapter_state(lm).items():
        if name.endswith(".up"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=random))
    return lm


@torch.no_grad()
def logits(lm: TokenLM) -> Tensor:
    return lm(STEPS, text())


def test_new_adapters_change_nothing() -> None:
    lm = model()
    before = logits(lm)
    lora.add(lm, LoraConfig(rank=5, dropout=0.5))
    assert torch.equal(logits(lm), before)
    assert not lm.training and not lm.layers[0].ff_in.training


def test_the_update_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 10, bias=False)
    layer = core.LoraLinear(linear, LoraConfig(rank=3, alpha=6.0))
    layer.up.data.normal_()
    x = torch.randn(2, 7, 6)
    expected = x @ (linear.weight + 6.0 / 3 * layer.up @ layer.down).T
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight is linear.weight


def test_only_adapters_of_the_targets_are_trained() -> None:
    lm = model()
    lora.add(lm, LoraConfig(rank=5, targets=("in_proj", "ff_out")))
    lm.train()(STEPS, text()).square().mean().backward()
    trained = {name for name, weight in lm.named_parameters() if weight.grad is not None}
    layers = [f"layers.{i}.{name}" for i in range(2) for name in ("self_attention.in_proj", "ff_out")]
    assert trained == {f"{layer}.{part}" for layer in layers for part in ("down", "up")}
    assert trained == set(core.adapter_state(lm))
    assert lm.layers[1].self_attention.in_proj.up.shape == (72, 5)  # queries, keys and values have one `down`


def test_every_matrix_of_the_layers_can_be_adapted() -> None:
    lm = model()
    lora.add(lm, LoraConfig(rank=2))
    plain = [name for name, layer in lm.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert plain == ["heads"]
    assert len(core.adapter_state(lm)) == 2 * 2 * 7  # two layers; two out_proj


def save(folder: Path, seed: int = 2, base: str = "some/model") -> Path:
    """A saved adapter of the model."""
    config = LoraConfig(rank=5, alpha=10.0)
    lora.save_adapter(folder, adapted(config, seed), config, base, {"step": 7})
    return folder


def with_adapters(*given: Adapter) -> TokenLM:
    lm = model()
    lora.load_adapters(lm, given)
    return lm


def test_merged_equals_unmerged(tmp_path: Path) -> None:
    unmerged = logits(adapted())
    assert (unmerged - logits(model())).abs().max() > 0.1
    lm = with_adapters(Adapter(save(tmp_path)))
    torch.testing.assert_close(logits(lm), unmerged, atol=1e-5, rtol=1e-5)
    assert lm.state_dict().keys() == model().state_dict().keys()
    assert not core.adapter_state(lm)


def test_of_weight_0_they_leave_every_bit(tmp_path: Path) -> None:
    lm = with_adapters(Adapter(save(tmp_path), 0.0))
    assert checkpoint.identity(lm.state_dict()) == checkpoint.identity(model().state_dict())


def test_several_add_up_with_their_weights(tmp_path: Path) -> None:
    one, two = Adapter(save(tmp_path / "1"), 0.7), Adapter(save(tmp_path / "2", seed=3), -0.3)
    plain, first, second, both, swapped = (
        with_adapters(*given).layers[1].ff_in.weight for given in ([], [one], [two], [one, two], [two, one])
    )
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain), atol=1e-6, rtol=0)
    assert (first - plain).abs().max() > 0.01 and (second - plain).abs().max() > 0.01
    assert torch.equal(both, swapped)
    whole = with_adapters(one._replace(weight=1.0)).layers[1].ff_in.weight
    torch.testing.assert_close(first - plain, 0.7 * (whole - plain), atol=1e-6, rtol=0)


def test_generation_with_a_cache_uses_them(tmp_path: Path) -> None:
    unmerged = generate_tokens(adapted(), TokenRequest(text(), 6, range(2), guidance=3.0))
    lm = with_adapters(Adapter(save(tmp_path)))
    assert torch.equal(generate_tokens(lm, TokenRequest(text(), 6, range(2), guidance=3.0)), unmerged)
    assert not torch.equal(
        generate_tokens(model(), TokenRequest(text(), 6, range(2), guidance=3.0)), unmerged
    )


def test_recomputed_layers_give_the_same_gradients() -> None:
    def gradients(recompute: bool) -> dict[str, Tensor]:
        lm = adapted(LoraConfig(rank=5, dropout=0.3)).train()
        torch.manual_seed(3)
        lm(STEPS, text(), checkpoint_layers=recompute).square().mean().backward()
        return {name: weight.grad for name, weight in lm.named_parameters() if weight.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys() and len(plain) == 28
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    torch.manual_seed(0)
    layer = core.LoraLinear(torch.nn.Linear(6, 10, bias=False), LoraConfig(rank=3, dropout=0.5))
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), layer(x))  # zero at first, whatever was dropped
    layer.up.data.normal_()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_a_frozen_weight_may_be_of_half_the_size() -> None:
    """Under autocast a matrix kept in bfloat16 computes what its float32 twin, rounded at each use, does."""
    results = []
    for stored in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        linear = torch.nn.Linear(6, 10, bias=False)
        linear.weight.data = linear.weight.data.to(stored)
        layer = core.LoraLinear(linear, LoraConfig(rank=3))
        assert (layer.weight.dtype, layer.down.dtype) == (stored, torch.float32)
        layer.up.data.fill_(0.1)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
        assert output.dtype == torch.bfloat16
        results.append(output)
    assert torch.equal(*results)


def test_saved_are_the_adapters_alone(tmp_path: Path) -> None:
    stored = checkpoint.load_tensors(save(tmp_path))
    assert set(stored) == {*core.adapter_state(adapted()), "fingerprint"}
    assert checkpoint.read_config(tmp_path)["info"] == {"step": 7}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_may_be_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    lm = model().to(dtype)
    lora.load_adapters(lm, [Adapter(save(tmp_path / "exact"))])
    found = lm(STEPS, text())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), logits(adapted()), atol=0.2, rtol=0.1)
    half = adapted().to(dtype)  # its fingerprint is of rounded weights
    lora.save_adapter(tmp_path / "rounded", half, LoraConfig(rank=5, alpha=10.0), "some/model")
    assert (logits(with_adapters(Adapter(tmp_path / "rounded"))) - logits(model())).abs().max() > 0.1


@pytest.mark.parametrize("change", ["other weights", "one tensor a little", "more layers"])
def test_another_model_is_refused_and_stays_as_it_was(tmp_path: Path, change: str) -> None:
    lora.save_adapter(tmp_path, adapted(), LoraConfig(rank=5, alpha=10.0), "some/model")
    lm = model(seed=1 if change == "other weights" else 0)
    if change == "one tensor a little":
        lm.layers[1].ff_in.weight.data.mul_(1.01)
    if change == "more layers":
        lm.layers.append(lm.layers[0])
    before = checkpoint.identity(lm.state_dict())
    with pytest.raises(
        InputError, match=r"was trained on some/model, and the weights of this model are others"
    ):
        lora.load_adapters(lm, [Adapter(tmp_path)])
    assert checkpoint.identity(lm.state_dict()) == before


def test_damage_is_named_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    config = LoraConfig(rank=5, alpha=10.0)
    lora.save_adapter(tmp_path, adapted(config), config, "some/model")
    whole = checkpoint.load_tensors(tmp_path)
    contents = checkpoint.read_config(tmp_path)

    def refuses(said: str) -> None:
        lm = model()
        with pytest.raises(InputError, match=said):
            lora.load_adapters(lm, [Adapter(tmp_path)])
        assert checkpoint.identity(lm.state_dict()) == checkpoint.identity(model().state_dict())

    for tensors, said in (
        ({k: v for k, v in whole.items() if k != "layers.1.ff_in.up"}, r"missing layers\.1\.ff_in\.up"),
        (whole | {"layers.7.ff_in.up": torch.zeros(1)}, r"unexpected layers\.7\.ff_in\.up"),
        ({k: v for k, v in whole.items() if k != "fingerprint"}, "lacks the tensor 'fingerprint'"),
    ):
        checkpoint.save_model(tmp_path, lora.KIND, contents["config"], tensors)
        refuses(said)
    checkpoint.save_model(tmp_path, lora.KIND, {"lora": {"rank": 4}, "base": "some/model"}, whole)
    refuses(r"down is \[5, 24\], should make \[4, 24\]; .* and 24 more")
    checkpoint.save_model(tmp_path, lora.KIND, {"base": "some/model"}, whole)
    refuses("lacks config.lora")
    checkpoint.save_model(tmp_path, "token_lm", {}, whole)
    refuses("holds a model of kind 'token_lm'; 'lora' is needed")
    (tmp_path / "config.json").write_text(json.dumps(contents))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    refuses("is damaged or half-written")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "lora.rank is 0; it must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": ("heads",)}, r"lora.targets is \['heads'\]; give one or more of in_proj, "),
        ({"targets": ()}, r"lora.targets is \[\]"),
    ],
)
def test_a_config_names_its_mistake(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LoraConfig(**values)  # type: ignore[arg-type]


def test_a_rank_beyond_all_memory_is_refused_and_changes_nothing() -> None:
    lm = model()
    with pytest.raises(InputError, match="lora.rank is 1000000000; no matrix of this model has more than"):
        lora.add(lm, LoraConfig(rank=10**9))
    assert not core.adapter_state(lm)


def test_a_second_set_is_a_bug() -> None:
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(adapted(), LoraConfig())
