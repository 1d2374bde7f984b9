"""Conditioners: inputs become conditioning, alone as in a batch, and each null is what its authors take."""

import dataclasses
from pathlib import Path

import pytest
import torch

from audiogen.diffusion.conditioners import Conditioner, ConditionerConfig, ConditionerInputs, SecondsConfig
from audiogen.diffusion.loa import LoaConfig, LoaGenerator, pool
from audiogen.interfaces import Condition
from audiogen.text import encoder
from audiogen.text.t5 import TextConfig
from audiogen.text.vocabulary import train_vocabulary
from tests import random_t5
from tests.diffusion.tiny_systems import CAPTIONS, RECIPES, tiny


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_t5.write(tmp_path_factory.mktemp("t5"), 18)


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def rows(conditioning):
    return [
        *(c.tokens for c in conditioning.streams),
        *([] if conditioning.vector is None else [conditioning.vector]),
    ]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_row_is_the_same_alone_and_in_a_batch(name: str) -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(tiny(name).conditioner, train_vocabulary(CAPTIONS, 40)).eval()
    total = torch.tensor([1.0, 2.0, 3.0])
    batch = conditioner(conditioner.inputs(CAPTIONS, total))
    for i, caption in enumerate(CAPTIONS):
        alone = conditioner(conditioner.inputs([caption], total[i : i + 1]))
        for stream, one in zip(batch.streams, alone.streams, strict=True):
            torch.testing.assert_close(stream.tokens[i][stream.mask[i]], one.tokens[0][one.mask[0]])
        if batch.vector is not None:
            torch.testing.assert_close(batch.vector[i], alone.vector[0])


def test_texts_of_a_frozen_encoder_are_its_states(t5: Path) -> None:
    config = ConditionerConfig(cross=(("text",),), unconditional="empty", text=TextConfig(str(t5), width=18))
    conditioner = Conditioner(config)
    assert not list(conditioner.parameters())  # nothing of a frozen encoder is trained or saved
    conditioning = conditioner(conditioner.inputs(["a dog", "a dog, a dog", None]))
    opened = encoder.named(str(t5), 18).open()
    for row, text in enumerate(["a dog", "a dog, a dog", ""]):
        ids = torch.tensor([opened.tokenizer.encode(text)])
        states = opened.stack.eval()(ids)[0]
        stream = conditioning.streams[0]
        torch.testing.assert_close(stream.tokens[row][stream.mask[row]], states)
    null = conditioner.null(conditioner.inputs(["a dog", "a dog, a dog"]))
    assert null.streams[0].mask.sum(dim=1).tolist() == [1, 1]
    torch.testing.assert_close(null.streams[0].tokens[0, 0], conditioning.streams[0].tokens[2, 0])


def test_padded_null_is_the_empty_text_as_long_as_the_text_and_its_pooling_ignores_padding(t5: Path) -> None:
    config = ConditionerConfig(
        cross=(("text",),),
        vector=("pooled",),
        unconditional="padded",
        text=TextConfig(str(t5), width=18),
        pooled_dim=6,
    )
    conditioner = Conditioner(config)
    inputs = conditioner.inputs(["a dog", "a dog, a dog"])
    null, lengths = conditioner.null(inputs), inputs.text.mask.sum(dim=1)
    assert torch.equal(null.streams[0].mask.sum(dim=1), lengths)
    stack = encoder.named(str(t5), 18).open().stack.eval()
    for row, length in enumerate(lengths.tolist()):
        # </s>, then padding that T5 masks and the denoiser does not
        ids = torch.tensor([[1] + [0] * (length - 1)])
        mask = torch.tensor([[1] + [0] * (length - 1)])
        states = stack(ids, mask.bool())[0]
        torch.testing.assert_close(null.streams[0].tokens[row, :length], states)
        torch.testing.assert_close(null.vector[row], torch.relu(conditioner.pooled(states[0])))


def test_null_of_stable_audio_keeps_the_seconds_in_the_vector_only() -> None:
    conditioner = Conditioner(tiny("stable_audio").conditioner, train_vocabulary(CAPTIONS, 40)).eval()
    inputs = conditioner.inputs(CAPTIONS, torch.tensor([1.0, 2.0, 3.0]))
    conditioning, null = conditioner(inputs), conditioner.null(inputs)
    assert torch.equal(null.vector, conditioning.vector)
    assert not null.streams[0].tokens.any() and null.streams[0].tokens.shape == (3, 66, 24)
    assert null.streams[0].mask.all() and conditioning.streams[0].mask.all()


def test_null_of_a_zeros_vector_and_of_a_kept_duration() -> None:
    audioldm = Conditioner(tiny("audioldm").conditioner, train_vocabulary(CAPTIONS, 40)).eval()
    inputs = audioldm.inputs(CAPTIONS)
    assert audioldm(inputs).vector.any() and not audioldm.null(inputs).vector.any()
    flux = Conditioner(tiny("tangoflux").conditioner, train_vocabulary(CAPTIONS, 40)).eval()
    inputs = flux.inputs(CAPTIONS, torch.tensor([1.0, 2.0, 3.0]))
    given, null = flux(inputs).streams[0], flux.null(inputs).streams[0]
    torch.testing.assert_close(given.tokens[:, -1], null.tokens[:, -1])  # the duration's token, the last
    assert not torch.equal(given.tokens[0, 0], null.tokens[0, 0])


def test_null_of_the_language_of_audio_is_zeros() -> None:
    conditioner = Conditioner(
        dataclasses.replace(tiny("audioldm2").conditioner, unconditional="empty"),
        train_vocabulary(CAPTIONS, 40),
    ).eval()
    inputs = conditioner.inputs(CAPTIONS)
    assert conditioner(inputs).streams[0].tokens.any()
    null = conditioner.null(inputs)
    assert null.streams[0].tokens.shape == (3, 3, 16) and not null.streams[0].tokens.any()
    assert null.streams[0].mask.all()


def test_seconds_beyond_the_range_count_as_its_end() -> None:
    config = ConditionerConfig(
        cross=(("seconds_total",),), seconds=SecondsConfig(width=8, min_s=0.0, max_s=30.0)
    )
    conditioner = Conditioner(config)
    tokens = conditioner(ConditionerInputs(seconds_total=torch.tensor([29.0, 30.0, 31.0]))).streams[0].tokens
    torch.testing.assert_close(tokens[1], tokens[2])
    assert not torch.allclose(tokens[0], tokens[1])


def test_teacher_forcing_predicts_what_generation_makes() -> None:
    """Given the vectors that were generated, each prediction is the next of them; none sees a later one."""
    torch.manual_seed(0)
    loa = LoaGenerator(LoaConfig(16, 4, 2, 2, 32, 2, clap_dim=5, text_dim=6)).eval()
    text = Condition(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    clap = torch.randn(2, 5)
    made = loa.generate(clap, text)
    torch.testing.assert_close(loa.predict(clap, text, made), made)
    changed = made.clone()
    changed[:, 2] = torch.randn(2, 16)
    found = loa.predict(clap, text, changed)
    torch.testing.assert_close(found[:, :3], made[:, :3])
    assert not torch.allclose(found[:, 3], made[:, 3])


def test_pooled_features_are_the_mean_of_average_and_maximum_in_order_of_time() -> None:
    features = torch.randn(2, 5, 6, 4)  # B, D, T, M
    pooled = pool(features, 3, 5)
    assert pooled.shape == (2, 3, 5)
    square = features[1, :, 2:4].flatten(1)  # the second step in time, all bands
    torch.testing.assert_close(pooled[1, 1], (square.mean(1) + square.amax(1)) / 2)


def test_pooled_latents_are_segments_of_time_and_bands_of_each_channel() -> None:
    latents = torch.randn(2, 3, 6, 4)  # B, D, T, M
    pooled = pool(latents, 2, 6)
    assert pooled.shape == (2, 2, 6)
    square = latents[
        1, 2, 3:6, 0:2
    ]  # the last channel in the second half of time, the lower half of the bins
    torch.testing.assert_close(pooled[1, 1, 2 * 2], (square.mean() + square.amax()) / 2)
    flat = latents[..., 0]  # [B, D, T]
    torch.testing.assert_close(pool(flat, 3, 3), pool(flat[..., None], 3, 3))


def test_vectors_of_texts_of_one_length_are_generated_together_in_training() -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(tiny("audioldm2").conditioner, train_vocabulary(CAPTIONS, 40)).eval()
    inputs = conditioner.inputs([CAPTIONS[0], CAPTIONS[1], CAPTIONS[0], None])
    alone = conditioner(inputs).streams[0].tokens
    conditioner.training = True  # of itself alone: GPT-2 without dropout
    torch.testing.assert_close(conditioner(inputs).streams[0].tokens, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
