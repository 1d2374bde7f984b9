"""Codecs of audiocraft, encodec and transformers: golden files, parity both ways, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.segmented import SegmentedCodec, as_configured, in_segments
from audiogen.errors import InputError
from audiogen.models import audiocraft, transformers
from audiogen.models.audiocraft import Release, package_config
from audiogen.models.build import load_codec
from audiogen.models.export import bandwidths, encodec_parts
from audiogen.models.export import save_codec_transformers as save_transformers
from audiogen.models.own import save_codec
from audiogen.models.parts import their_name
from audiogen.models.settings import Settings, parse_yaml


def audiocraft_config(text: str, where: str) -> CodecConfig:
    found = Release({}, parse_yaml(text, where), where)
    return audiocraft.codec_config(found.settings("compression_model", "encodec", "seanet", "rvq"))


def transformers_config(contents: dict[str, Any], where: str) -> CodecConfig:
    return transformers.codec_config(Settings(contents, where))


def inner(codec: Any) -> Codec:
    """A codec, or the one that a codec of segments wraps."""
    return getattr(codec, "codec", codec)


# Small, and no two sizes alike. In the words of transformers' EncodecConfig.
CAUSAL = {  # as at 24 kHz
    "target_bandwidths": [1.2],
    "sampling_rate": 2400,
    "hidden_size": 10,
    "num_filters": 4,
    "upsampling_ratios": [5, 4, 2],
    "codebook_size": 16,
    "num_lstm_layers": 1,
}
CENTRED = CAUSAL | {  # as at 32 kHz
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "num_residual_layers": 2,
    "dilation_growth_rate": 3,
    "num_lstm_layers": 2,
    "kernel_size": 5,
    "last_kernel_size": 3,
    "residual_kernel_size": 5,
    "upsampling_ratios": [5, 3],
    "target_bandwidths": [1.28],  # 160 frames a second, 4 bits, 2 codebooks
}
STEREO = CAUSAL | {  # as at 48 kHz
    "audio_channels": 2,
    "use_causal_conv": False,
    "norm_type": "time_group_norm",
    "normalize": True,
    "chunk_length_s": 0.2,
    "overlap": 0.05,
}
KINDS = {
    "causal": CAUSAL,
    "causal, look-ahead": CAUSAL | {"trim_right_ratio": 0.5, "pad_mode": "constant"},
    "centred": CENTRED,
    "centred, replicated": CENTRED | {"pad_mode": "replicate", "use_conv_shortcut": True, "compress": 4},
    "stereo": STEREO,
    "stereo, chunks alone": STEREO | {"normalize": False, "norm_type": "weight_norm"},
    "group norm of the whole": STEREO | {"normalize": False, "chunk_length_s": None, "overlap": None},
}


def theirs_of(settings: dict):
    """A transformers EncodecModel with random weights, also where it starts with zeros and ones."""
    encodec = pytest.importorskip("transformers.models.encodec")
    torch.manual_seed(3)
    model = encodec.EncodecModel(encodec.EncodecConfig(**settings)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith((".embed", ".embed_avg", ".cluster_size")):
                tensor.copy_(0.3 * torch.randn(tensor.shape).abs())
            elif name.endswith((".original0", "norm.weight")):
                tensor.mul_(torch.rand(tensor.shape) + 0.5)
            elif name.endswith(".bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape))
        latents = model.encoder(torch.randn(1, model.config.audio_channels, 2000))[0].T  # [T, D]
        for k, layer in enumerate(model.quantizer.layers):  # so that many codes occur
            embed = layer.codebook.embed
            spread = (latents - (latents.mean(0) if k else 0)) * 0.5**k
            embed.copy_(spread[torch.randperm(len(latents))[: len(embed)]])
    return model


def assert_same_results(ours, theirs, num_samples: int = 1403) -> None:
    torch.manual_seed(4)
    audio = 0.3 * torch.randn(2, ours.channels, num_samples)
    with torch.no_grad():
        coded = theirs.encode(audio, bandwidth=theirs.config.target_bandwidths[-1], return_dict=True)
        decoded = theirs.decode(
            coded.audio_codes, coded.audio_scales, last_frame_pad_length=coded.last_frame_pad_length
        ).audio_values
    ours = in_segments(ours)
    segments = ours.encode(audio)
    assert len(segments) == len(coded.audio_codes)
    for index, (codes, scale) in enumerate(segments):
        assert torch.equal(codes, coded.audio_codes[index][..., : codes.shape[-1]])
        if scale is not None:
            torch.testing.assert_close(scale[:, None], coded.audio_scales[index])
    assert codes.unique().numel() > 4  # they say something
    mine = ours.decode(segments, num_samples)
    torch.testing.assert_close(mine, decoded[..., :num_samples], atol=1e-5, rtol=1e-4)


# --- audiocraft's compression file -----------------------------------------------------------------------------


@pytest.fixture
def release(shared: Path, tmp_path: Path) -> Path:
    """A copy of the golden release's codec, to be damaged."""
    source = shared / "fixtures/audiogen_tiny/compression_state_dict.bin"
    return Path(shutil.copy(source, tmp_path / "compression_state_dict.bin"))


def test_the_golden_compression_file_gives_the_golden_codes_and_audio(shared):
    expected = load_file(shared / "fixtures/audiogen_tiny/expected.safetensors")
    codec = load_codec(shared / "fixtures/audiogen_tiny")
    assert codec.name == "audiogen_tiny" and (codec.sample_rate, codec.hop_length) == (16000, 320)
    assert torch.equal(codec.encode(expected["audio"]), expected["codes"])
    torch.testing.assert_close(codec.decode(expected["codes"]), expected["decoded"], atol=1e-4, rtol=0)
    file = load_codec(shared / "fixtures/audiogen_tiny/compression_state_dict.bin")
    assert (file.name, file.identity) == (codec.name, codec.identity)


def audiocraft_settings(config: CodecConfig) -> dict:
    """`xp.cfg` of a codec, with the interpolations of the real ones."""
    s = config.seanet
    return {
        "solver": "compression",
        "device": "${nowhere}",  # what is not read need not resolve
        "compression_model": "encodec",
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": s.causal,
            "renormalize": False,
        },
        "seanet": {
            "dimension": config.latent_dim,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": s.num_filters,
            "n_residual_layers": s.num_residual_layers,
            "ratios": list(s.ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": s.kernel_size,
            "residual_kernel_size": s.residual_kernel_size,
            "last_kernel_size": s.last_kernel_size,
            "dilation_base": s.dilation_base,
            "pad_mode": s.pad_mode,
            "true_skip": s.true_skip,
            "compress": s.compress,
            "lstm": s.lstm,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": s.trim_right_ratio, "final_activation": None},
            "encoder": {},
        },
        "rvq": {"n_q": config.num_codebooks, "bins": config.codebook_size, "q_dropout": False},
    }


def random_codec(config: CodecConfig) -> Codec:
    """In evaluation mode; its codebooks start on the latents of noise."""
    torch.manual_seed(5)
    codec = Codec(config)
    with torch.no_grad():
        codec.train()(torch.randn(4, config.channels, 4000))
    return codec.eval()


def write_compression_file(path: Path, codec: Codec, settings: dict) -> None:
    """Weights as audiocraft stores them: weight norm under the old names, flags as vectors of one."""
    own, state = codec.state_dict(), {}
    for name, tensor in own.items():
        public = their_name(name, "audiocraft", own)
        if name.endswith(("conv.weight", "convtr.weight")):
            state[f"{public}_g"] = 2 * torch.norm_except_dim(tensor, 2, 0) / 2
            state[f"{public}_v"] = 3.0 * tensor  # its length does not count
        else:
            state[public] = tensor.reshape(1).float() if tensor.dtype is torch.bool else tensor
    torch.save({"best_state": state, "xp.cfg": OmegaConf.to_yaml(OmegaConf.create(settings))}, path)


TINY = CodecConfig(
    sample_rate=2400,
    seanet=SeanetConfig(num_filters=4, ratios=(5, 4), lstm=1, causal=True, pad_mode="reflect"),
    latent_dim=6,
    num_codebooks=3,
    codebook_size=11,
)
SEANETS = {
    "no LSTM": SeanetConfig(num_filters=6, ratios=(3, 2, 2), lstm=0, num_residual_layers=3, compress=3),
    "shortcut": SeanetConfig(
        num_filters=4, ratios=(5, 2), true_skip=False, lstm=3, kernel_size=9, pad_mode="replicate"
    ),
    "causal": SeanetConfig(
        num_filters=4, ratios=(2, 7), lstm=1, causal=True, pad_mode="reflect", trim_right_ratio=0.5
    ),
    "no residual layers": SeanetConfig(num_filters=4, ratios=(4,), num_residual_layers=0, last_kernel_size=3),
}


@pytest.mark.parametrize("seanet", SEANETS.values(), ids=SEANETS)
def test_every_size_is_read_from_the_files_own_config(tmp_path, seanet):
    codec = random_codec(CodecConfig(2400, 1, seanet=seanet, latent_dim=6, num_codebooks=3, codebook_size=11))
    write_compression_file(tmp_path / "compression_state_dict.bin", codec, audiocraft_settings(codec.config))
    loaded = load_codec(tmp_path)
    assert loaded.config == codec.config
    audio = torch.randn(2, 1, 501)
    codes = codec.encode(audio)
    assert torch.equal(loaded.encode(audio), codes)
    torch.testing.assert_close(loaded.decode(codes), codec.decode(codes), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("renormalize", [{"renormalize": None, "renorm": None}, {"renorm": None}, {}])
def test_the_first_releases_say_otherwise_that_nothing_is_renormalised(renormalize):
    settings = audiocraft_settings(TINY)
    del settings["encodec"]["renormalize"]
    settings["encodec"] |= renormalize
    assert audiocraft_config(OmegaConf.to_yaml(settings), "file") == TINY


def test_group_norm_of_an_audiocraft_codec_is_read():
    settings = audiocraft_settings(TINY)
    settings["seanet"]["norm"] = "time_group_norm"
    assert audiocraft_config(OmegaConf.to_yaml(settings), "file").seanet.norm == "group"
    settings["seanet"]["disable_norm_outer_blocks"] = 1
    with pytest.raises(InputError, match="seanet.disable_norm_outer_blocks is 1"):
        audiocraft_config(OmegaConf.to_yaml(settings), "file")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seanet.pad_mode", "circular", "seanet.pad_mode is 'circular'; only 'constant' or 'reflect'"),
        ("seanet.norm", "layer_norm", "seanet.norm is 'layer_norm'"),
        ("seanet.norm_params", {"eps": 0.1}, "seanet.norm_params is {'eps': 0.1}"),
        ("seanet.activation", "SiLU", "seanet.activation is 'SiLU'; only 'ELU'"),
        ("seanet.activation_params", {"alpha": 0.5}, "seanet.activation_params"),
        ("seanet.decoder.final_activation", "Tanh", "seanet.decoder.final_activation is 'Tanh'; only None"),
        ("seanet.encoder.n_filters", 7, "seanet.encoder.n_filters is 7; only 4"),
        ("seanet.encoder.bottleneck", 7, "seanet.encoder.bottleneck is 7, which is not implemented"),
        ("seanet.causal", False, "seanet.causal is False; only True"),
        ("seanet.snake", True, "seanet.snake is True, which is not implemented"),
        ("seanet.ratios", [5, "x"], "seanet.ratios.1 is 'x'"),
        ("seanet.n_filters", 4.5, "seanet.n_filters is 4.5; it must be a whole number"),
        ("seanet.compress", 3, "compress=3"),
        ("seanet.lstm", -1, "lstm is -1"),
        ("encodec.renormalize", True, "encodec.renormalize is True; only False"),
        ("encodec.quantizer", "no_quant", "encodec.quantizer is 'no_quant'; only 'rvq'"),
        ("encodec.autoencoder", "dac", "encodec.autoencoder is 'dac'"),
        ("compression_model", "dac", "compression_model is 'dac'"),
        ("rvq.bins", 0, "rvq.bins is 0"),
        ("rvq.n_q", -3, "rvq.n_q is -3; it must be"),
        ("seanet.kernel_size", 2**70, "seanet.kernel_size is 11805"),
        ("rvq.codebook_dim", 8, "rvq.codebook_dim is 8, which is not implemented"),
        ("seanet.dimension", "${nowhere}", "xp.cfg: seanet cannot be resolved"),
        ("rvq.n_q", 10**9, "rvq.n_q is 1000000000; it must"),
        ("seanet.n_filters", 10**9, "seanet.n_filters is 1000000000; it must"),
        ("rvq.n_q", 10**5, "tensors that there are cannot fill its layers"),
        ("rvq.n_q", 4, "missing quantizer.vq.layers.3._codebook.embed"),
        ("seanet.dimension", 7, r"weight_g is \[6, 1, 1\] and \[6, 16, 7\], should make \[7, 16, 7\]"),
        ("rvq.bins", 12, r"_codebook.embed is \[11, 6\], should make \[12, 6\]"),
        ("seanet.true_skip", False, "missing encoder.model.1.shortcut.conv.conv.weight"),
        ("seanet.lstm", 0, "missing|unexpected"),
    ],
)
def test_a_value_that_is_not_implemented_or_does_not_fit_is_named(tmp_path, key, value, message):
    codec, path = random_codec(TINY), tmp_path / "compression_state_dict.bin"
    settings = OmegaConf.create(audiocraft_settings(TINY))
    OmegaConf.update(settings, key, value, merge=False, force_add=True)
    write_compression_file(path, codec, settings)
    with pytest.raises(InputError, match=message) as caught:
        load_codec(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    "section,key", [("seanet", "pad_mode"), ("seanet", "true_skip"), ("encodec", "causal"), ("rvq", "n_q")]
)
def test_a_missing_key_is_named(section, key):
    settings = audiocraft_settings(TINY)
    del settings[section][key]
    if key == "causal":
        settings["seanet"]["causal"] = True
    with pytest.raises(InputError, match=rf"lacks {section}\.{key}"):
        audiocraft_config(OmegaConf.to_yaml(settings), "file")


def damage(path: Path, change) -> None:
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)


CONV = "encoder.model.0.conv.conv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("xp.cfg"), "xp.cfg is missing"),
        (lambda c: c.update({"xp.cfg": {"seanet": 1}}), "a text in YAML is needed"),
        (lambda c: c.update({"xp.cfg": "a: [1"}), "xp.cfg cannot be read as YAML"),
        (lambda c: c.update({"xp.cfg": "transformer_lm: {dim: 4}"}), "xp.cfg lacks encodec"),
        (lambda c: c.pop("best_state"), "best_state is missing"),
        (
            lambda c: c.update(best_state={"model": c["best_state"]}),
            "'model' is a dict; names with tensors are needed",
        ),
        (lambda c: c["best_state"].pop(f"{CONV}.bias"), f"missing {CONV}.bias"),
        (
            lambda c: c["best_state"].pop(f"{CONV}.weight_g"),
            f"missing {CONV}.weight_g",
        ),
        (lambda c: c["best_state"].update(more=torch.zeros(2)), "unexpected more"),
        (
            lambda c: c["best_state"].update({7: torch.zeros(2)}),
            "7 is a Tensor; names with tensors are needed",
        ),
        (
            lambda c: c["best_state"].update({f"{CONV}.weight_g": torch.ones(())}),
            rf"{CONV}.weight_g is \[\] and .*, should make",
        ),
        (lambda c: c["best_state"][f"{CONV}.bias"].fill_(torch.nan), f"damaged: {CONV}.bias holds"),
        (lambda c: c["best_state"][f"{CONV}.weight_v"].zero_(), f"damaged: {CONV}.weight_v holds"),
        (
            lambda c: c["best_state"].update({f"{CONV}.bias": torch.zeros(1).expand(4)}),
            "without as many values",
        ),
        (
            lambda c: c["best_state"].update({f"{CONV}.bias": torch.zeros(4, device="meta")}),
            "conv.bias is no plain tensor",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(release, change, message):
    damage(release, change)
    with pytest.raises(InputError, match=message) as caught:
        load_codec(release.parent)
    assert str(release) in str(caught.value) and "\n" not in str(caught.value).strip()


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_truncated_file_is_named(release, size):
    release.write_bytes(release.read_bytes()[:size])
    with pytest.raises(InputError, match="compression_state_dict.bin") as caught:
        load_codec(release)
    assert "\n" not in str(caught.value).strip()


def test_a_flipped_bit_in_a_weight_is_refused_with_its_name(release):
    weights = torch.load(release, weights_only=True)["best_state"][f"{CONV}.bias"]
    data = release.read_bytes()
    position = data.index(weights.numpy().tobytes())
    release.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(InputError, match=f"{CONV}.bias") as caught:
        load_codec(release)
    assert str(release) in str(caught.value)


def test_a_flipped_bit_anywhere_is_one_line_or_does_no_harm(release):
    data = release.read_bytes()
    for position in range(11, len(data), len(data) // 40):
        release.write_bytes(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        try:
            load_codec(release)
        except InputError as error:
            assert "compression_state_dict.bin" in str(error) and "\n" not in str(error).strip()


# --- pointers ---------------------------------------------------------------------------------------------------


def test_a_pointer_leads_to_a_file_or_directory_beside_it(tmp_path):
    codec = random_codec(TINY)
    (tmp_path / "codecs/tiny").mkdir(parents=True)
    write_compression_file(
        tmp_path / "codecs/tiny/compression_state_dict.bin", codec, audiocraft_settings(TINY)
    )
    shutil.copy(tmp_path / "codecs/tiny/compression_state_dict.bin", tmp_path / "tiny.bin")
    audio = torch.randn(1, 1, 300)
    for name in ("codecs/tiny", "tiny.bin"):
        torch.save({"pretrained": name}, tmp_path / "compression_state_dict.bin")
        assert torch.equal(load_codec(tmp_path).encode(audio), codec.encode(audio))


@pytest.mark.parametrize(
    "name", ["nobody/knows_this", "dac_44khz", "compression_state_dict.bin", "../x", "/etc", "", 3, ["a"]]
)
def test_a_pointer_to_nowhere_or_in_a_circle_is_named(tmp_path, name):
    torch.save({"pretrained": name}, tmp_path / "compression_state_dict.bin")
    with pytest.raises(InputError) as caught:
        load_codec(tmp_path)
    assert "\n" not in str(caught.value).strip()


def test_a_pointer_to_a_pointer_is_refused(tmp_path):
    torch.save({"pretrained": "b.bin"}, tmp_path / "compression_state_dict.bin")
    torch.save({"pretrained": "compression_state_dict.bin"}, tmp_path / "b.bin")
    with pytest.raises(InputError, match="another one led to"):
        load_codec(tmp_path)


def test_a_pointer_beside_the_other_layout_is_not_followed(tmp_path):
    theirs_of(CAUSAL).save_pretrained(tmp_path)
    torch.save({"pretrained": "nobody/knows_this"}, tmp_path / "compression_state_dict.bin")
    assert load_codec(tmp_path).sample_rate == 2400


# --- transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_model_of_transformers_gives_the_same_codes_and_audio_here(tmp_path, settings):
    theirs = theirs_of(settings)
    theirs.save_pretrained(tmp_path)
    assert_same_results(load_codec(tmp_path), theirs)


@pytest.mark.parametrize("num_samples", [1, 40, 479, 480, 481, 456, 457, 913])
def test_any_length_gives_what_transformers_gives(tmp_path, num_samples):
    theirs = theirs_of(STEREO)  # segments of 480 samples, one every 456
    theirs.save_pretrained(tmp_path)
    ours = load_codec(tmp_path)
    torch.manual_seed(6)
    audio = 0.3 * torch.randn(1, 2, num_samples)
    segments = ours.encode(audio)
    with torch.no_grad():
        coded = theirs.encode(audio, bandwidth=1.2, return_dict=True)
    for codes, want in zip([s.codes for s in segments], coded.audio_codes, strict=True):
        assert torch.equal(codes, want[..., : codes.shape[-1]])


def test_a_short_last_segment_is_decoded_as_transformers_does_when_it_is_said_how_short(tmp_path):
    """Its decoder takes the padding of the last segment's codes for sound unless it is given; docs/codec.md says so."""
    theirs = theirs_of(STEREO)
    theirs.save_pretrained(tmp_path)
    ours = load_codec(tmp_path)
    torch.manual_seed(6)
    audio, last = 0.3 * torch.randn(1, 2, 600), 456  # where the second segment of 480 samples begins
    decoded = ours.decode(ours.encode(audio), 600)
    with torch.no_grad():
        coded = theirs.encode(audio, bandwidth=1.2, return_dict=True)
        given = (coded.audio_codes, coded.audio_scales)
        short = theirs.decode(*given, last_frame_pad_length=coded.last_frame_pad_length).audio_values[
            ..., :600
        ]
        padded = theirs.decode(*given).audio_values[..., :600]
    torch.testing.assert_close(decoded, short, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoded[..., :last], padded[..., :last], atol=1e-5, rtol=1e-4)
    assert (decoded - padded)[..., last:].abs().max() > 0.1


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_what_is_saved_for_transformers_opens_there_and_says_the_same(tmp_path, settings):
    encodec = pytest.importorskip("transformers.models.encodec")
    theirs_of(settings).save_pretrained(tmp_path / "a")
    ours = load_codec(tmp_path / "a")
    save_transformers(tmp_path / "b", ours)
    opened, report = encodec.EncodecModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()), report
    for layer in opened.quantizer.layers:  # ours stores two of the three
        book = layer.codebook
        torch.testing.assert_close(book.embed_avg, book.embed * book.cluster_size[:, None])
    assert_same_results(ours, opened.eval())
    again = load_codec(tmp_path / "b")
    assert inner(again).config == inner(ours).config
    torch.testing.assert_close(inner(again).state_dict(), inner(ours).state_dict())
    encodec.EncodecFeatureExtractor.from_pretrained(tmp_path / "b")


def test_a_trained_codec_opens_in_transformers(tmp_path):
    encodec = pytest.importorskip("transformers.models.encodec")
    codec = random_codec(
        CodecConfig(2400, 1, seanet=TINY.seanet, latent_dim=6, num_codebooks=5, codebook_size=16)
    )
    save_transformers(tmp_path, codec)
    opened = encodec.EncodecModel.from_pretrained(tmp_path).eval()
    assert_same_results(codec, opened)
    assert opened.config.target_bandwidths == bandwidths(codec.config, (2, 4, 5))
    audio = torch.randn(1, 1, 600)
    with torch.no_grad():
        two = opened.encode(audio).audio_codes[0]  # the smallest bandwidth
    assert torch.equal(two, codec.encode(audio, 2))
    config, _ = encodec_parts(codec)
    assert len(config["target_bandwidths"]) == 1 and transformers_config(config, "").num_codebooks == 5


@pytest.mark.parametrize("num_codebooks", [1, 3, 7, 9, 32])
@pytest.mark.parametrize("sample_rate,codebook_size", [(16000, 2048), (44100, 512), (22050, 1024), (8000, 4)])
def test_bandwidths_bring_back_the_number_of_codebooks(num_codebooks, sample_rate, codebook_size):
    config = CodecConfig(sample_rate, num_codebooks=num_codebooks, codebook_size=codebook_size)
    values = bandwidths(config, (num_codebooks,))
    written = {"target_bandwidths": values, "sampling_rate": sample_rate, "codebook_size": codebook_size}
    assert transformers_config(written, "").num_codebooks == num_codebooks


def test_weights_under_their_old_names_and_pickled_ones_load_alike(tmp_path):
    theirs = theirs_of(CENTRED)
    theirs.save_pretrained(tmp_path / "new")
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor.contiguous()
        for name, tensor in theirs.state_dict().items()
    }
    for folder in ("old", "pickled"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "new/config.json", tmp_path / folder)
    save_file(state, tmp_path / "old/model.safetensors")
    torch.save(state, tmp_path / "pickled/pytorch_model.bin")
    identities = {load_codec(tmp_path / folder).identity for folder in ("new", "old", "pickled")}
    assert len(identities) == 1


def test_the_codec_within_a_musicgen_loads_alone(tmp_path):
    theirs = theirs_of(CENTRED)
    theirs.save_pretrained(tmp_path / "codec")
    inner = json.loads((tmp_path / "codec/config.json").read_text())
    (tmp_path / "musicgen").mkdir()
    contents = {"model_type": "musicgen", "audio_encoder": inner, "decoder": {}, "text_encoder": {}}
    (tmp_path / "musicgen/config.json").write_text(json.dumps(contents))
    tensors = {f"audio_encoder.{name}": tensor.clone() for name, tensor in theirs.state_dict().items()}
    save_file(
        tensors | {"decoder.lm_heads.0.weight": torch.zeros(3)}, tmp_path / "musicgen/model.safetensors"
    )
    codec = load_codec(tmp_path / "musicgen")
    assert codec.identity == load_codec(tmp_path / "codec").identity and codec.name == "musicgen"
    assert_same_results(codec, theirs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm_type", "layer_norm", "norm_type is 'layer_norm'"),
        ("pad_mode", "circular", "pad_mode is 'circular'"),
        ("codebook_dim", 5, "codebook_dim is 5; only 10"),
        ("upsampling_ratios", [], r"upsampling_ratios is \[\]"),
        ("target_bandwidths", [], r"target_bandwidths is \[\]"),
        ("target_bandwidths", [0.01], "too little for one codebook"),
        ("num_residual_layers", 10**30, "num_residual_layers is 10+; it must be"),  # at once
        ("hidden_size", 11, "codebook_dim is 10; only 11"),
        ("num_filters", 5, "compress=2"),
        ("num_filters", 6, r"should make \[6, 1, 7\]"),
        ("normalize", True, "segment_s"),
        ("chunk_length_s", 1.0, "overlap is"),
        ("trim_right_ratio", 2.0, "trim_right_ratio is 2"),
        ("model_type", "mimi", "model_type is 'mimi'"),
        ("num_filters", True, "num_filters is True"),
    ],
)
def test_a_value_of_transformers_that_is_not_implemented_is_named(tmp_path, key, value, message):
    theirs_of(CAUSAL).save_pretrained(tmp_path)
    contents = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(contents | {key: value}))
    with pytest.raises(InputError, match=message) as caught:
        load_codec(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_keys_that_transformers_leaves_out_have_its_defaults():
    encodec = pytest.importorskip("transformers.models.encodec")
    config = transformers_config({}, "config.json")
    assert config == transformers_config(encodec.EncodecConfig().to_dict(), "config.json")
    assert (config.num_codebooks, config.seanet.causal, config.seanet.true_skip) == (32, True, False)


def test_what_transformers_has_nothing_for_is_not_written(tmp_path):
    for config, message in (
        (CodecConfig(arch="spectral"), "arch 'spectral'"),
        (TINY, "codebook_size 11"),
        (CodecConfig(seanet=SeanetConfig(lstm=0)), "lstm 0"),
    ):
        with torch.device("meta"):
            codec = Codec(config)
        with pytest.raises(InputError, match=message):
            save_transformers(tmp_path, codec)


# --- encodec's own files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stereo", [False, True], ids=["24 kHz", "48 kHz"])
def test_the_files_of_encodec_load_by_their_tensors(tmp_path, stereo):
    config = package_config({"encoder.model.0.conv.norm.weight": None} if stereo else {})
    torch.manual_seed(7)
    codec = Codec(config).eval()
    own, state = codec.state_dict(), {}
    for name, tensor in own.items():
        public = their_name(name, "audiocraft", own)
        if not stereo and name.endswith(("conv.weight", "convtr.weight")):
            state |= {f"{public}_g": torch.norm_except_dim(tensor, 2, 0), f"{public}_v": tensor}
        else:
            state[public] = tensor.reshape(1).float() if tensor.dtype is torch.bool else tensor
    path = tmp_path / ("encodec_48khz-7e698e3e.th" if stereo else "encodec_24khz-d7cc33bc.th")
    torch.save(state, path)
    loaded = load_codec(path)
    assert load_codec(tmp_path).identity == loaded.identity
    header = in_segments(loaded).header
    rates = (
        header.sample_rate,
        header.channels,
        header.frame_rate,
        header.num_codebooks,
        header.codebook_size,
    )
    assert rates == ((48000, 2, 150, 16, 1024) if stereo else (24000, 1, 75, 32, 1024))
    assert isinstance(loaded, SegmentedCodec) is stereo and (stereo or loaded.lookahead_frames == 0)
    assert in_segments(loaded).bandwidths_kbps[-1] == 24
    audio = 0.1 * torch.randn(1, header.channels, 2500)
    found, expected = (in_segments(which).encode(audio, 4) for which in (loaded, as_configured(codec)))
    for ours, want in zip(found, expected, strict=True):
        assert (ours.codes == want.codes).float().mean() > 0.99
    state.pop("quantizer.vq.layers.3._codebook.embed")
    torch.save(state, path)
    with pytest.raises(InputError, match="missing quantizer.vq.layers.3._codebook.embed"):
        load_codec(path)
    shutil.copy(path, tmp_path / "encodec_16khz.th")
    with pytest.raises(InputError, match="encodec_16khz.th and .*; give one of them"):
        load_codec(tmp_path)


# --- Descript's DAC ---------------------------------------------------------------------------------------------


def test_a_dac_opens_in_transformers_again(tmp_path):
    dac = pytest.importorskip("transformers.models.dac")
    config = dac.DacConfig(
        encoder_hidden_size=2,
        downsampling_ratios=[2, 3, 4],
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=5,
        sampling_rate=2400,
    )
    torch.manual_seed(8)
    dac.DacModel(config).save_pretrained(tmp_path / "a")
    codec = load_codec(tmp_path / "a")
    save_transformers(tmp_path / "b", codec)
    opened, report = dac.DacModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()), report
    audio = torch.randn(1, 1, 480)
    assert torch.equal(opened.eval().encode(audio).audio_codes, codec.encode(audio))
    assert load_codec(tmp_path / "b").identity == codec.identity
    dac.DacFeatureExtractor.from_pretrained(tmp_path / "b")
    with pytest.raises(InputError, match="no EnCodec"):
        encodec_parts(codec)
    with pytest.raises(InputError, match="only a mono EnCodec"):
        load_codec(tmp_path / "a", dual_mono=True)


# --- the hub ----------------------------------------------------------------------------------------------------


def cached(cache: Path, name: str, revision: str = "main") -> Path:
    """The folder that a download of a hub model leaves in the cache, empty."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which the suite may not reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_is_read_from_the_cache(cache, tmp_path):
    theirs_of(CAUSAL).save_pretrained(cached(cache, "someone/encodec"))
    codec = load_codec("someone/encodec")
    assert codec.name == "someone/encodec" and codec.sample_rate == 2400
    save_codec(cached(cache, "someone/ours", "v2"), codec)
    assert load_codec("someone/ours@v2").identity == codec.identity
    torch.save({"pretrained": "someone/encodec"}, tmp_path / "compression_state_dict.bin")
    assert load_codec(tmp_path).identity == codec.identity
    with pytest.raises(InputError, match="someone/ours"):
        load_codec("someone/ours@v3")


def test_a_pointer_to_a_dac_is_the_one_on_the_hub(cache, tmp_path):
    torch.save({"pretrained": "dac_44khz"}, tmp_path / "compression_state_dict.bin")
    with pytest.raises(InputError, match="descript/dac_44khz"):
        load_codec(tmp_path)


# --- saved as ours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CAUSAL, STEREO], ids=["whole", "segments"])
def test_a_public_codec_saved_as_ours_is_the_same_codec(tmp_path, settings):
    theirs_of(settings).save_pretrained(tmp_path / "theirs")
    codec = load_codec(tmp_path / "theirs")
    save_codec(tmp_path / "ours", codec)
    loaded = load_codec(tmp_path / "ours")
    assert inner(loaded).config == inner(codec).config and loaded.identity == codec.identity
    assert not any(weight.requires_grad for weight in inner(loaded).parameters())


def test_the_bundled_codec_keeps_its_identity():
    assert load_codec("codec_tiny").identity == "dbe71cfa84d26372"  # which the bundled language model names


def test_a_name_that_is_nothing_says_so():
    with pytest.raises(InputError, match="neither"):
        load_codec("codec_tinny")
    with pytest.raises(InputError):
        load_codec("nobody/knows_this")
