"""TokenLM: causality, text, cache, loss and initialisation, and parity with an independent implementation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing, token_loss
from audiogen.lm.transformer import sinusoidal_positions
from audiogen.text.condition import null

CONFIG = LMConfig(num_codebooks=3, codebook_size=11, dim=24, num_layers=2, num_heads=4)


@pytest.fixture(scope="module")
def lm() -> TokenLM:
    torch.manual_seed(0)
    return TokenLM(CONFIG).eval()


def random_steps(batch: int, length: int, config: LMConfig = CONFIG) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.num_codebooks, length)
    return torch.randint(0, config.codebook_size + 1, shape, generator=generator)


def random_text(lengths: list[int], width: int = CONFIG.dim) -> Condition:
    """Rows of these lengths, padded with zeros."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(2))
    return Condition(tokens * mask[..., None], mask)


def test_a_step_depends_on_itself_and_the_past_only(lm: TokenLM) -> None:
    seen: list[Tensor] = []
    hook = lm.embedding.register_forward_hook(
        lambda _, __, output: (output.retain_grad(), seen.append(output))[1]
    )
    logits = lm(random_steps(2, 7), random_text([5, 2]))
    hook.remove()
    logits[1, 2, 3].sum().backward()
    reached = seen[0].grad.abs().sum((1, 3)) > 0  # [B, S], over all codebooks
    assert reached.tolist() == [[False] * 7, [True] * 4 + [False] * 3]


def test_every_step_sees_the_text_but_not_its_padding(lm: TokenLM) -> None:
    text = random_text([5, 2])
    text.tokens.requires_grad_()
    lm(random_steps(2, 7), text)[1, :, 0].sum().backward()
    assert text.tokens.grad is not None
    assert (text.tokens.grad.abs().sum(-1) > 0).tolist() == [[False] * 5, [True, True, False, False, False]]


def test_padding_of_the_text_changes_nothing(lm: TokenLM) -> None:
    text, steps = random_text([5, 2]), random_steps(2, 7)
    alone = lm(steps[1:], Condition(text.tokens[1:, :2], text.mask[1:, :2]))
    torch.testing.assert_close(lm(steps, text)[1:], alone)


def test_no_text_equals_a_condition_of_zeros_exactly(lm: TokenLM) -> None:
    steps = random_steps(2, 7)
    zeros = Condition(torch.zeros(2, 4, CONFIG.dim), torch.ones(2, 4, dtype=torch.bool))
    assert torch.equal(lm(steps, None), lm(steps, null(2, CONFIG.dim)))
    assert torch.equal(lm(steps, None), lm(steps, zeros))


@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 1, 1], [2, 3, 2], [7]])
def test_cached_equals_full(lm: TokenLM, chunks: list[int]) -> None:
    steps, text = random_steps(2, 7), random_text([5, 2])
    with torch.no_grad():
        cache = lm.new_cache(text, batch_size=2, max_steps=9)
        parts = [lm(chunk, cache=cache) for chunk in steps.split(chunks, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=2), lm(steps, text))
    assert cache.length == 7


def test_cache_refuses_misuse(lm: TokenLM) -> None:
    cache = lm.new_cache(None, batch_size=2, max_steps=3)
    with pytest.raises(ValueError, match="pass only the cache"):
        lm(random_steps(2, 1), random_text([5, 2]), cache=cache)
    with pytest.raises(ValueError, match="the cache is for 3 steps; it holds 0 and 4 are new"):
        lm(random_steps(2, 4), cache=cache)


def test_checkpointing_changes_memory_not_gradients(lm: TokenLM) -> None:
    gradients = []
    for checkpoint_layers in (False, True):
        lm.zero_grad()
        lm(
            random_steps(2, 7), random_text([5, 2]), checkpoint_layers=checkpoint_layers
        ).square().mean().backward()
        gradients.append([p.grad.clone() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    assert len(gradients[0]) == len(list(lm.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(3, 11, 24, 2, 4, dropout=0.5))
    steps = random_steps(2, 7)
    assert not torch.equal(lm(steps), lm(steps))
    lm.eval()
    assert torch.equal(lm(steps), lm(steps))


def test_positions_in_closed_form_and_float32() -> None:
    positions = torch.tensor([0, 1, 499, 500])
    table = sinusoidal_positions(positions, 6)
    for row, position in enumerate(positions.tolist()):
        phases = [position, position / 100, position / 10000]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        assert table[row].tolist() == pytest.approx(expected, abs=1e-4)
    assert sinusoidal_positions(positions.bfloat16().long(), 6).dtype == torch.float32


def test_bfloat16_weights_tell_late_positions_apart() -> None:
    torch.manual_seed(0)
    lm = TokenLM(CONFIG).eval()
    steps = torch.zeros(1, 3, 400, dtype=torch.long)
    with torch.no_grad():
        exact, rounded = lm.features(steps), lm.bfloat16().features(steps).float()
    assert (exact - rounded).abs().max() < 0.2  # positions built in bfloat16 would be off by up to 2


def test_parity_with_transformers_musicgen() -> None:
    """The decoder of `transformers` has the architecture, our embeddings and heads are theirs side by side.

    Its text projection lives outside the causal model, as ours does in the conditioner.
    """
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
    from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

    torch.manual_seed(0)
    theirs = MusicgenForCausalLM(
        MusicgenDecoderConfig(
            vocab_size=11, num_codebooks=3, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96,
            activation_function="gelu", dropout=0.0, scale_embedding=False, pad_token_id=11, bos_token_id=11,
            initializer_factor=0.2, attn_implementation="sdpa",
        )
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    ours = TokenLM(CONFIG).eval()
    mapped = {
        "embedding.weight": torch.cat([state[f"model.decoder.embed_tokens.{k}.weight"] for k in range(3)]),
        "heads.weight": torch.cat([state[f"lm_heads.{k}.weight"] for k in range(3)]),
        "out_norm.weight": state["model.decoder.layer_norm.weight"],
        "out_norm.bias": state["model.decoder.layer_norm.bias"],
    }
    for i in range(2):
        layer = {k: v for k, v in state.items() if k.startswith(f"model.decoder.layers.{i}.")}
        layer = {k.removeprefix(f"model.decoder.layers.{i}."): v for k, v in layer.items()}
        mapped |= {
            f"layers.{i}.{name}.weight": torch.cat([layer[f"{part}.weight"] for part in parts])
            for name, parts in {
                "self_attention.in_proj": [f"self_attn.{p}_proj" for p in "qkv"],
                "self_attention.out_proj": ["self_attn.out_proj"],
                "cross_attention.query_proj": ["encoder_attn.q_proj"],
                "cross_attention.text_proj": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
                "cross_attention.out_proj": ["encoder_attn.out_proj"],
                "ff_in": ["fc1"],
                "ff_out": ["fc2"],
                "norm_self": ["self_attn_layer_norm"],
                "norm_cross": ["encoder_attn_layer_norm"],
                "norm_ff": ["final_layer_norm"],
            }.items()
        }
        for mine, their in (
            ("norm_self", "self_attn_"),
            ("norm_cross", "encoder_attn_"),
            ("norm_ff", "final_"),
        ):
            mapped[f"layers.{i}.{mine}.bias"] = layer[f"{their}layer_norm.bias"]
    ours.load_state_dict(mapped)

    steps, text = random_steps(2, 7), random_text([5, 2])
    for condition in (text, None):
        with torch.no_grad():
            expected = theirs(
                input_ids=steps.flatten(0, 1),
                encoder_hidden_states=None if condition is None else condition.tokens,
                encoder_attention_mask=None if condition is None else condition.mask.long(),
            ).logits.unflatten(0, (2, 3))
            torch.testing.assert_close(ours(steps, condition), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        assert (ours(steps, text) - ours(steps)).abs().max() > 0.01  # the comparison sees the text


def test_loss_is_the_mean_over_codebooks_of_their_own_codes() -> None:
    logits = torch.randn(2, 3, 5, 11, generator=torch.Generator().manual_seed(0))
    targets = random_steps(2, 5).clamp(max=10)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[:, 1, 2:] = False  # fewer codes, same weight
    mask[:, 2] = False  # none at all
    loss, per_codebook = token_loss(logits, targets, mask)
    log_p = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    assert per_codebook.tolist() == pytest.approx(
        [-log_p[:, 0].mean().item(), -log_p[:, 1, :2].mean().item(), 0]
    )
    assert loss.item() == pytest.approx(per_codebook.mean().item())
    uniform = token_loss(torch.zeros(2, 3, 5, 11), targets, torch.ones_like(mask))[0]
    assert uniform.item() == pytest.approx(math.log(11))


def test_masked_places_have_no_gradient_and_may_hold_the_special_token() -> None:
    logits = torch.randn(2, 3, 5, 11, requires_grad=True)
    mask = torch.arange(30).view(2, 3, 5) % 2 == 0
    targets = torch.full((2, 3, 5), 4).masked_fill(~mask, 11)
    token_loss(logits, targets, mask)[0].backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_a_padded_clip_trains_as_it_would_alone(pattern: str) -> None:
    lm = TokenLM(LMConfig(3, 11, 24, 1, 4, pattern=pattern))  # type: ignore[arg-type]
    codes = random_steps(2, 7).clamp(max=10)
    padded = teacher_forcing(lm, codes, torch.tensor([7, 4]))
    alone = teacher_forcing(lm, codes[1:, :, :4])
    length = alone.inputs.shape[2]
    for whole, part in zip(padded, alone, strict=True):
        assert torch.equal(whole[1:, :, :length], part)
    assert not padded.mask[1, :, length:].any()
    assert padded.mask.sum().item() == 3 * (7 + 4)


def test_teacher_forcing_predicts_every_code_from_the_step_before(lm: TokenLM) -> None:
    codes = random_steps(2, 7).clamp(max=10)
    example = teacher_forcing(lm, codes)
    assert torch.equal(example.inputs[..., 1:], example.targets[..., :-1])
    assert (example.inputs[..., 0] == lm.special).all()
    for k in range(3):
        assert torch.equal(example.targets[:, k][example.mask[:, k]].view(2, 7), codes[:, k])


def test_training_on_one_example_learns_it() -> None:
    torch.manual_seed(0)
    lm = TokenLM(CONFIG)
    example = teacher_forcing(lm, random_steps(2, 7).clamp(max=10))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = token_loss(lm(example.inputs), example.targets, example.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 < math.log(2) < math.log(11)  # the two clips still share their very first step


def test_initialisation_is_audiogens() -> None:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(num_codebooks=2, codebook_size=500, dim=128, num_layers=3, num_heads=4))
    scale = 1 / math.sqrt(128)
    # standard deviation of a normal distribution truncated at 3 sigma: 0.9866 sigma; of a uniform one: a / sqrt(3)
    expected = {"embedding": 0.9866 * scale, "heads": 0.9866 * scale}
    for i in range(3):
        depth = 0.9866 / math.sqrt(2 * (i + 1))
        for name in ("self_attention.in_proj", "cross_attention.query_proj", "cross_attention.text_proj"):
            expected[f"layers.{i}.{name}"] = scale / math.sqrt(3)
        for name in ("self_attention.out_proj", "cross_attention.out_proj", "ff_in"):
            expected[f"layers.{i}.{name}"] = depth * scale
        expected[f"layers.{i}.ff_out"] = depth / math.sqrt(4 * 128)
    matrices = {name.removesuffix(".weight"): p for name, p in lm.named_parameters() if p.ndim == 2}
    assert matrices.keys() == expected.keys()
    for name, weight in matrices.items():
        assert weight.std().item() == pytest.approx(expected[name], rel=0.03), name
        assert weight.abs().max() <= 3.05 * expected[name] / 0.9866, name
    for name, p in lm.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name


def test_embedding_scale_changes_the_initial_embeddings_and_nothing_else() -> None:
    models = []
    for scale in (1.0, 8.0):
        torch.manual_seed(0)
        models.append(TokenLM(LMConfig(2, 50, dim=16, num_layers=1, num_heads=2, embedding_scale=scale)))
    plain, scaled = (dict(model.named_parameters()) for model in models)
    for name, weight in plain.items():
        torch.testing.assert_close(scaled[name], weight * (8.0 if name == "embedding.weight" else 1.0))


def test_audiogen_medium_has_the_released_number_of_weights() -> None:
    with torch.device("meta"):
        lm = TokenLM(LMConfig(num_codebooks=4, codebook_size=2048, dim=1536, num_layers=48, num_heads=24))
    text_projection = 1024 * 1536 + 1536  # the conditioner's, in the same file of the release
    assert sum(p.numel() for p in lm.parameters()) + text_projection == 1_839_131_136


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "lm.num_layers is 0; it must be at least 1"),
        ({"dim": 25}, "lm.dim is 25; it must be even"),
        ({"num_heads": 5}, "a multiple of lm.num_heads"),
        ({"dropout": 1.0}, r"lm.dropout is 1.0; it must be in \[0, 1\)"),
        ({"pattern": "dely"}, "lm.pattern is 'dely'; it must be delay or parallel or flatten"),
        ({"delays": (0, 1)}, r"lm.delays is \[0, 1\]; it needs 3 delays"),
        ({"delays": (1, 2, 3)}, "the smallest 0"),
        ({"delays": (0, 1, 2), "pattern": "flatten"}, "lm.delays is only for pattern delay, not flatten"),
    ],
)
def test_config_names_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_loss_under_autocast_is_float32(lm: TokenLM) -> None:
    example = teacher_forcing(lm, random_steps(2, 7).clamp(max=10))
    exact, _ = token_loss(lm(example.inputs), example.targets, example.mask)
    with torch.autocast("cpu", torch.bfloat16):
        logits = lm(example.inputs)
        loss, _ = token_loss(logits, example.targets, example.mask)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert F.l1_loss(loss, exact) < 0.02
