"""Numbers at the ends of their range, all through the package: what comes out is finite, or one line says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec import losses
from audiogen.codec.segmented import SegmentedCodec
from audiogen.data.loader import Item
from audiogen.data.mix import mix
from audiogen.errors import InputError
from audiogen.evaluate import metrics
from audiogen.files.sounds import MAX_SAMPLE
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.load import AudioGen
from audiogen.interfaces import Edit, Sampling
from audiogen.models.own import load_tagger
from audiogen.spectrogram import log_mel, save_spectrogram

N = 800  # samples: 0.1 s at 8 kHz, 0.05 s at 16 kHz
DENORMAL = 1e-42
SOUNDS = {
    "silence": torch.zeros(1, N),
    "one sample": torch.ones(1, 1),
    "constant": torch.ones(1, N),
    "square": torch.tensor([[1.0, -1.0]]).repeat(1, N // 2),
    "denormal": torch.full((1, N), DENORMAL),
    "loudest": torch.full((1, N), MAX_SAMPLE),
}
NO_SOUNDS = {
    "NaN": torch.full((1, N), math.nan),
    "one infinity": torch.where(torch.arange(N) == 77, math.inf, 0.0)[None],
    "beyond any sound": torch.full((1, N), 3e38),
}
sounds = pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
no_sounds = pytest.mark.parametrize("sound", NO_SOUNDS.values(), ids=NO_SOUNDS)
REFUSED = "holds samples (beyond any sound|that are not finite)"


@pytest.fixture(scope="module")
def token(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32", packed=False)


@pytest.fixture(scope="module")
def latent(tiny_latent: Path) -> LatentGenerator:
    return LatentGenerator.from_pretrained(tiny_latent, "cpu")


def ways(token: AudioGen, latent: LatentGenerator, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """All that takes a sound [1, N] from outside, by name."""
    segmented = SegmentedCodec(token.codec, 400, 300, normalised=True)

    def edit(**kind: Any) -> Callable[[Tensor], Tensor]:
        def edited(x: Tensor) -> Tensor:
            given = Edit(x, 16000, **kind)
            return latent.generate(
                ["a dog barks"], x.shape[-1] / 16000, edit=given, sampling=Sampling(steps=2)
            )

        return edited

    def continued(rate: int, channels: int) -> Callable[[Tensor], Tensor]:
        return lambda x: token.generate(
            [None], x.shape[-1] / rate + 0.05, prompt=(x.expand(channels, -1), rate)
        )

    def streamed(x: Tensor) -> Tensor:
        return torch.cat(list(token.stream(None, x.shape[-1] / 8000 + 0.05, prompt=(x, 8000))), -1)

    def drawn(x: Tensor) -> None:
        save_spectrogram(folder / "x.png", x, 16000)

    return {
        "codec": lambda x: token.codec.decode(token.codec.encode(x[None])),
        "codec of segments": lambda x: segmented.decode(segmented.encode(x[None]), x.shape[-1]),
        "tokens": lambda x: token.reconstruct(x[None]),
        "latents": lambda x: latent.reconstruct(x[None]),
        "resampled to 768 kHz": lambda x: audio.resample(x, 4000, 768_000),
        "resampled to 4 kHz": lambda x: audio.resample(x, 768_000, 4000),
        "continued": continued(8000, 1),
        "8 channels at 4 kHz continued": continued(4000, 8),
        "768 kHz continued": continued(768_000, 1),
        "continued live": streamed,
        "changed": edit(strength=0.5),
        "inpainted": edit(inpaint=(0, 1 / 16000)),
        "upsampled": edit(upsample=True),
        "drawn": drawn,
    }


WITHIN = ("continued", "changed", "inpainted", "upsampled")  # what gives its sound within full scale


@sounds
def test_sounds_of_any_size_give_finite_ones(
    sound: Tensor, token: AudioGen, latent: LatentGenerator, tmp_path: Path
) -> None:
    for name, way in ways(token, latent, tmp_path).items():
        made = way(sound)
        if made is not None:
            assert made.isfinite().all(), name
            assert made.abs().max() <= 1 or not any(word in name for word in WITHIN), name


@no_sounds
def test_what_is_no_sound_is_one_line_wherever_it_is_given(
    sound: Tensor, token: AudioGen, latent: LatentGenerator, tmp_path: Path
) -> None:
    """A codec gave codes of it, as of any sound."""
    for name, way in ways(token, latent, tmp_path).items():
        with pytest.raises(InputError, match=REFUSED):
            way(sound)
            pytest.fail(name)


@pytest.mark.parametrize("value", [math.nan, 3e38])
def test_weights_that_give_no_sound_are_one_line(value: float, tiny_model: Path, tiny_latent: Path) -> None:
    """Of the last networks: from Python, samples that were not numbers came out; a stream ended in a traceback."""
    token = AudioGen.from_pretrained(tiny_model, "cpu", "float32", packed=False)
    latent = LatentGenerator.from_pretrained(tiny_latent, "cpu")
    for module in (token.codec.decoder, latent.system.autoencoder.vae):
        for weight in module.parameters():
            weight.data.fill_(value)
    sound = torch.rand(1, 1, N)
    for way in (
        lambda: token.generate([None], 0.1),
        lambda: list(token.stream(None, 0.1)),
        lambda: token.reconstruct(sound),
        lambda: latent.generate(["a dog barks"], 0.05, sampling=Sampling(steps=2)),
        lambda: latent.reconstruct(sound),
    ):
        with pytest.raises(InputError, match="the model gives samples that are not finite"):
            way()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_text_states_that_are_no_numbers_are_one_line(
    value: float, token: AudioGen, latent: LatentGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = latent.system.conditioner.text.embedded.output_proj
    for projection in (token.conditioner.output_proj, stack):
        monkeypatch.setattr(projection.bias, "data", torch.full_like(projection.bias, value))
    with pytest.raises(InputError, match="gives logits that are not finite"):
        token.generate(["a dog barks"], 0.1)
    with pytest.raises(InputError, match="gives samples that are not finite"):
        latent.generate(["a dog barks"], 0.05, sampling=Sampling(steps=2))


@sounds
def test_losses_and_features_of_sounds_of_any_size_are_finite(sound: Tensor) -> None:
    for rate in (4000, 768_000):
        for target in (sound, torch.zeros_like(sound), torch.rand(sound.shape)):
            x = sound.clone()[None].requires_grad_()
            loss = losses.multi_scale_mel(x, target[None], rate)
            loss.backward()
            assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()
            assert losses.mel_distance(x, target[None], rate).isfinite()
            assert losses.si_sdr(x, target[None]).isfinite()
        assert log_mel(sound[None], rate).isfinite().all()
    assert all(x.isfinite().all() for x in load_tagger()(sound))


def test_figures_of_embeddings_of_any_size_are_finite_or_one_line() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 40, 4))
    for size in (1e-44, 1e38, 1e74):
        a, b = size * one, size * other
        found = [metrics.frechet_distance(a, b), metrics.kernel_distance(a, b), *metrics.prdc(a, b)]
        assert np.isfinite([*found, *metrics.cosine(a, b), metrics.frechet_infinity(a, b, seed=0)]).all()
    with pytest.raises(InputError, match="reference: row 0 is beyond 1e75"):
        metrics.frechet_distance(1e200 * one, other)


def test_a_mixture_with_next_to_nothing_is_finite() -> None:
    loud, quiet = (Item(SOUNDS[name], None, name, N) for name in ("square", "denormal"))
    for pair in ((loud, quiet), (quiet, loud)):
        assert mix(*pair, snr_db=-10, start=0.5).data.isfinite().all()


@pytest.mark.parametrize("channels", range(1, 9))
def test_files_of_1_to_8_channels_and_4_to_768_khz_give_finite_sound(channels: int, tmp_path: Path) -> None:
    for rate in (4000, 44_100, 768_000):
        given = torch.rand(channels, rate // 20) * 2 - 1
        given[0, :9] = DENORMAL
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, given.T.numpy(), rate, "FLOAT")
        whole, _ = audio.load(path)
        assert torch.equal(whole, given)
        mono, _ = audio.load(path, 16_000, 1)
        assert mono.shape == (1, 800) and mono.isfinite().all()
        saved, _ = audio.load(audio.save(tmp_path / "saved.wav", given, rate))
        torch.testing.assert_close(saved, given, atol=2**-15, rtol=0)
