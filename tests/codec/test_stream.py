"""Block-by-block running: what comes out is that of one call, as soon as it is determined, in constant memory."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import Tensor

from audiogen.codec.conv import StreamState
from audiogen.codec.losses import mel_distance
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.spectral import SpectralConfig
from audiogen.codec.stream import decode_live, decode_stream, encode_stream
from audiogen.data import synth
from audiogen.errors import InputError
from audiogen.models.build import load_codec

HOP = 40
SEANET = CodecConfig(
    sample_rate=8000,
    seanet=SeanetConfig(num_filters=4, ratios=(5, 4, 2), lstm=0, num_residual_layers=2),
    latent_dim=12,
    num_codebooks=3,
    codebook_size=16,
)
PUBLIC = replace(SEANET.seanet, pad_mode="reflect", true_skip=False, lstm=2, num_residual_layers=1)
SHAPES = {
    "constant": SEANET.seanet,
    "replicate": replace(SEANET.seanet, pad_mode="replicate", lstm=2),
    "reflect": PUBLIC,  # as EnCodec's
    "causal": replace(SEANET.seanet, causal=True, lstm=2),
    "causal-replicate": replace(PUBLIC, causal=True, pad_mode="replicate"),
    "causal-reflect": replace(PUBLIC, causal=True),
    "looks-ahead": replace(SEANET.seanet, causal=True, trim_right_ratio=0.3),
    "ratios": replace(PUBLIC, ratios=(8, 1, 5), residual_kernel_size=4, kernel_size=6),
}
SPECTRAL = replace(
    SEANET, arch="spectral", spectral=SpectralConfig(160, 40, 16, 2, 1, kernel_size=5, phase_iterations=2)
)


def make(config: CodecConfig) -> Codec:
    """Random weights; the codebooks start on the latents of noise, so that many codes occur."""
    torch.manual_seed(0)
    codec = Codec(config)
    with torch.no_grad():
        codec.train()(torch.randn(4, config.channels, 4000))
    return codec.eval()


def blocks(x: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """x in blocks of these sizes, over and over."""
    sizes_coming = cycle(sizes)
    while x.shape[-1] > 0:
        size = next(sizes_coming)
        yield x[..., :size]
        x = x[..., size:]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, 2, 39, 41, 163, 1111])
def test_blocks_of_any_lengths_give_what_one_call_gives(name: str, length: int) -> None:
    codec = make(replace(SEANET, seanet=SHAPES[name]))
    torch.manual_seed(1)
    sound = torch.randn(2, 1, length)
    with torch.no_grad():
        latents = codec.encoder(sound)
        whole = codec.decoder(latents)
        smallest = 1 if length < 200 else 13  # single samples through all strides need no longer sound
        for sizes in ([smallest], [7, 0, 100], [41]):
            state: StreamState = {}
            parts = [codec.encoder(block, state) for block in blocks(sound, sizes)]
            parts.append(codec.encoder(sound[..., :0], state, last=True))
            torch.testing.assert_close(torch.cat(parts, -1), latents, atol=1e-5, rtol=0)
        for sizes in ([1], [3, 1]):
            state, parts = {}, []
            for block in blocks(latents, sizes):
                parts.append(codec.decoder(block, state))
            parts.append(codec.decoder(latents[..., :0], state, last=True))
            torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-5, rtol=0)
        state = {}  # in two, the end of the signal with the second
        parts = [codec.encoder(sound[..., :-1], state), codec.encoder(sound[..., -1:], state, last=True)]
        torch.testing.assert_close(torch.cat(parts, -1), latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["constant", "reflect", "causal", "looks-ahead", "ratios"])
def test_audio_comes_as_soon_as_the_look_ahead_says(name: str) -> None:
    """By gradient: what came first does not depend on later frames, and what comes next does."""
    codec = make(replace(SEANET, seanet=replace(SHAPES[name], lstm=0)))
    given, ahead = 20, codec.lookahead_frames
    latents = torch.randn(1, 12, 40, requires_grad=True)
    first = codec.decoder(latents[..., :given], {})
    assert (given - ahead) * HOP <= first.shape[-1] <= given * HOP
    assert ahead == 0 or first.shape[-1] < (given - ahead + 1) * HOP
    whole = codec.decoder(latents)
    torch.testing.assert_close(first, whole[..., : first.shape[-1]], atol=1e-5, rtol=0)
    whole[..., first.shape[-1]].sum().backward()
    assert latents.grad is not None and latents.grad[..., given:].abs().sum() > 0
    assert (ahead == 0) == (name == "causal")


@pytest.mark.parametrize("name", ["constant", "reflect", "causal"])
def test_the_state_does_not_grow(name: str) -> None:
    codec = make(replace(SEANET, seanet=replace(SHAPES[name], lstm=2)))

    def num_bytes(state: StreamState) -> int:
        tensors = [part for kept in state.values() for part in kept if isinstance(part, Tensor)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    with torch.no_grad():
        for stack, x in ((codec.encoder, torch.randn(1, 1, 9 * HOP)), (codec.decoder, torch.randn(1, 12, 9))):
            state: StreamState = {}
            sizes = []
            for _ in range(6):
                stack(x, state)
                sizes.append(num_bytes(state))
            assert len(set(sizes[2:])) == 1 and sizes[-1] < 60_000
            assert "PastInput(x=tensor(" in str(state) and "Cells(hidden=" in str(state)


@pytest.mark.parametrize("dual_mono", [False, True])
@pytest.mark.parametrize("name", ["constant", "reflect", "causal-reflect"])
def test_streams_of_a_stateful_codec_equal_one_call(
    name: str, dual_mono: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiogen.codec.stream.BODY_S", 0.03)  # 6 frames
    codec = make(replace(SEANET, seanet=SHAPES[name]))
    if dual_mono:
        stereo = Codec(replace(codec.config, channels=2, num_codebooks=6, dual_mono=True))
        stereo.load_state_dict(codec.state_dict())
        codec = stereo.eval()
    sound = torch.randn(1, codec.channels, 3001)
    codes = codec.encode(sound)
    assert torch.equal(torch.cat(list(encode_stream(codec, sound.split([1000, 37, 1963, 1], -1))), -1), codes)
    whole = codec.decode(codes)
    parts = list(decode_stream(codec, codes.split([3, 60, 13], -1)))
    assert len(parts) > 5
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-5, rtol=0)
    fewer = codec.encode(sound, 2)
    assert torch.equal(torch.cat(list(encode_stream(codec, sound.split(500, -1), 2)), -1), fewer)
    batch = torch.cat([codes, codes.flip(-1)])
    parts = list(decode_live(codec, batch.split(2, -1)))
    assert len(parts) > 30
    torch.testing.assert_close(torch.cat(parts, -1), codec.decode(batch), atol=1e-5, rtol=0)
    assert list(encode_stream(codec, [])) == list(decode_live(codec, [])) == []


@pytest.mark.parametrize("config", [SEANET, SPECTRAL], ids=["seanet", "spectral"])
@pytest.mark.parametrize("body_frames", [1, 7])
def test_live_audio_is_that_of_the_whole_and_comes_at_once(config: CodecConfig, body_frames: int) -> None:
    codec = make(config)
    codes = codec.encode(torch.randn(1, 1, 90 * HOP))
    given = 0

    def one_by_one() -> Iterator[Tensor]:
        nonlocal given
        for frame in codes.split(1, -1):
            given += 1
            yield frame

    parts, num_samples = [], 0
    for part in decode_live(codec, one_by_one(), body_frames):
        parts.append(part)
        num_samples += part.shape[-1]
        assert given == 90 or (given - codec.lookahead_frames) * HOP <= num_samples
        if given < 90:
            assert given % body_frames == 0
    assert len(parts) >= (90 - codec.lookahead_frames) // body_frames
    torch.testing.assert_close(torch.cat(parts, -1), codec.decode(codes), atol=1e-5, rtol=0)
    growing = list(decode_live(codec, codes.split(1, -1), [1, 7, 30]))
    torch.testing.assert_close(torch.cat(growing, -1), codec.decode(codes), atol=1e-5, rtol=0)
    # in frames of the blocks: 1, 7, 30, 30 and the rest, of which a codec with a look-ahead gives some later
    assert len(growing) <= 5 and len(growing[-2][0, 0]) == 30 * HOP
    whole = list(decode_live(codec, [codes], 200))  # fewer frames than asked for: all at the end
    torch.testing.assert_close(torch.cat(whole, -1), codec.decode(codes), atol=1e-5, rtol=0)


def test_a_shorter_look_ahead_is_nearly_the_whole_and_the_nearer_the_longer_it_is() -> None:
    """Of the bundled codec, whose receptive field is a second: distance to the whole in log mel bands."""
    codec = load_codec("codec_tiny")
    sound = torch.cat([synth.render(5, number, 16000).audio[:, :32000] for number in (1, 2)], -1)[None]
    codes = codec.encode(sound)
    whole = codec.decode(codes)
    distances = {}
    for ahead in (0, 2, 8, codec.lookahead_frames):
        parts = list(decode_live(codec, codes.split(1, -1), 5, ahead))
        if ahead < codec.lookahead_frames:
            assert parts[0].shape[-1] == 5 * codec.hop_length
        distances[ahead] = float(mel_distance(torch.cat(parts, -1), whole, 16000))
    assert distances[0] > distances[2] > distances[8] > distances[codec.lookahead_frames]
    assert distances[2] < 0.1 and distances[8] < 1e-3 and distances[codec.lookahead_frames] < 1e-5


def test_what_cannot_run_live_says_why() -> None:
    spectral = make(SPECTRAL)
    with pytest.raises(InputError, match="encoder of a spectral codec keeps no state"):
        spectral.encode(torch.zeros(1, 1, 80), state={})
    group = Codec(replace(SEANET, seanet=replace(SEANET.seanet, norm="group"))).eval()
    with pytest.raises(InputError, match="group norm keeps no state"):
        group.encode(torch.zeros(1, 1, 80), state={})
    with pytest.raises(InputError, match="group norm is over all of a sound"):
        list(decode_live(group, [torch.zeros(1, 3, 2, dtype=torch.int64)]))
    for sizes in (0, [3, 0], []):
        with pytest.raises(InputError, match="body_frames is"):
            list(decode_live(spectral, [], sizes))
    with pytest.raises(InputError, match="codes lie in 16..16"):
        make(SEANET).decode(torch.full((1, 3, 2), 16), state={})
