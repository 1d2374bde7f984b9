"""Packed weights compute what the plain layers compute, the oracle here: whole, in batches and block by block."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.codec.__main__ import main
from audiogen.codec.conv import PaddedConv1d, PaddedConvTranspose1d, ResidualLSTM
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.spectral import SpectralConfig
from audiogen.codec.stream import decode_live, encode_stream
from audiogen.errors import InputError
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec
from audiogen.packed import can_pack, pack

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="PyTorch without oneDNN")
needs_bfloat16 = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="oneDNN has no bfloat16 here")

CENTRED = SeanetConfig(num_filters=4, ratios=(5, 4, 2), lstm=2)
SHAPES = {
    "centred": CENTRED,
    "public": replace(CENTRED, pad_mode="reflect", true_skip=False, causal=True),
    "looks-ahead": replace(CENTRED, causal=True, trim_right_ratio=0.5, pad_mode="replicate", lstm=0),
}
CONFIG = CodecConfig(sample_rate=8000, seanet=CENTRED, latent_dim=12, num_codebooks=3, codebook_size=16)


SPECTRAL = replace(
    CONFIG,
    arch="spectral",
    spectral=SpectralConfig(160, 40, 16, 2, 1, kernel_size=5, phase_iterations=2, frames_per_latent=1),
)


def make(config: CodecConfig, seanet: SeanetConfig | None = None) -> Codec:
    """Random weights; the codebooks start on the latents of noise."""
    torch.manual_seed(0)
    codec = Codec(replace(config, seanet=seanet or config.seanet))
    with torch.no_grad():
        codec.train()(torch.randn(4, config.channels, 4000))
    return codec.eval().requires_grad_(False)


def frozen(codec: Codec, dtype: torch.dtype) -> Codec:
    """A second codec of the same weights."""
    twin = Codec(codec.config)
    twin.load_state_dict(codec.state_dict())
    twin.freeze(dtype)
    return twin


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        PaddedConv1d(5, 3, 7),
        PaddedConv1d(1, 3, 7),  # taps as channels
        PaddedConv1d(1, 3, 5, 1, 3),
        PaddedConv1d(5, 3, 10, 5, pad_mode="reflect"),
        PaddedConv1d(5, 3, 3, 1, 4, causal=True),
        PaddedConvTranspose1d(5, 3, 10, 5),
        PaddedConvTranspose1d(5, 1, 4, 2, causal=True),
        ResidualLSTM(5, 2),
    ],
    ids=str,
)
def test_a_packed_layer_computes_what_the_plain_one_does(
    layer: torch.nn.Module, batch: int, channels_last: bool
) -> None:
    torch.manual_seed(0)
    dim = next(layer.parameters()).shape[0 if isinstance(layer, PaddedConvTranspose1d) else 1]
    x = torch.randn(batch, dim, 23)
    x = x.mT.contiguous().mT if channels_last else x
    with torch.no_grad():
        pack(layer, None)
        expected = layer(x)
        pack(layer, torch.float32)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
        state: dict = {}
        parts = [layer(piece, state) for piece in x.split([9, 1, 13], -1)]
        parts.append(layer(x[..., :0], state, last=True))
        torch.testing.assert_close(torch.cat(parts, -1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", [*SHAPES, "spectral"])
def test_a_frozen_codec_gives_the_codes_and_the_audio_of_the_plain_one(name: str, channels: int) -> None:
    plain = make(replace(SPECTRAL if name == "spectral" else CONFIG, channels=channels), SHAPES.get(name))
    fast = frozen(plain, torch.float32)
    sound = torch.randn(2, channels, 3001)
    codes = plain.encode(sound)
    assert torch.equal(fast.encode(sound), codes) and fast.packed == {fast.encoder}
    whole = plain.decode(codes)
    torch.testing.assert_close(fast.decode(codes), whole, atol=1e-5, rtol=0)
    assert fast.packed == {fast.encoder, fast.decoder}
    alone = torch.cat([fast.decode(row) for row in codes.split(1)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    streamed = torch.cat(list(encode_stream(fast, sound[:1].split(700, -1))), -1)
    assert torch.equal(streamed, codes[:1])
    live = torch.cat(list(decode_live(fast, codes.split(1, -1))), -1)
    torch.testing.assert_close(live, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*SHAPES, "spectral"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    codec = make(SPECTRAL if name == "spectral" else CONFIG, SHAPES.get(name))
    codec.freeze(torch.float32)
    before = torch.get_num_threads()
    made = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            generator = torch.Generator().manual_seed(1)
            lengths = (10, 20, 40, 100)
            codes = [torch.randint(0, 16, (1, 3, length), generator=generator) for length in lengths]
            made.append(torch.cat([codec.decode(each) for each in codes], -1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


@needs_bfloat16
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_is_near(name: str) -> None:
    plain = make(CONFIG, SHAPES[name])
    fast = frozen(plain, torch.bfloat16)
    sound = torch.randn(1, 1, 4000)
    codes = plain.encode(sound)
    assert (fast.encode(sound)[:, 0] == codes[:, 0]).float().mean() > 0.8
    whole, rounded = plain.decode(codes), fast.decode(codes)
    assert rounded.dtype == torch.float32
    error = (rounded - whole).square().mean() / whole.square().mean()
    assert 1e-8 < error < 3e-4  # it is bfloat16, and 35 dB down
    parts = list(decode_live(fast, codes.split(1, -1)))
    assert all(part.dtype == torch.float32 for part in parts)
    error = (torch.cat(parts, -1) - whole).square().mean() / whole.square().mean()
    assert error < 3e-4


@needs_bfloat16
def test_a_loaded_codec_is_fast_and_saves_what_was_loaded(tmp_path: Path) -> None:
    codec = make(CONFIG)
    save_codec(tmp_path / "codec", codec)
    loaded = load_codec(tmp_path / "codec", dtype=torch.bfloat16)
    loaded.decode(torch.zeros(1, 3, 4, dtype=torch.int64))
    assert isinstance(loaded, Codec) and loaded.dtype == torch.bfloat16
    save_codec(tmp_path / "again", loaded)
    again = load_codec(tmp_path / "again")
    assert isinstance(again, Codec) and again.dtype == torch.float32 and again.identity == loaded.identity
    torch.testing.assert_close(again.state_dict(), codec.state_dict(), atol=0, rtol=0)


@needs_bfloat16
def test_the_command_computes_in_bfloat16(tmp_path: Path) -> None:
    save_codec(tmp_path / "seanet", make(CONFIG))
    save_codec(tmp_path / "spectral", Codec(SPECTRAL))
    sound = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) / 4
    audio.save(tmp_path / "a.wav", sound, 8000)
    codec = f"--codec {tmp_path}/seanet"
    assert main(f"encode {tmp_path}/a.wav -o {tmp_path}/a.agtok {codec} --dtype bfloat16".split()) == 0
    for dtype in ("float32", "bfloat16"):
        assert (
            main(f"decode {tmp_path}/a.agtok -o {tmp_path}/{dtype}.wav {codec} --dtype {dtype}".split()) == 0
        )
    exact, rounded = (audio.load(tmp_path / f"{dtype}.wav")[0] for dtype in ("float32", "bfloat16"))
    assert 0 < (exact - rounded).abs().max() < 0.02
    with pytest.raises(InputError, match="codec spectral does not compute in bfloat16"):
        main(f"encode {tmp_path}/a.wav -o {tmp_path} --codec {tmp_path}/spectral --dtype bfloat16".split())
    with pytest.raises(InputError, match="codec spectral does not compute in bfloat16"):
        load_codec(tmp_path / "spectral").freeze(torch.bfloat16)


def test_training_goes_on_with_the_plain_weights() -> None:
    fast = frozen(make(CONFIG), torch.float32)
    sound = torch.randn(1, 1, 800)
    fast.encode(sound)
    fast.train()
    assert fast.dtype is None and not fast.packed
    assert all(getattr(layer, "packed", None) is None for layer in fast.encoder.modules())
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1.5)
    fast.eval()
    changed = Codec(fast.config)
    changed.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast.encoder(sound), changed.encoder(sound))


def test_a_codec_that_does_not_compute_in_bfloat16_says_so() -> None:
    group = Codec(replace(CONFIG, seanet=replace(CENTRED, norm="group")))
    for codec in (Codec(SPECTRAL), group):
        codec.freeze(torch.float32)
        assert codec.dtype == (None if codec is group else torch.float32)
        with pytest.raises(InputError, match="does not compute in bfloat16 on cpu: float32 is allowed"):
            codec.freeze(torch.bfloat16)
    with pytest.raises(InputError, match="does not compute in float16"):
        Codec(CONFIG).freeze(torch.float16)


# Where oneDNN computes noise with AMX; kernels of two strides are packed as matrices of hops, the others are not.
@needs_bfloat16
@pytest.mark.parametrize("num_frames", [64, 65, 100, 127])
@pytest.mark.parametrize(
    ("dim", "kernel_size", "stride"), [(8, 8, 4), (16, 4, 4), (24, 8, 4), (8, 16, 1), (12, 16, 8), (8, 16, 5)]
)
def test_convolutions_that_onednn_gets_wrong_in_bfloat16(
    dim: int, kernel_size: int, stride: int, num_frames: int
) -> None:
    torch.manual_seed(0)
    layer, x = PaddedConv1d(dim, 8, kernel_size, stride), torch.randn(1, dim, num_frames)
    pack(layer, None)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        trained = layer(x)
        pack(layer, torch.bfloat16)
        packed = layer(x)
    for found in (trained, packed):
        assert (found.float() - expected).norm() < 0.02 * expected.norm()


@needs_bfloat16
@pytest.mark.parametrize("stride", [4, 8])
def test_gradients_that_onednn_gets_wrong_in_bfloat16(stride: int) -> None:
    torch.manual_seed(0)
    layer, x = PaddedConvTranspose1d(16, 24, 2 * stride, stride), torch.randn(1, 16, 64, requires_grad=True)
    weights = torch.randn(1, 24, 64 * stride)
    (expected,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    assert (found - expected).norm() < 0.02 * expected.norm()
