"""Descript's codec behind our interface: parity with `transformers`, exact lengths, streaming, tokens, LM training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import DacConfig, DacModel

from audiogen import audio
from audiogen.codec import stream
from audiogen.codec.__main__ import main
from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.tokens import read_tokens
from audiogen.data.shards import ShardReader
from audiogen.errors import InputError, run_command
from audiogen.files import checkpoint
from audiogen.models.build import load_codec, load_lm
from audiogen.models.own import save_codec
from audiogen.packed import can_pack
from audiogen.train.__main__ import main as train

# Rates and ratios of the released models, and two odd ones; the widths are tiny.
SHAPES = {
    "16kHz": DacSizes(16000, 2, (2, 4, 5, 8), 32, 5, 16, 3),
    "24kHz": DacSizes(24000, 3, (2, 4, 5, 8), 16, 4, 16, 2),
    "44kHz": DacSizes(44100, 2, (2, 4, 8, 8), 48, 3, 32, 4),
    "odd": DacSizes(2000, 4, (3, 5), 12, 3, 8, 2),
}


def make(directory: Path, sizes: DacSizes, seed: int = 0) -> DacModel:
    """A model with random weights that all matter, saved as `transformers` does."""
    torch.manual_seed(seed)
    names = DacSizes.__dataclass_fields__
    model = DacModel(DacConfig(**{name: getattr(sizes, name) for name in names})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.copy_(torch.rand_like(parameter) + 0.5)  # a frequency
            elif parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) / 10)
            else:
                gain = 0.6 if name.startswith("decoder") else 1.0  # short of the tanh's flat ends
                parameter.copy_(gain * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    model.save_pretrained(directory)
    return model


def sound(num_samples: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1, num_samples, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


@pytest.mark.parametrize("name", SHAPES)
def test_parity_with_transformers(tmp_path: Path, name: str) -> None:
    theirs = make(tmp_path, sizes := SHAPES[name])
    ours = load_codec(tmp_path)
    x = sound(7 * sizes.hop_length)
    for count in (1, sizes.n_codebooks):
        codes = theirs.encode(x, count).audio_codes
        assert codes.unique().numel() > 3
        assert torch.equal(ours.encode(x, count), codes)
        expected = theirs.decode(audio_codes=codes).audio_values[:, None]
        decoded = ours.decode(codes)
        assert decoded.shape == (2, 1, 7 * sizes.hop_length)
        assert expected.std() > 0.01 and (expected.abs() > 0.99).float().mean() < 0.2
        assert torch.allclose(decoded[..., : expected.shape[-1]], expected, atol=1e-6)
        assert not decoded[..., expected.shape[-1] :].any()
    assert (expected.shape[-1] < decoded.shape[-1]) == any(r % 2 for r in sizes.downsampling_ratios)
    assert torch.equal(ours.encode(x), codes)


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_is_near(tmp_path: Path, name: str) -> None:
    make(tmp_path, sizes := SHAPES[name])
    exact, rounded = load_codec(tmp_path), load_codec(tmp_path, dtype=torch.bfloat16)
    x = sound(9 * sizes.hop_length)
    codes = exact.encode(x)
    assert (rounded.encode(x)[:, 0] == codes[:, 0]).float().mean() > 0.8
    whole, found = exact.decode(codes), rounded.decode(codes)
    assert found.dtype == torch.float32 and not torch.equal(found, whole)
    assert (found - whole).norm() < 0.05 * whole.norm()
    rounded.freeze(torch.float32)
    torch.testing.assert_close(rounded.decode(codes), whole, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="does not compute in float16"):
        rounded.freeze(torch.float16)


@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lengths_are_those_of_the_interface(tmp_path: Path, frames: int, extra: int) -> None:
    make(tmp_path, sizes := SHAPES["odd"])
    codec = load_codec(tmp_path)
    num_samples = frames * sizes.hop_length + extra
    codes = codec.encode(sound(num_samples))
    assert codes.dtype == torch.int64 and codes.shape == (2, 3, -(-num_samples // sizes.hop_length))
    assert codec.decode(codes).shape == (2, 1, codes.shape[-1] * sizes.hop_length)


@pytest.mark.parametrize("name", SHAPES)
def test_streaming_gives_what_one_call_gives(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, sizes := SHAPES[name])
    codec = load_codec(tmp_path)
    monkeypatch.setattr(stream, "BODY_S", 7 / codec.frame_rate)
    num_samples = (3 * codec.context_frames + 20) * sizes.hop_length - 5
    x = sound(num_samples, batch=1)
    whole = codec.encode(x)
    codes = torch.cat(list(stream.encode_stream(codec, x.split(1234, -1))), -1)
    assert codes.shape == whole.shape and (codes != whole).float().mean() < 1e-3  # float rounding may tip one
    decoded = torch.cat(list(stream.decode_stream(codec, whole.split(3, -1))), -1)
    assert torch.allclose(decoded, codec.decode(whole), atol=1e-5)


def test_it_does_not_train(tmp_path: Path) -> None:
    make(tmp_path, SHAPES["odd"])
    codec = load_codec(tmp_path)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    x = sound(150)
    assert not codec.train().training and not any(module.training for module in codec.modules())
    assert torch.equal(codec.encode(x), codec.encode(x))


def test_identity_is_what_the_codes_mean(tmp_path: Path) -> None:
    make(tmp_path, SHAPES["odd"])
    codec = load_codec(tmp_path)
    assert codec.identity == checkpoint.identity(codec.meaning()) and len(codec.identity) == 16
    for part, changes in (("decoder", False), ("encoder", True), ("quantizer", True)):
        other = load_codec(tmp_path)
        parameter = next(iter(other.get_submodule(part).parameters()))
        with torch.no_grad():
            parameter[0] += 1
        assert (checkpoint.identity(other.meaning()) != codec.identity) == changes


def test_it_is_loaded_by_its_directory_and_saved_as_ours(tmp_path: Path) -> None:
    make(tmp_path / "dac", SHAPES["24kHz"])
    codec = load_codec(tmp_path / "dac")
    assert isinstance(codec, DacCodec) and codec.name == "dac" and codec.config == SHAPES["24kHz"]
    save_codec(tmp_path / "ours", codec)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["kind"] == "codec"
    again = load_codec(tmp_path / "ours")
    assert isinstance(again, DacCodec)
    assert (again.identity, again.config) == (codec.identity, codec.config)
    x = sound(1000)
    assert torch.equal(again.encode(x), codec.encode(x))
    assert torch.equal(again.decode(codec.encode(x)), codec.decode(codec.encode(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 12}, "codebook_size is 12; it must be a power of 2"),
        ({"downsampling_ratios": [3, 0]}, "downsampling_ratios.1 is 0"),
        ({"downsampling_ratios": [5, 3]}, "upsampling_ratios is [5, 3]; only [3, 5]"),
        ({"hidden_size": 17}, "hidden_size is 17; only 16"),
        ({"decoder_hidden_size": 10}, "decoder_hidden_size is 10; it must be a multiple of 4"),
        ({"n_codebooks": "3"}, "n_codebooks is '3'"),
        ({"n_codebooks": 4}, "missing quantizer.quantizers.3"),
        ({"n_codebooks": 2}, "unexpected quantizer.quantizers.2"),
        ({"codebook_dim": 3}, "quantizer.quantizers.0"),
        ({"codebook_dim": None}, "codebook_dim is None"),
        ({"codebook_dim": 10**9}, "codebook_dim is 1000000000; it must be a whole number in [1, 262144]"),
        ({"downsampling_ratios": 3}, "downsampling_ratios is 3; it must be a list"),
        ({"n_codebooks": 10**5}, "tensors that there are cannot fill its layers"),
        ({"snake_alpha": 1}, "snake_alpha"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make(tmp_path, SHAPES["odd"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as error:
        load_codec(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_hop_follows_from_the_ratios_whatever_the_config_says(tmp_path: Path) -> None:
    make(tmp_path, SHAPES["24kHz"])
    path = tmp_path / "config.json"
    released = json.loads(path.read_text()) | {"hop_length": 512}  # of a 24 kHz model with a hop of 320
    path.write_text(json.dumps(released))
    codec = load_codec(tmp_path)
    assert codec.hop_length == SHAPES["24kHz"].hop_length != 512


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    make(tmp_path, SHAPES["odd"])
    codec = load_codec(tmp_path)
    for bad in (torch.zeros(1, 2, 10), torch.zeros(1, 10), torch.zeros(1, 1, 0)):
        with pytest.raises(InputError, match="audio has shape"):
            codec.encode(bad)
    for codes in (torch.zeros(1, 4, 2), torch.full((1, 1, 2), 8), torch.full((1, 1, 2), -1)):
        with pytest.raises(InputError, match=r"codes (have|lie)"):
            codec.decode(codes.long())
    with pytest.raises(InputError, match="1 to 3"):
        codec.encode(sound(30), 4)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="model.safetensors"):
        load_codec(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text("[]")
    with pytest.raises(InputError, match="config.json"):
        load_codec(tmp_path)
    config.write_text(text)
    weights.unlink()
    with pytest.raises(InputError, match="model.safetensors"):
        load_codec(tmp_path)


def write_sounds(folder: Path, rate: int) -> Path:
    folder.mkdir()
    for number in range(4):
        audio.save(folder / f"a tone {number}.wav", sound(rate + number, 1, number)[0], rate)
    return folder


def test_the_commands_take_it_for_files_and_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "dac", SHAPES["odd"])
    sounds = write_sounds(tmp_path / "sounds", 2000)
    options = ["--codec", str(tmp_path / "dac")]
    assert run_command(main, ["encode", str(sounds), "-o", str(tmp_path / "tokens"), *options]) == 0
    assert (
        run_command(main, ["decode", str(tmp_path / "tokens"), "-o", str(tmp_path / "back"), *options]) == 0
    )
    codec = load_codec(tmp_path / "dac")
    shards = ["encode", str(sounds), "-o", str(tmp_path / "shards"), "--shards", "3", *options]
    assert run_command(main, shards) == 0
    reader = ShardReader(tmp_path / "shards")
    for number in range(4):
        samples, _ = audio.load(sounds / f"a tone {number}.wav")
        header, (segment,) = read_tokens(tmp_path / "tokens" / f"a tone {number}.agtok")
        codes = segment.codes[0]
        assert header.num_samples == 2000 + number and header.identity == codec.identity
        assert torch.equal(codes, codec.encode(samples[None])[0])
        assert torch.equal(codes, reader.codes(number))
        back, _ = audio.load(tmp_path / "back" / f"a tone {number}.wav")
        assert back.shape == (1, 2000 + number)
        expected = codec.decode(codes[None])[0, :, : back.shape[-1]]
        assert (back - expected).abs().max() < 2 / 32768
    capsys.readouterr()
    assert run_command(main, ["encode", str(sounds), "-o", str(tmp_path / "x"), "--beam", "2", *options]) == 2
    assert "has no beam search; beam=2 is given, 1 is allowed" in capsys.readouterr().err
    assert run_command(main, ["info", str(tmp_path / "dac")]) == 0
    out = capsys.readouterr().out
    assert f"codec: dac ({codec.identity})" in out and "architecture: dac, " in out
    assert "frames: 133.333 a second, of 15 samples" in out and "codebooks: 3 of 8 codes" in out


LM = """
task: lm
out: {out}
codec: {codec}
model: {{num_codebooks: 3, codebook_size: 8, dim: 16, num_layers: 1, num_heads: 2}}
text: {{width: 16, vocab_size: 40, dim: 8, num_layers: 1, num_heads: 2}}
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: {sounds}, valid: {sounds}, segment_s: 0.5}}
fit: {{steps: 3, batch_size: 2, log_every: 1, valid_every: 2, save_every: 2, device: cpu}}
"""


def test_a_language_model_learns_its_tokens(tmp_path: Path) -> None:
    make(tmp_path / "dac", SHAPES["odd"])
    sounds = write_sounds(tmp_path / "sounds", 2000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LM.format(out=tmp_path / "run", codec=tmp_path / "dac", sounds=sounds))
    assert train([f"recipe={recipe}"]) == 0
    loaded = load_lm(tmp_path / "run")
    assert loaded.codec.identity == load_codec(loaded.codec.location).identity
    assert loaded.codec.identity == load_codec(tmp_path / "dac").identity
