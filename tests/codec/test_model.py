"""The codec as a whole: lengths, bandwidths, streaming, causality, parity with transformers' EnCodec."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.spectral import ConvNextBlock, SpectralConfig
from audiogen.codec.stream import decode_live, decode_stream, encode_stream
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec

SEANET = CodecConfig(
    sample_rate=8000,
    seanet=SeanetConfig(num_filters=4, ratios=(5, 4, 2), lstm=1, num_residual_layers=2),
    latent_dim=12,
    num_codebooks=3,
    codebook_size=16,
)
CAUSAL = replace(SEANET, seanet=replace(SEANET.seanet, causal=True, pad_mode="reflect"))
SPECTRAL = CodecConfig(
    sample_rate=8000,
    arch="spectral",
    spectral=SpectralConfig(160, 40, 16, 2, 1, kernel_size=5, phase_iterations=2),
    latent_dim=12,
    num_codebooks=3,
    codebook_size=16,
)
STEREO = replace(SPECTRAL, channels=2)
PAIRS = replace(  # two spectra a latent
    STEREO, spectral=SpectralConfig(80, 20, 16, 2, 1, kernel_size=5, phase_iterations=2, frames_per_latent=2)
)


def make(config: CodecConfig, seed: int = 0) -> Codec:
    """Random weights; the codebooks start on the latents of noise, so that many codes occur."""
    torch.manual_seed(seed)
    codec = Codec(config)
    with torch.no_grad():
        codec.train()(torch.randn(4, config.channels, 4000))
    return codec.eval()


@pytest.mark.parametrize(
    "config",
    [SEANET, CAUSAL, SPECTRAL, STEREO, PAIRS],
    ids=["seanet", "causal", "spectral", "stereo", "pairs"],
)
@pytest.mark.parametrize("length", [1, 39, 40, 41, 4001])
def test_lengths(config, length):
    codec = make(config)
    audio = torch.randn(2, config.channels, length)
    codes = codec.encode(audio)
    frames = -(-length // 40)
    assert codes.shape == (2, 3, frames) and codes.dtype == torch.int64
    assert codec.decode(codes).shape == (2, config.channels, frames * 40)
    assert codec(audio).audio.shape == audio.shape


@pytest.mark.parametrize("config", [SEANET, SPECTRAL], ids=["seanet", "spectral"])
def test_forward_is_encode_then_decode_at_every_bandwidth(config):
    codec = make(config)
    audio = torch.randn(2, 1, 400)
    for count in (1, 2, 3):
        codes = codec.encode(audio, count)
        assert torch.equal(codes, codec.encode(audio)[:, :count])
        torch.testing.assert_close(codec(audio, count).audio, codec.decode(codes))


@pytest.mark.parametrize("config", [SEANET, CAUSAL, SPECTRAL], ids=["seanet", "causal", "spectral"])
def test_a_batch_gives_what_single_clips_give(config):
    codec = make(config)
    audio = torch.randn(3, 1, 1000)
    together = codec.encode(audio)
    assert torch.equal(together, torch.cat([codec.encode(row) for row in audio.split(1)]))
    torch.testing.assert_close(
        codec.decode(together),
        torch.cat([codec.decode(row) for row in together.split(1)]),
        atol=1e-5,
        rtol=1e-4,
    )


def test_a_causal_codec_never_looks_ahead():
    codec = make(CAUSAL)
    audio = torch.randn(1, 1, 800, requires_grad=True)
    codec.encoder(audio)[..., 9].sum().backward()  # frame 9 = samples 360..399
    assert audio.grad[..., :400].abs().sum() > 0 and audio.grad[..., 400:].abs().sum() == 0
    latents = torch.randn(1, 12, 20, requires_grad=True)
    codec.decoder(latents)[..., 399].sum().backward()
    assert latents.grad[..., :10].abs().sum() > 0 and latents.grad[..., 10:].abs().sum() == 0


@pytest.mark.parametrize("config", [SPECTRAL, PAIRS], ids=["spectral", "pairs"])
def test_a_codec_of_windows_sees_context_frames_on_each_side_and_no_more(config):
    codec = make(config)
    context, middle = codec.context_frames, 60
    latents = torch.randn(1, 12, 121, requires_grad=True)
    codec.decoder(latents)[..., middle * 40 : (middle + 1) * 40].sum().backward()
    seen = latents.grad.abs().sum((0, 1)).nonzero().flatten()
    assert middle - context <= seen.min() < middle < seen.max() <= middle + context
    audio = torch.randn(1, config.channels, 121 * 40, requires_grad=True)
    codec.encoder(audio)[..., middle].sum().backward()
    seen = audio.grad.abs().sum((0, 1)).nonzero().flatten()
    assert (middle - context) * 40 <= seen.min() and seen.max() < (middle + context + 1) * 40


@pytest.mark.parametrize(
    "config", [CAUSAL, SPECTRAL, STEREO, PAIRS], ids=["causal", "spectral", "stereo", "pairs"]
)
def test_streaming_equals_offline(config, monkeypatch):
    monkeypatch.setattr("audiogen.codec.stream.BODY_S", 0.1)
    codec = make(config)
    audio = torch.randn(1, config.channels, 8321)
    codes = codec.encode(audio)
    streamed = list(encode_stream(codec, audio.split([1000, 37, 3003, 4281], -1)))
    assert len(streamed) > 5
    assert torch.equal(torch.cat(streamed, -1), codes)
    parts = list(decode_stream(codec, codes.split([3, 100, 106], -1)))
    assert len(parts) > 5
    torch.testing.assert_close(torch.cat(parts, -1), codec.decode(codes), atol=1e-4, rtol=1e-4)


def test_silence_and_full_scale_stay_finite():
    for config in (SEANET, SPECTRAL, PAIRS):
        codec = make(config)
        for audio in (torch.zeros(1, config.channels, 400), torch.ones(1, config.channels, 400)):
            assert torch.isfinite(codec.decode(codec.encode(audio))).all()


def test_bad_codes_and_audio_are_refused():
    codec = make(SPECTRAL)
    with pytest.raises(InputError, match="another codec"):
        codec.decode(torch.full((1, 3, 5), 16))
    with pytest.raises(InputError, match="1 to 3"):
        codec.encode(torch.randn(1, 1, 100), 4)
    with pytest.raises(InputError, match="shape"):
        codec.encode(torch.randn(1, 2, 100))


def test_a_saved_codec_loads_with_the_same_codes_and_weight_norm_folded(tmp_path):
    from audiogen.codec.conv import add_weight_norm

    codec = make(SEANET)
    audio = torch.randn(1, 1, 900)
    codes = codec.encode(audio)
    add_weight_norm(codec)
    save_codec(tmp_path / "codec", codec, {"steps": 3})
    loaded = load_codec(tmp_path / "codec")
    assert not any("parametrizations" in name for name in loaded.state_dict())
    assert torch.equal(loaded.encode(audio), codes)
    assert loaded.name == "codec" and len(loaded.identity) == 16


def test_a_codec_with_the_sums_of_its_codebooks_as_once_stored_still_opens(tmp_path):
    save_codec(tmp_path / "codec", codec := make(SPECTRAL))
    file = tmp_path / "codec" / "model.safetensors"
    stored = load_file(file)
    assert not any("sums" in name for name in stored)
    stored |= {f"quantizer.codebooks.{k}.sums": torch.zeros(16, 12) for k in range(3)}
    save_file(stored, file)
    again = load_codec(tmp_path / "codec").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in codec.state_dict().items())


def test_half_precision_keeps_codewords_as_bytes(tmp_path: Path) -> None:
    codec = make(SPECTRAL)
    small = codec.quantizer.books[-1].codewords
    small.mul_(
        0.01
    )  # as of late codebooks: float16 holds such a scale to half a percent, half a step at the largest
    small[0] = 0
    save_codec(tmp_path / "whole", codec)
    save_codec(tmp_path / "half", codec, dtype=torch.float16)
    stored = checkpoint.load_tensors(tmp_path / "half")
    assert {t.dtype for name, t in stored.items() if name.endswith(".codewords")} == {torch.int8}
    again = load_codec(tmp_path / "half")
    assert isinstance(again, Codec)
    for before, after in zip(codec.quantizer.books, again.quantizer.books, strict=True):
        step = before.codewords.abs().amax(1, keepdim=True) / 127
        assert ((after.codewords - before.codewords).abs() <= step).all()
    save_codec(tmp_path / "twice", again, dtype=torch.float16)
    assert load_codec(tmp_path / "twice").identity == again.identity  # nothing more is lost
    name = "quantizer.codebooks.0.codewords_scale"
    checkpoint.write_tensors(tmp_path / "half" / "model.safetensors", stored | {name: stored[name][:2]})
    with pytest.raises(InputError, match=rf"{name} is not a scale for each codeword"):
        load_codec(tmp_path / "half")


def test_identity_is_what_the_tokens_mean(tmp_path):
    codec = make(SPECTRAL)
    save_codec(tmp_path / "a", codec)
    with torch.no_grad():
        codec.decoder.stack.out.bias += 0.1
    save_codec(tmp_path / "decoder_tuned", codec)
    with torch.no_grad():
        codec.encoder.stack.out.bias += 0.1
    save_codec(tmp_path / "retrained", codec)
    a, tuned, other = (load_codec(tmp_path / n).identity for n in ("a", "decoder_tuned", "retrained"))
    assert a == tuned != other


# --- parity with an independent implementation, on shared random weights ---------------------------------------


def transformers_encodec(config: CodecConfig):
    encodec = pytest.importorskip("transformers.models.encodec")
    s = config.seanet
    hf = encodec.EncodecConfig(
        target_bandwidths=[config.sample_rate / config.hop_length * 4 * config.num_codebooks / 1000],
        sampling_rate=config.sample_rate,
        audio_channels=config.channels,
        normalize=False,
        hidden_size=config.latent_dim,
        num_filters=s.num_filters,
        num_residual_layers=s.num_residual_layers,
        upsampling_ratios=list(s.ratios),
        norm_type="weight_norm",
        kernel_size=s.kernel_size,
        last_kernel_size=s.last_kernel_size,
        residual_kernel_size=s.residual_kernel_size,
        dilation_growth_rate=s.dilation_base,
        use_causal_conv=s.causal,
        pad_mode=s.pad_mode,
        compress=s.compress,
        num_lstm_layers=s.lstm,
        trim_right_ratio=s.trim_right_ratio,
        codebook_size=config.codebook_size,
        codebook_dim=config.latent_dim,
        use_conv_shortcut=not s.true_skip,
    )
    torch.manual_seed(1)
    return encodec.EncodecModel(hf).eval()


def copy_into_ours(theirs, codec: Codec) -> None:
    """Both stacks hold the same layers in the same order, so weights pair off one to one."""

    def weights(stack: torch.nn.Module) -> list[torch.Tensor]:
        found = []
        for layer in stack.modules():
            if isinstance(layer, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                found += [layer.weight, layer.bias]
            elif isinstance(layer, torch.nn.LSTM):
                found += list(layer.parameters())
        return found

    with torch.no_grad():
        for ours, other in ((codec.encoder, theirs.encoder), (codec.decoder, theirs.decoder)):
            mine, source = weights(ours), weights(other)
            assert [w.shape for w in mine] == [w.shape for w in source]
            for w, value in zip(mine, source, strict=True):
                w.copy_(value)
        for k, book in enumerate(codec.quantizer.codebooks):
            generator = torch.Generator().manual_seed(k)
            values = 0.1 * torch.randn(book.codewords.shape, generator=generator)
            book.codewords.copy_(values)
            theirs.quantizer.layers[k].codebook.embed.copy_(values)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [4000, 3987])
@pytest.mark.parametrize("pad_mode,true_skip,lstm", [("reflect", False, 2), ("constant", True, 1)])
def test_parity_with_transformers_encodec(causal, length, pad_mode, true_skip, lstm):
    seanet = replace(SEANET.seanet, causal=causal, pad_mode=pad_mode, true_skip=true_skip, lstm=lstm)
    config = replace(SEANET, seanet=seanet)
    theirs, codec = transformers_encodec(config), Codec(config).eval()
    copy_into_ours(theirs, codec)
    torch.manual_seed(2)
    audio = torch.randn(2, 1, length)
    with torch.no_grad():
        torch.testing.assert_close(codec.encoder(audio), theirs.encoder(audio), atol=1e-4, rtol=1e-4)
        theirs_codes = theirs.encode(audio, return_dict=True).audio_codes[0]
        codes = codec.encode(audio)
        assert torch.equal(codes, theirs_codes)
        want = theirs.decode(theirs_codes[None], [None], return_dict=True).audio_values
        torch.testing.assert_close(codec.decode(codes), want, atol=1e-4, rtol=1e-4)
        live = torch.cat(list(decode_live(codec, codes.split(3, -1))), -1)
        torch.testing.assert_close(live, want, atol=1e-4, rtol=1e-4)


# --- the spectral decoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "message"),
    [(0, "frames_per_latent is 0"), (5, "latent_dim is 12; it must be a multiple of .*=5")],
)
def test_latents_divide_among_their_spectra(frames, message):
    with pytest.raises(InputError, match=message):
        replace(SPECTRAL, spectral=replace(SPECTRAL.spectral, frames_per_latent=frames))


def test_griffin_lim_finds_a_phase_for_the_magnitudes_of_a_real_signal():
    codec = Codec(replace(SPECTRAL, spectral=SpectralConfig(160, 40, 16, 1, 1, phase_iterations=60)))
    time = torch.arange(4000) / 8000
    audio = (0.5 * torch.sin(2 * torch.pi * 440 * time) * torch.exp(-3 * time))[None, None]
    want = codec.encoder.log_magnitude(audio)
    errors = {}
    for iterations in (0, 60):
        codec.decoder.config = replace(codec.config.spectral, phase_iterations=iterations)
        errors[iterations] = (codec.encoder.log_magnitude(codec.decoder.synthesise(want)) - want).abs().mean()
    assert errors[60] < 0.5 * errors[0] and errors[60] < 0.4


def test_griffin_lim_is_that_of_the_paper_step_by_step():
    """Perraudin et al. 2013, in complex numbers and with every frame added at its place."""
    codec = make(PAIRS)
    config, window = codec.config.spectral, codec.encoder.window
    log_magnitude = torch.randn(2, 2, 12, config.num_bins)
    first, num_frames = 1020, 12  # the table of phases ends in between

    def inverse(spectrum):
        sound = torch.zeros(2, 2, (num_frames - 1) * config.hop_length + config.n_fft)
        envelope = torch.zeros_like(sound)
        for t, frame in enumerate((torch.fft.irfft(spectrum, config.n_fft) * window).unbind(2)):
            at = slice(t * config.hop_length, t * config.hop_length + config.n_fft)
            sound[..., at] += frame
            envelope[..., at] += window**2
        return sound / envelope.clamp(min=1e-3)

    magnitude = (log_magnitude.clamp(max=3).exp() - 1e-4).clamp(min=0) * (config.n_fft / 4)
    rows = [(first + t) % 1024 for t in range(num_frames)]
    spectrum = magnitude * codec.decoder.first_rotation[rows]
    previous = torch.zeros_like(spectrum)
    for _ in range(config.phase_iterations):
        frames = inverse(spectrum).unfold(-1, config.n_fft, config.hop_length)
        projected = torch.fft.rfft(frames * window)
        ahead = projected + 0.5 * (projected - previous)
        spectrum, previous = torch.polar(magnitude, ahead.angle()), projected
    expected = inverse(spectrum)[..., config.side : -config.side]
    torch.testing.assert_close(codec.decoder.synthesise(log_magnitude, first), expected, atol=1e-4, rtol=1e-4)


def test_magnitudes_get_a_gradient_through_the_reconstructed_phase():
    codec = make(SPECTRAL)
    spectra = torch.full((1, 1, 9, 81), -3.0, requires_grad=True)
    codec.decoder.synthesise(spectra).square().sum().backward()
    assert (spectra.grad.abs().sum((0, 1, 3)) > 0).all()


def test_the_spectral_loss_is_there_without_synthesis():
    codec = make(SPECTRAL)
    audio = torch.randn(2, 1, 400)
    spared, whole = codec(audio, reconstruct=False), codec(audio)
    assert spared.audio is None and whole.audio is not None
    assert spared.spectral_loss == whole.spectral_loss > 0
    assert make(SEANET)(audio).spectral_loss == 0


def test_a_spectral_block_in_training_has_the_outputs_and_gradients_of_inference() -> None:
    """It computes the depthwise convolution in another layout."""
    torch.manual_seed(0)
    block = ConvNextBlock(SpectralConfig(width=24, kernel_size=5), 3)
    x, up = torch.randn(2, 11, 24, requires_grad=True), torch.randn(2, 11, 24)
    found = []
    for mode in (True, False):
        y = block.train(mode)(x)
        gradients = torch.autograd.grad((y * up).sum(), [x, *block.parameters()])
        found.append([y, *gradients])
    for trained, inferred in zip(*found, strict=True):
        assert torch.allclose(trained, inferred, rtol=1e-4, atol=1e-5)
