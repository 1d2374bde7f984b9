"""Adapters of denoisers: nothing at first, merged as unmerged, sums, and the layout that PEFT and diffusers read."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiogen import lora as core
from audiogen.adapters import Adapter, parse
from audiogen.diffusion import lora
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.denoisers import denoiser
from audiogen.diffusion.lora import LatentLoraConfig
from audiogen.diffusion.network import Denoiser
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Condition
from tests.diffusion.tiny_systems import RECIPES, tiny

CONFIG = LatentLoraConfig(rank=3, alpha=6.0)
DIT = "transformer_blocks.0.attn1.to_q"


def network(name: str = "stable_audio", seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return denoiser(tiny(name).denoiser).eval()


def adapted(name: str = "stable_audio", config: LatentLoraConfig = CONFIG, seed: int = 1) -> Denoiser:
    """A denoiser whose adapters have learned something."""
    found, random = network(name), torch.Generator().manual_seed(seed)
    lora.add(found, config)
    for tensor in core.adapter_state(found.network).values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=random))
    return found


def save(folder: Path, name: str = "stable_audio", seed: int = 1) -> Path:
    lora.save_adapter(folder, adapted(name, seed=seed), CONFIG, "some/system", {"step": 7})
    return folder


def with_adapters(*given: Adapter, name: str = "stable_audio") -> Denoiser:
    found = network(name)
    lora.load_adapters(found, given)
    return found


@torch.no_grad()
def prediction(found: Denoiser) -> Tensor:
    """For two rows of 8 frames, as the process asks for it."""
    random = torch.Generator().manual_seed(2)
    config = found.config
    shape = (2, config.latent_dim, 8) if found.in_frames else (2, config.latent_dim, 8, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    streams = tuple(
        Condition(torch.randn(2, 5, width, generator=random) * mask[..., None], mask)
        for width in config.cross_dims
    )
    vector = None if config.vector_dim is None else torch.randn(2, config.vector_dim, generator=random)
    x_t = torch.randn(shape, generator=random)
    return found(x_t, torch.tensor([0.3, 0.6]), Conditioning(streams, vector))


@pytest.mark.parametrize("name", RECIPES)
def test_every_denoiser_begins_as_itself_and_is_merged_to_the_same(name: str, tmp_path: Path) -> None:
    plain = network(name)
    before = prediction(plain)
    lora.add(plain, CONFIG)
    torch.testing.assert_close(prediction(plain), before, atol=1e-5, rtol=1e-5)
    unmerged = prediction(adapted(name))
    assert (unmerged - before).abs().max() > 1e-3
    merged = with_adapters(Adapter(save(tmp_path, name)), name=name)
    torch.testing.assert_close(prediction(merged), unmerged, atol=1e-4, rtol=1e-4)
    assert merged.state_dict().keys() == network(name).state_dict().keys()


@pytest.mark.parametrize("name", RECIPES)
def test_peft_reads_the_file_and_merges_to_the_same(name: str, tmp_path: Path) -> None:
    """By diffusers' own method where its network has it, else as PEFT puts adapters into any network."""
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    file = save(tmp_path, name) / lora.WEIGHTS
    theirs = network(name).network
    prefix = "transformer" if name.startswith("stable_audio") or name == "tangoflux" else "unet"
    if hasattr(theirs, "load_lora_adapter"):
        theirs.load_lora_adapter(str(tmp_path), prefix=prefix, weight_name=lora.WEIGHTS)
    else:
        tensors = {key.removeprefix(f"{prefix}."): tensor for key, tensor in load_file(file).items()}
        names = sorted({key.rpartition(".lora_")[0] for key in tensors})
        config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=names)
        peft.inject_adapter_in_model(config, theirs)
        assert not peft.set_peft_model_state_dict(theirs, tensors).unexpected_keys
    ours = with_adapters(Adapter(tmp_path), name=name).network
    layers = {key: layer for key, layer in theirs.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(layers) == len(load_file(file)) // 2 > 4
    for key, layer in layers.items():
        update = layer.get_delta_weight(layer.active_adapters[0])
        assert update.abs().max() > 0.01
        torch.testing.assert_close(ours.get_submodule(key).weight, layer.base_layer.weight + update)


def test_the_targets_are_all_matrices_of_attention_and_feed_forward() -> None:
    counts = {}
    for name in RECIPES:
        for target in lora.TARGETS:
            found = network(name)
            lora.add(found, LatentLoraConfig(rank=1, targets=(target,)))
            counts[name, target] = len(core.adapter_state(found.network)) // 2
            trained = {key for key, weight in found.named_parameters() if weight.requires_grad}
            assert trained == {f"network.{key}" for key in core.adapter_state(found.network)}
    assert counts["stable_audio", "attention"] == 2 * 4 and counts["stable_audio", "feed_forward"] == 2
    # a double block: 4 for latents, 4 for text; a single block: 3, without an output of its own
    assert counts["tangoflux", "attention"] == 8 + 3 and counts["tangoflux", "feed_forward"] == 4 + 2
    assert all(count > 0 for count in counts.values())


def test_of_weight_0_they_leave_every_bit_and_two_add_up(tmp_path: Path) -> None:
    one, two = Adapter(save(tmp_path / "1"), 0.7), Adapter(save(tmp_path / "2", seed=3), -0.3)
    nothing = with_adapters(one._replace(weight=0.0), two._replace(weight=0.0))
    assert checkpoint.identity(nothing.state_dict()) == checkpoint.identity(network().state_dict())
    plain, first, second, both = (
        with_adapters(*given).network.get_submodule(DIT).weight for given in ([], [one], [two], [one, two])
    )
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain), atol=1e-6, rtol=0)
    assert min((each - plain).abs().max() for each in (first, second)) > 0.01


def test_another_system_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    given = [Adapter(save(tmp_path))]
    for other in (network(seed=1), network("tangoflux")):
        before = checkpoint.identity(other.state_dict())
        with pytest.raises(
            InputError, match="was trained on some/system, and the weights of this model are others"
        ):
            lora.load_adapters(other, given)
        assert checkpoint.identity(other.state_dict()) == before


def test_a_file_of_another_program_is_read_with_its_ranks_and_alphas(tmp_path: Path) -> None:
    """Old names of the tensors, a rank for each layer, alpha beside them or in the header."""
    plain = network()
    random = torch.Generator().manual_seed(5)
    shape = plain.network.get_submodule(DIT).weight.shape
    down, up = torch.randn(2, shape[1], generator=random), torch.randn(shape[0], 2, generator=random)
    names = {f"transformer.{DIT}.lora.down.weight": down, f"transformer.{DIT}.lora.up.weight": up}
    header = {lora.METADATA: json.dumps({"transformer.r": 2, "transformer.lora_alpha": 8})}
    for extra, metadata, scale in (
        ({}, None, 1.0),
        ({f"transformer.{DIT}.alpha": torch.tensor(1.0)}, None, 0.5),
        ({}, header, 4.0),
    ):
        save_file({**names, **extra}, tmp_path / "some.safetensors", metadata)
        found = with_adapters(Adapter(tmp_path / "some.safetensors", 0.5)).network.get_submodule(DIT).weight
        expected = plain.network.get_submodule(DIT).weight + 0.5 * scale * up @ down
        torch.testing.assert_close(found, expected)


def test_damage_is_one_line_and_leaves_the_denoiser_as_it_was(tmp_path: Path) -> None:
    whole = load_file(save(tmp_path / "own") / lora.WEIGHTS)
    key = f"transformer.{DIT}.lora_A.weight"

    def refuses(path: Path, said: str) -> None:
        found = network()
        with pytest.raises(InputError, match=said) as caught:
            lora.load_adapters(found, [Adapter(path)])
        assert "\n" not in str(caught.value)
        assert checkpoint.identity(found.state_dict()) == checkpoint.identity(network().state_dict())

    for changed, said in (
        ({k: v for k, v in whole.items() if k != key}, "missing transformer_blocks.0.attn1.to_q.down"),
        (whole | {key: whole[key][:, :-1].contiguous()}, r"down is \[3, \d+\], should make"),
        (whole | {"text_encoder.x.lora_A.weight": torch.zeros(1)}, "unexpected text_encoder.x.down"),
        (
            whole | {"unet.x.weight": torch.zeros(1)},
            "has unet.x.weight, which is no LoRA of a denoiser's matrix",
        ),
    ):
        save_file(changed, tmp_path / "own" / lora.WEIGHTS)
        refuses(tmp_path / "own", said)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(2, 3)}, foreign)
    refuses(foreign, "is of another network: this one has no linear layer conv_in")
    save_file({key: whole[key]}, foreign)
    refuses(foreign, "missing transformer_blocks.0.attn1.to_q.up")
    save_file(whole, foreign, {lora.METADATA: json.dumps({"transformer.use_dora": True})})
    refuses(foreign, "is not plain LoRA: it sets use_dora")
    save_file(whole, foreign, {lora.METADATA: "[1"})
    refuses(foreign, "in its header is damaged")
    foreign.write_bytes(foreign.read_bytes()[:99])
    refuses(foreign, "is damaged or half-written")
    refuses(tmp_path / "nowhere", "holds no adapter: there is no pytorch_lora_weights.safetensors")
    (tmp_path / "own" / lora.FINGERPRINT).unlink()
    refuses(tmp_path / "own", "fingerprint.safetensors does not exist")


def test_a_config_names_its_mistake() -> None:
    with pytest.raises(
        InputError, match=r"lora.targets is \['heads'\]; give one or more of attention, feed_"
    ):
        LatentLoraConfig(targets=("heads",))
    with pytest.raises(InputError, match="lora.rank is 0; it must be at least 1"):
        LatentLoraConfig(rank=0)
    with pytest.raises(InputError, match="lora.rank is 1000000; no matrix of this model has more than"):
        lora.add(network(), LatentLoraConfig(rank=10**6))


def test_a_path_and_its_weight() -> None:
    assert parse(None) == [] and parse("a/b") == [Adapter(Path("a/b"), 1.0)]
    assert parse(["a:0.7", "b:-1", Path("c"), Adapter(Path("d"), 2.0)]) == [
        Adapter(Path("a"), 0.7), Adapter(Path("b"), -1.0), Adapter(Path("c")), Adapter(Path("d"), 2.0)
    ]  # fmt: skip
    assert parse("C:\\runs\\a") == [Adapter(Path("C:\\runs\\a"))]
    for weight in ("nan", "inf"):
        with pytest.raises(InputError, match=f"the adapter a has the weight {weight}"):
            parse(f"a:{weight}")


def test_layers_stay_as_they_are_beside_their_adapters() -> None:
    found = network()
    plain = copy.deepcopy(found)
    lora.add(found, CONFIG)
    own = found.state_dict()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(own[key], tensor)
