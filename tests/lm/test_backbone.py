"""A TokenLM with a backbone of Qwen3: parity with transformers', cache, causality, text, and its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM, Qwen3Model

from audiogen.config import build
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm import backbone
from audiogen.lm.backbone import BackboneConfig
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.backbone import load_backbone, read_sizes
from audiogen.text.condition import null
from audiogen.text.t5 import TextConfig
from tests.random_qwen3 import save_random_qwen3

QWEN3 = BackboneConfig(num_kv_heads=2, head_dim=6, ff_dim=20, rope_theta=100.0)
CONFIG = LMConfig(num_codebooks=3, codebook_size=11, dim=24, num_layers=2, num_heads=4, backbone=QWEN3)


@pytest.fixture(scope="module")
def lm() -> TokenLM:
    torch.manual_seed(0)
    return TokenLM(CONFIG).eval()


def random_steps(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 12, (batch, 3, length), generator=generator)


def random_text(lengths: list[int]) -> Condition:
    """Rows of these lengths, padded with what must not matter."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Condition(torch.randn(*mask.shape, CONFIG.dim, generator=torch.Generator().manual_seed(2)), mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_qwen3(tmp_path_factory.mktemp("qwen3"))


def loaded(folder: Path) -> tuple[TokenLM, torch.nn.Module]:
    found = read_sizes(str(folder))
    model = TokenLM(build(LMConfig, {"num_codebooks": 3, "codebook_size": 11, **found["model"]})).eval()
    return model, load_backbone(model, TextConfig(**found["text"]), str(folder)).eval()


def test_parity_with_transformers_qwen3(folder: Path) -> None:
    """Hidden states of text and steps, with padding after the shorter text, and of text alone."""
    ours, text = loaded(folder)
    theirs = Qwen3Model.from_pretrained(folder).eval()
    condition = text(["a dog barks twice", "rain"])
    lengths = condition.mask.sum(1).tolist()
    assert lengths[0] > lengths[1]
    steps = random_steps(2, 5)
    with torch.no_grad():
        features = ours.features(steps, condition)
        offsets = torch.arange(3)[:, None] * 12
        for row, length in enumerate(lengths):
            words = theirs.embed_tokens(torch.tensor(text.token_ids(["a dog barks twice", "rain"][row])))
            codes = ours.embedding(steps[row] + offsets).sum(0)
            expected = theirs(inputs_embeds=torch.cat([words, codes])[None]).last_hidden_state[0, length:]
            torch.testing.assert_close(features[row], expected, atol=1e-5, rtol=1e-5)


def test_logits_over_words_are_those_of_qwen3_for_causal_lm(folder: Path) -> None:
    """Text alone, through its own head, which is not read here."""
    ours, text = loaded(folder)
    theirs = Qwen3ForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([text.token_ids("a dog barks twice in the rain")])
    with torch.no_grad():
        x = text.embed_tokens(ids)
        nothing = Condition(x[:, :1], torch.ones(1, 1, dtype=torch.bool))
        assert ours.config.backbone is not None
        states = ours.out_norm(backbone.run(ours.config.backbone, ours.layers, x[:, 1:], nothing))
        logits = theirs.lm_head(states)
        torch.testing.assert_close(logits, theirs(ids).logits[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 1, 1], [2, 3, 2], [7]])
@pytest.mark.parametrize("given", [[5, 2], None])
def test_cached_equals_full(lm: TokenLM, chunks: list[int], given: list[int] | None) -> None:
    steps, text = random_steps(2, 7), random_text(given) if given else None
    with torch.no_grad():
        cache = lm.new_cache(text, batch_size=2, max_steps=9)
        parts = [lm(chunk, cache=cache) for chunk in steps.split(chunks, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), lm(steps, text), atol=1e-5, rtol=1e-5)


def test_a_cache_has_room_for_its_steps_and_no_more(lm: TokenLM) -> None:
    with torch.no_grad():
        cache = lm.new_cache(random_text([5, 2]), batch_size=2, max_steps=3)
        lm(random_steps(2, 3), cache=cache)
        with pytest.raises(ValueError, match="the cache is for 8 steps; it holds 8 and 1 are new"):
            lm(random_steps(2, 1), cache=cache)
    with pytest.raises(ValueError, match="pass only the cache"):
        lm(random_steps(2, 1), random_text([5, 2]), cache=cache)


def test_a_step_depends_on_the_text_itself_and_the_past_only(lm: TokenLM) -> None:
    text, seen = random_text([5, 2]), []
    text.tokens.requires_grad_()
    hook = lm.embedding.register_forward_hook(
        lambda _, __, output: (output.retain_grad(), seen.append(output))[1]
    )
    logits = lm(random_steps(2, 7), text)
    hook.remove()
    logits[1, 2, 3].sum().backward()
    assert (seen[0].grad.abs().sum((1, 3)) > 0).tolist() == [[False] * 7, [True] * 4 + [False] * 3]
    assert text.tokens.grad is not None
    assert (text.tokens.grad.abs().sum(-1) > 0).tolist() == [[False] * 5, [True, True, False, False, False]]


def test_padding_of_the_text_changes_nothing(lm: TokenLM) -> None:
    text, steps = random_text([5, 2]), random_steps(2, 7)
    alone = lm(steps[1:], Condition(text.tokens[1:, :2], text.mask[1:, :2]))
    torch.testing.assert_close(lm(steps, text)[1:], alone, atol=1e-5, rtol=1e-5)


def test_no_text_is_a_position_of_zeros(lm: TokenLM) -> None:
    steps = random_steps(2, 7)
    assert torch.equal(lm(steps, None), lm(steps, null(2, CONFIG.dim)))
    assert not torch.allclose(lm(steps, None), lm(steps, random_text([5, 2])), atol=1e-3)


def test_bfloat16_products_warn_of_nothing_and_stay_near(
    lm: TokenLM, recwarn: pytest.WarningsRecorder
) -> None:
    steps, text = random_steps(2, 7), random_text([5, 2])
    with torch.no_grad():
        exact = lm(steps, text)
        with torch.autocast("cpu", torch.bfloat16):
            near = lm(steps, text)
    assert not [str(warning.message) for warning in recwarn]
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("recompute", [True, "selective"])
def test_checkpointing_changes_memory_not_gradients(lm: TokenLM, recompute: bool) -> None:
    gradients = []
    for checkpoint_layers in (False, recompute):
        lm.zero_grad()
        logits = lm(random_steps(2, 7), random_text([5, 2]), checkpoint_layers=checkpoint_layers)
        logits.square().mean().backward()
        gradients.append([p.grad.clone() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    assert len(gradients[0]) == len(list(lm.parameters()))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "lm.num_heads is 3; it must be a multiple of lm.backbone.num_kv_heads"),
        ({"backbone": {"head_dim": 5}}, "backbone.head_dim is 5; rotary positions need an even number"),
        ({"backbone": {"ff_dim": 0}}, "backbone.ff_dim is 0; it must be at least 1"),
    ],
)
def test_sizes_that_make_no_backbone(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inner = change.pop("backbone", {})
        replace(CONFIG, **change, backbone=replace(QWEN3, **inner))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'qwen3' is implemented"),
        ({"attention_bias": True}, "attention_bias is True; only False is implemented"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn'; only 'default'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"num_experts": 8}, "num_experts is 8, which is not implemented"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
    ],
)
def test_another_model_is_refused_by_what_it_is(
    folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_sizes(str(tmp_path))


def test_older_files_have_theta_at_the_top(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": None}))
    assert read_sizes(str(tmp_path))["model"]["backbone"]["rope_theta"] == 5e5


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="backbone 'nowhere' cannot be opened .it is no directory and no hub id."
    ):
        read_sizes("nowhere")
    model, _ = loaded(folder)
    for file in folder.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="it holds no tokenizer"):
        load_backbone(model, TextConfig("tokens", 24, vocab_size=40), str(tmp_path))
    wider = TokenLM(replace(model.config, num_layers=3))
    with pytest.raises(InputError, match=r"missing layers\.2\.self_attn\.q_proj\.weight"):
        load_backbone(wider, TextConfig("tokens", 24, vocab_size=40), str(folder))
