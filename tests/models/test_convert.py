"""Generators and codecs into our layout and that of transformers, which generates and encodes the same."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    EncodecModel,
    MusicgenForConditionalGeneration,
)

from audiogen import AudioGen
from audiogen import lora as low_rank
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.convert import run
from audiogen.convert.__main__ import main
from audiogen.errors import InputError, run_command
from audiogen.files import checkpoint
from audiogen.generators import load as generators
from audiogen.interfaces import Sampling
from audiogen.lm import lora
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models import export
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec
from audiogen.text.condition import stack
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import Vocabulary, train_vocabulary
from tests import random_t5

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ["a dog barks twice", "rain falls on a tin roof", "a clock ticks, then a bell"]
TEXTS = ["a dog barks", "rain falls on a tin roof, then a bell"]
SEANET = SeanetConfig(ratios=(5, 4, 4), num_filters=4, num_residual_layers=2, lstm=1, pad_mode="reflect")
CODEC = CodecConfig(8000, 1, "seanet", SEANET, latent_dim=6, num_codebooks=3, codebook_size=16)
GREEDY = TokenSampling(temperature=0)
ORACLE = ("cpu", "float32", None, None, False)  # device, dtype, text_encoder, adapter, packed


def random_codec(config: CodecConfig) -> Codec:
    codec = Codec(config).eval().requires_grad_(False)
    for book in codec.quantizer.books:
        book.codewords.normal_()
    return codec


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AudioGen]:
    """Tiny random generators: mono or stereo, with a text encoder of their own or a T5."""

    def made(kind: str) -> AudioGen:
        torch.manual_seed(2)
        stereo = "stereo" in kind
        # a stereo model codes each channel by itself: its codebooks are left 0, right 0, left 1, ...
        config = dataclasses.replace(CODEC, channels=2, dual_mono=True, num_codebooks=6) if stereo else CODEC
        delays = (0, 0, 1, 1, 2, 2) if stereo else ()
        lm = TokenLM(
            LMConfig(6 if stereo else 3, 16, dim=24, num_layers=2, num_heads=4, delays=delays)
        ).eval()
        lm.heads.weight.data.mul_(4.0)  # sure enough of itself for the text to matter
        if "t5" in kind:
            folder = random_t5.write(tmp_path_factory.mktemp("t5"), 12)
            text = T5Conditioner(TextConfig(encoder=str(folder), width=24))
        else:
            vocabulary = train_vocabulary(CAPTIONS, 40)
            text = T5Conditioner(TextConfig(width=24, dim=16, num_layers=1, num_heads=2), vocabulary)
        text.output_proj.weight.data.mul_(10.0)
        info = {"steps": 7, "generation": {"guidance": 2.5}}
        return AudioGen(lm, text.eval(), random_codec(config), max_frames=40, info=info)

    return made


@torch.no_grad()
def greedy(model: AudioGen, texts: list[str | None], num_frames: int, guidance: float) -> torch.Tensor:
    conditions = stack([model.conditioner([text]) for text in texts])
    seeds = [0] * len(texts)
    return generate_tokens(model.lm, TokenRequest(conditions, num_frames, seeds, guidance=guidance), GREEDY)


@torch.no_grad()
def their_greedy(
    model: MusicgenForConditionalGeneration, inputs: dict, num_frames: int, **settings: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes [B, K, T], audio) of transformers; the codes are those it gives to its codec."""
    seen = []
    decode = model.audio_encoder.decode

    def watched(codes, **arguments):
        seen.append(codes[0])  # [1, B, K, T]
        return decode(codes, **arguments)

    model.audio_encoder.decode = watched
    one_channel = model.decoder.num_codebooks // model.config.decoder.audio_channels
    settings |= {"max_new_tokens": num_frames + one_channel - 1}
    audio = model.generate(**inputs, do_sample=False, **settings)
    model.audio_encoder.decode = decode
    codes = seen[0] if len(seen) == 1 else torch.stack(seen, 2).flatten(1, 2)  # left 0, right 0, left 1, ...
    return codes, audio


def opened(folder: Path) -> MusicgenForConditionalGeneration:
    """As from_pretrained, which must find every weight that it wants and no other."""
    model, found = MusicgenForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


@pytest.mark.parametrize("kind", ["mono", "mono t5", "stereo t5"])
def test_transformers_generates_the_same_codes(build, kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_transformers(tmp_path / "out")
    theirs = opened(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert inputs.input_ids[0].tolist()[: int(inputs.attention_mask[0].sum())] == model.conditioner.token_ids(
        TEXTS[0]
    )
    results = []
    for guidance in (1.0, 3.0):
        codes, audio = their_greedy(theirs, dict(inputs), 11, guidance_scale=guidance)
        ours = greedy(model, list(TEXTS), 11, guidance)
        assert torch.equal(codes, ours)
        sound = model.generate(
            TEXTS, 11 / model.frame_rate, sampling=Sampling(temperature=0.0), guidance=guidance
        )
        torch.testing.assert_close(sound, audio, atol=1e-4, rtol=0)
        results.append(ours)
    assert not torch.equal(*results)
    nothing = vars(theirs.get_unconditional_inputs(1))
    codes, _ = their_greedy(theirs, nothing, 11)
    assert torch.equal(codes, greedy(model, [None], 11, 1.0))


@pytest.mark.parametrize("kind", ["mono", "mono t5", "stereo t5"])
def test_read_back_it_is_the_same_model(build, kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_transformers(tmp_path / "theirs")
    opened(tmp_path / "theirs").save_pretrained(tmp_path / "saved by them")
    AutoTokenizer.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "saved by them")
    by_them = AudioGen.from_pretrained(tmp_path / "saved by them", *ORACLE)
    back = AudioGen.from_pretrained(tmp_path / "theirs", *ORACLE)
    back.save_pretrained(tmp_path / "ours")
    again = AudioGen.from_pretrained(tmp_path / "ours", *ORACLE)
    expected = model.generate([*TEXTS, None], 0.3, sampling=Sampling(temperature=0.0))
    for read in (back, again, by_them):
        assert read.lm.config == dataclasses.replace(model.lm.config, delays=read.lm.config.delays)
        for name, tensor in model.lm.state_dict().items():
            assert torch.equal(read.lm.state_dict()[name], tensor), name
        assert (read.max_frames, read.guidance, read.channels) == (40, 2.5, model.channels)
        torch.testing.assert_close(
            read.generate([*TEXTS, None], 0.3, sampling=Sampling(temperature=0.0)),
            expected,
            atol=1e-5,
            rtol=0,
        )


def test_the_processor_and_the_defaults_of_transformers(build, tmp_path: Path) -> None:
    build("mono").save_transformers(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.sampling_rate == 8000
    theirs = opened(tmp_path)
    assert (theirs.generation_config.guidance_scale, theirs.generation_config.do_sample) == (2.5, True)
    audio = theirs.generate(**processor(text=["rain"], return_tensors="pt"))
    # the longest that the model was trained on; version 5 counts a default length without the first step
    assert audio.shape[-1] in (40 * 80, 41 * 80)


def test_the_tokenizer_of_a_vocabulary_gives_its_ids(tmp_path: Path) -> None:
    vocabulary = Vocabulary(train_vocabulary([*CAPTIONS, "0 Straße fine!"], 60))
    export.from_vocabulary(vocabulary).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CAPTIONS, "A  DOG\tBarks ", "ｒａｉｎ, then\na dog", "STRASSE straße ﬁne", "🐶 barks", ""]:
        assert tokenizer(text).input_ids == vocabulary.encode(text), text


def test_an_adapter_is_merged(build, tmp_path: Path) -> None:
    model = build("mono")
    model.save_pretrained(tmp_path / "base")
    config = lora.LoraConfig(rank=2)
    lora.add(model.lm, config)
    for tensor in low_rank.adapter_state(model.lm).values():
        tensor.normal_()
    lora.save_adapter(tmp_path / "adapter", model.lm, config, str(tmp_path / "base"))
    words = [str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--to", "transformers"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    merged = AudioGen.from_pretrained(tmp_path / "out", *ORACLE).generate(
        TEXTS, 0.2, sampling=Sampling(temperature=0.0)
    )
    torch.testing.assert_close(
        merged, model.generate(TEXTS, 0.2, sampling=Sampling(temperature=0.0)), atol=1e-5, rtol=0
    )
    on_top = generators.load(tmp_path / "base", "cpu", "float32", adapter=tmp_path / "adapter", packed=False)
    torch.testing.assert_close(
        on_top.generate(TEXTS, 0.2, sampling=Sampling(temperature=0.0)), merged, atol=1e-5, rtol=0
    )
    plain = generators.load(tmp_path / "base", *ORACLE).generate(
        TEXTS, 0.2, sampling=Sampling(temperature=0.0)
    )
    assert not torch.allclose(plain, merged, atol=1e-3)


def test_a_codec_goes_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(3)
    codec = random_codec(CODEC)
    save_codec(tmp_path / "ours", codec)
    assert main([str(tmp_path / "ours"), "--to", "transformers", "-o", str(tmp_path / "theirs")]) == 0
    theirs, found = EncodecModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    audio = 0.3 * torch.randn(2, 1, 801)
    codes = codec.encode(audio)
    with torch.no_grad():
        encoded = theirs.eval().encode(audio, bandwidth=theirs.config.target_bandwidths[-1])
        assert torch.equal(encoded.audio_codes[0], codes)
        decoded = theirs.decode(codes[None], [None]).audio_values
    torch.testing.assert_close(decoded, codec.decode(codes), atol=1e-5, rtol=0)
    assert main([str(tmp_path / "theirs"), "--to", "audiogen", "-o", str(tmp_path / "back")]) == 0
    back = load_codec(tmp_path / "back")
    assert torch.equal(back.encode(audio), codes)
    torch.testing.assert_close(back.decode(codes), codec.decode(codes), atol=1e-5, rtol=0)


def test_a_public_release_becomes_a_model_directory_that_needs_nothing_else(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release, text = shared / "fixtures" / "audiogen_tiny", random_t5.write(tmp_path / "t5", 512)
    original = generators.load(release, "cpu", text_encoder=str(text))
    expected = original.generate(TEXTS, 0.4, sampling=Sampling(temperature=0.0))
    words = [str(release), "--text-encoder", str(text)]
    assert main([*words, "--to", "audiogen", "-o", str(tmp_path / "out")]) == 0
    text.rename(tmp_path / "elsewhere")
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = generators.load(tmp_path / "moved", "cpu")
    assert torch.equal(moved.generate(TEXTS, 0.4, sampling=Sampling(temperature=0.0)), expected)
    assert (moved.max_frames, moved.guidance) == (original.max_frames, original.guidance)
    assert (moved.codec.identity, moved.num_parameters) == (original.codec.identity, original.num_parameters)
    capsys.readouterr()
    status = run_command(
        main, [str(tmp_path / "moved"), "--to", "transformers", "-o", str(tmp_path / "theirs")]
    )
    line = capsys.readouterr().err
    assert status == 2 and "codebook_size 96" in line and "power of 2" in line
    assert not (tmp_path / "theirs").exists()


def test_half_precision_halves_the_generator_and_leaves_its_codec(build, tmp_path: Path) -> None:
    model = build("mono")
    model.save_pretrained(tmp_path / "model")
    for layout in ("audiogen", "transformers"):
        words = [str(tmp_path / "model"), "--to", layout, "--dtype", "float16"]
        assert main([*words, "-o", str(tmp_path / layout)]) == 0
        again = generators.load(tmp_path / layout, "cpu")
        assert {
            weight.dtype
            for weight in checkpoint.load_tensors(tmp_path / "audiogen" / "codec").values()
            if weight.is_floating_point()
        } == {torch.float32}
        assert torch.equal(again.lm.heads.weight, model.lm.heads.weight.half().float())
    assert json.loads((tmp_path / "transformers" / "config.json").read_text())["dtype"] == "float16"
    assert opened(tmp_path / "transformers").dtype == torch.float16


def with_parts(model: AudioGen, **parts: object) -> AudioGen:
    held = {"lm": model.lm, "conditioner": model.conditioner, "codec": model.codec} | parts
    return AudioGen(**held, max_frames=40)  # type: ignore[arg-type]


def test_what_transformers_cannot_express_is_named(build, tiny_model: Path, tmp_path: Path) -> None:
    model = build("mono")
    for pattern in ({"pattern": "flatten"}, {"delays": (0, 2, 1)}):
        lm = TokenLM(dataclasses.replace(model.lm.config, **pattern)).eval()
        with pytest.raises(InputError, match="flatten|delays"):
            with_parts(model, lm=lm).save_transformers(tmp_path / "out")
    spectral = random_codec(
        CodecConfig(8000, 1, "spectral", latent_dim=16, num_codebooks=3, codebook_size=16)
    )
    with pytest.raises(InputError, match="spectral"):
        with_parts(model, codec=spectral).save_transformers(tmp_path / "out")
    as_wide = T5Conditioner(
        TextConfig(width=24, dim=24, num_layers=1, num_heads=2), model.conditioner.tokenizer.model
    ).eval()
    with pytest.raises(InputError, match="both 24 wide"):
        with_parts(model, conditioner=as_wide).save_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("missing --to audiogen", "missing"),
        ("model/text --to audiogen", "kind 'text_encoder'; a token language model or a codec or"),
        ("model --to audiogen -o model", "exists already"),
        ("model --to audiogen --text-encoder nowhere", "nowhere"),
        ("model --to audiogen --adapter model", "kind 'token_lm'"),
        ("model/codec --to audiogen --adapter model", "--adapter is for generators"),
        ("model/codec --to transformers --dtype float16", "is a codec, whose tokens would change"),
        ("broken --to transformers", "model.safetensors"),
        ("empty --to audiogen", "empty"),
        ("model --to transformers -o new/out", "lstm"),
        ("model --to audiogen -o file/out", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch, capsys, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text((tiny_model / "config.json").read_text())
    before = sorted(tmp_path.rglob("*"))
    status = run_command(main, ["-o", "out", *words.split()])
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1 and said in lines[0], lines
    assert sorted(tmp_path.rglob("*")) == before


def test_as_a_command(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiogen.convert", str(tiny_model), "--to", "audiogen", "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "new" / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("layout of audiogen\n")
    assert torch.equal(
        generators.load(tmp_path / "new" / "out", "cpu").generate(["rain"], 0.1),
        generators.load(tiny_model, "cpu").generate(["rain"], 0.1),
    )


def test_two_at_once_into_one_directory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(tiny_model), "--to", "audiogen", "-o", str(tmp_path / "new" / "out")]
    open_model = run.open_model

    def open_and_begin_another(args: argparse.Namespace) -> Callable[[Path], None]:
        write = open_model(args)

        def write_and_begin_another(folder: Path) -> None:
            write(folder)
            monkeypatch.undo()
            with pytest.raises(InputError, match="is being written by"):
                main(arguments)

        return write_and_begin_another

    monkeypatch.setattr(run, "open_model", open_and_begin_another)
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert generators.load(tmp_path / "new" / "out", "cpu").generate(["rain"], 0.1).isfinite().all()


def test_what_a_killed_conversion_left_goes_with_the_next(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(tiny_model), "--to", "audiogen", "-o", str(tmp_path / "out")]

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        os._exit(9)

    if (killed := os.fork()) == 0:
        monkeypatch.setattr(run, "open_model", lambda _: fill)
        main(arguments)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == 9
    assert list(tmp_path.rglob("half"))
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(tmp_path.rglob("half"))


def test_latent_diffusion_into_one_directory_of_diffusers(
    tiny_latent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_latent), "--to", "audiogen", "-o", str(tmp_path / "out")]) == 0
    ours, moved = (generators.load(path, "cpu") for path in (tiny_latent, tmp_path / "out"))
    assert moved.identity() == ours.identity()
    for words, said in (
        (["--to", "transformers"], "for which transformers has no class; give --to audiogen"),
        (["--to", "audiogen", "--dtype", "float16"], "stored in float32; drop --dtype float16"),
    ):
        assert run_command(main, [str(tiny_latent), *words, "-o", str(tmp_path / "no")]) == 2
        message = capsys.readouterr().err
        assert said in message and ("--dtype" in message) == ("--dtype" in words)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
