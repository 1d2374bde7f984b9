"""The command: which files it writes, what it prints, and that bad input costs one line and leaves nothing behind."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from audiogen import AudioGen, audio
from audiogen import lora as low_rank
from audiogen.diffusion.sample import SAMPLINGS
from audiogen.diffusion.sample import Sampling as LatentSampling
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError, run_command
from audiogen.generate.__main__ import main
from audiogen.generate.jobs import Job, plan
from audiogen.generate.options import parse_arguments
from audiogen.generators import load as generators
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Sampling
from audiogen.lm import lora
from audiogen.models.diffusers import save_diffusers
from audiogen.native import library
from audiogen.text.vocabulary import train_vocabulary
from tests import random_t5
from tests.diffusion.tiny_encoders import write_clap
from tests.diffusion.tiny_systems import CAPTIONS, tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Run the command in an empty folder with the tiny model -> (status, lines of stdout, lines of stderr)."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def command(*words: str, model: Path = tiny_model) -> tuple[int, list[str], list[str]]:
        argv = [
            "--model",
            str(model),
            "--device",
            "cpu",
            "--duration",
            "0.1",
            *words,
        ]  # the last of a kind counts
        status = run_command(main, argv)
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return command


def samples(path: str | Path) -> bytes:
    """Of a sound file, without its metadata, which name its settings."""
    return soundfile.read(path, dtype="int16")[0].tobytes()


def files(folder: str = ".") -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())


def test_a_sound_and_a_picture_for_every_sample_of_every_prompt(run, tiny_model: Path) -> None:
    status, out, err = run("--text", "A dog barks!", "--text", "rain", "--num-samples", "2", "--seed", "7")
    assert (status, err) == (0, [])
    stems = ["0_0_a_dog_barks_seed7", "0_1_a_dog_barks_seed8", "1_0_rain_seed7", "1_1_rain_seed8"]
    assert files() == [f"generated/{stem}.{suffix}" for stem in stems for suffix in ("png", "wav")]
    assert out[:4] == [
        f"generated/{stem}.wav  generated/{stem}.png  seed {seed}"
        for stem, seed in zip(stems, [7, 8, 7, 8], strict=True)
    ]
    assert re.fullmatch(
        r"real-time factor \d+\.\d\d \(0\.4 s of sound in \d+\.\d s\), model .* on cpu", out[4]
    )
    model = AudioGen.from_pretrained(tiny_model, "cpu")
    expected = model.generate(["A dog barks!", "A dog barks!", "rain", "rain"], 0.1, seed=[7, 8, 7, 8])
    for stem, sound in zip(stems, expected, strict=True):
        written, rate = audio.load(f"generated/{stem}.wav")
        assert rate == 8000
        torch.testing.assert_close(written, sound, atol=2**-15, rtol=0)
        assert Path(f"generated/{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_a_sound_does_not_depend_on_the_prompts_before_it(run) -> None:
    texts = ["a dog", "a clock ticks", "rain", "tin", "a dog barks twice"]
    run(*(word for text in texts for word in ("--text", text)), "--out", "all")
    run("--text", "a dog barks twice", "--out", "alone")
    together, alone = (Path(f"{name}_0_a_dog_barks_twice_seed0.wav") for name in ("all/4", "alone/0"))
    assert together.read_bytes() == alone.read_bytes()


def test_prompts_of_a_file_follow_those_of_the_command_and_names_sort_in_their_order(tmp_path: Path) -> None:
    lines = [{"text": f"rain {n}"} for n in range(11)] + [{"text": "a clock", "duration": 0.25, "seed": 40}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = f"--text dog --prompts {tmp_path / 'p.jsonl'} --out o --seed 3 --num-samples 2 --format ogg"
    jobs = plan(parse_arguments(words.split()))
    assert len(jobs) == 26 and sorted(jobs, key=lambda job: job.path.name) == jobs
    assert jobs[0] == Job(Path("o/00_0_dog_seed3.ogg"), "dog", 5.0, 3)
    assert jobs[23] == Job(Path("o/11_1_rain_10_seed4.ogg"), "rain 10", 5.0, 4)
    assert jobs[25] == Job(Path("o/12_1_a_clock_seed41.ogg"), "a clock", 0.25, 41)


def test_rows_have_settings_of_their_own_and_each_model_is_opened_once(
    run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a row says is what the command would say for it alone; rows of one kind are made together."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    rows = [
        {"text": "rain", "guidance": 1.5, "name": "soft rain"},
        {"text": "a dog", "model": str(other), "negative": "tin", "seed": 3},
        {"text": "a clock"},
        {"text": "tin", "guidance": 1.5, "duration": 0.2},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened, load = [], generators.load
    monkeypatch.setattr(
        generators, "load", lambda found, *more: (opened.append(found.path), load(found, *more))[1]
    )
    status, out, err = run("--prompts", "p.jsonl", "--out", "o")
    assert (status, err, opened) == (0, [], [tiny_model, other])
    stems = [
        "soft rain",
        "1_0_a_dog_seed3_other",
        f"2_0_a_clock_seed0_{tiny_model.name}",
        f"3_0_tin_seed0_{tiny_model.name}",
    ]
    assert files("o") == sorted(f"o/{stem}.{suffix}" for stem in stems for suffix in ("png", "wav"))
    assert sum(line.startswith("real-time factor") for line in out) == 2
    alone = [
        ["--text", "rain", "--guidance", "1.5"],
        ["--text", "a dog", "--model", str(other), "--negative", "tin", "--seed", "3"],
        ["--text", "a clock"],
        ["--text", "tin", "--guidance", "1.5", "--duration", "0.2"],
    ]
    for stem, words in zip(stems, alone, strict=True):
        assert run(*words, "--out", "alone.wav", "--overwrite")[0] == 0
        assert Path("alone.wav").read_bytes() == Path(f"o/{stem}.wav").read_bytes()
    rows = [{"text": "a", "name": "x"}, {"text": "b", "name": "X"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, out, err = run("--prompts", "p.jsonl", "--out", "o")
    assert (status, out, len(err)) == (
        2,
        [],
        1,
    ) and "o/X.wav would be the file of two sounds, 'a' and 'b'" in err[0]
    Path("p.jsonl").write_text(json.dumps({"text": "a", "model": "nosuch"}))
    status, out, err = run("--prompts", "p.jsonl", "--out", "o")
    assert (status, out, len(err)) == (2, [], 1) and "nosuch" in err[0]


def test_earlier_takes_stay(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed has another name; what is there is replaced on demand only, and found before the model is opened."""
    assert run("--text", "rain")[0] == run("--text", "rain", "--seed", "5")[0] == 0
    kept, before = (
        {name: Path(name).read_bytes() for name in files()},
        samples("generated/0_0_rain_seed0.wav"),
    )
    assert len(kept) == 4
    Path("generated/0_0_rain_seed9.png").write_text("a picture")
    with monkeypatch.context() as patch:
        patch.setattr(generators, "load", lambda *_: pytest.fail("opened"))
        for words, first in (
            (["--seed", "5"], "generated/0_0_rain_seed5.wav exists, and 1 more;"),
            (["--seed", "9"], "generated/0_0_rain_seed9.png exists;"),
            (["--out", "generated/0_0_rain_seed0.wav"], "generated/0_0_rain_seed0.wav exists, and 1 more;"),
            (["--seed", "0", "--stream"], "generated/0_0_rain_seed0.wav exists;"),
        ):
            status, out, err = run("--text", "rain", *words)
            assert (status, out, len(err)) == (2, [], 1) and first in err[0] and "--overwrite" in err[0]
    assert {name: Path(name).read_bytes() for name in kept} == kept
    for words in ([], ["--stream"]):
        status, _, err = run("--text", "rain", "--guidance", "1", "--overwrite", *words)
        assert (status, err) == (0, [])
    assert samples("generated/0_0_rain_seed0.wav") != before


def test_of_two_commands_at_once_one_gets_the_name(run, monkeypatch: pytest.MonkeyPatch) -> None:
    load = generators.load

    def slow(*settings: Any) -> Any:
        Path("a.wav").write_text("another's")  # after the check
        return load(*settings)

    monkeypatch.setattr(generators, "load", slow)
    for words in ([], ["--stream"]):
        status, out, err = run("--text", "rain", "--out", "a.wav", *words)
        assert (status, out, len(err)) == (2, [], 1) and "a.wav was written by another process" in err[0]
        assert files() == ["a.wav"] and Path("a.wav").read_text() == "another's"
        Path("a.wav").unlink()


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_formats(run, format: str) -> None:
    assert run("--text", "rain", "--out", f"a/one.{format}")[0] == 0
    assert run("--text", "rain", "--format", format, "--out", "b")[0] == 0
    one, other = f"a/one.{format}", f"b/0_0_rain_seed0.{format}"
    assert files() == sorted([one, "a/one.png", other, "b/0_0_rain_seed0.png"])
    assert Path(one).read_bytes() == Path(other).read_bytes()
    info = soundfile.info(f"a/one.{format}")
    assert info.samplerate == 8000 and info.format.lower() in (format, "mpeg" if format == "mp3" else format)


def test_continuing_a_sound(run) -> None:
    clip = 0.3 * torch.sin(torch.arange(1600) / 4.0)[None].repeat(2, 1)  # stereo, 16 kHz, 0.1 s
    audio.save("clip.wav", clip, 16000)
    assert run("--continue-from", "clip.wav", "--text", "rain", "--duration", "0.3", "--out", "a.wav")[0] == 0
    assert run("--continue-from", "clip.wav", "--duration", "0.3", "--out", "b")[0] == 0
    assert files("b") == ["b/0_0_no_text_seed0.png", "b/0_0_no_text_seed0.wav"]
    assert soundfile.info("a.wav").frames == 2400
    status, _, err = run(
        "--continue-from", "clip.wav", "--text", "rain", "--duration", "0.1", "--out", "c.wav"
    )
    assert status == 2 and "has 0.1 s and the duration counts it in" in err[0]
    assert not Path("c.wav").exists()


def test_settings_are_passed_on(run, tiny_model: Path) -> None:
    words = "--guidance 1.5 --temperature 0.7 --top-k 5 --top-p 0.9 --negative rain --seed 2 --dtype bfloat16"
    assert run("--text", "a dog barks", "--out", "a.wav", *words.split())[0] == 0
    model = AudioGen.from_pretrained(tiny_model, "cpu", "bfloat16")
    expected = model.generate(
        ["a dog barks"],
        0.1,
        guidance=1.5,
        sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9, negative="rain"),
        seed=2,
    )
    audio.save("b.wav", expected[0], 8000)
    assert samples("a.wav") == samples("b.wav")


def test_threads_change_the_time_and_no_bit_of_int8(run) -> None:
    if library.find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    before = torch.get_num_threads()
    try:
        for count in ("1", "2"):
            words = ("--dtype", "int8", "--threads", count, "--out", f"{count}.wav")
            assert run("--text", "rain", *words)[0] == 0 and torch.get_num_threads() == int(count)
    finally:
        torch.set_num_threads(before)
    assert Path("1.wav").read_bytes() == Path("2.wav").read_bytes()


def test_a_public_release_with_a_text_encoder(run, shared: Path, tmp_path: Path) -> None:
    release, text = shared / "fixtures" / "audiogen_tiny", random_t5.write(tmp_path / "t5", 512)
    narrow = random_t5.write(tmp_path / "narrow", 24)
    words = ["--text", "a dog barks", "--text-encoder", str(text)]
    assert run(*words, "--out", "a.wav", model=release)[0] == 0
    assert soundfile.info("a.wav").samplerate == 16000 and soundfile.info("a.wav").frames == 1600
    status, _, err = run("--text", "rain", "--text-encoder", str(tmp_path), "--out", "b.wav", model=release)
    assert status == 2 and len(err) == 1 and not Path("b.wav").exists()
    status, _, err = run("--text", "rain", "--text-encoder", str(narrow), "--out", "b.wav", model=release)
    assert status == 2 and len(err) == 1 and "512" in err[0] and "24" in err[0], err


def test_peers_are_all_prompts_of_the_command(run, tiny_model: Path) -> None:
    texts = ["a dog", "a clock ticks", "rain", "tin", "a roof", "falls", "twice", "a clock"]
    texts.append("a dog barks twice, then rain falls on a tin roof")
    words = [word for text in texts for word in ("--text", text)]
    assert run(*words, "--peer-padding", "--temperature", "0")[0] == 0
    model = AudioGen.from_pretrained(tiny_model, "cpu")
    assert len(texts) > model.batch_size  # the longest is in another group
    expected = model.generate(texts, 0.1, sampling=Sampling(temperature=0.0, peer_padding=True))
    written, _ = audio.load("generated/0_0_a_dog_seed0.wav")
    torch.testing.assert_close(written, expected[0], atol=2**-15, rtol=0)


def test_an_adapter_changes_the_sound(run, tiny_model: Path, tmp_path: Path) -> None:
    model, config = AudioGen.from_pretrained(tiny_model, "cpu"), lora.LoraConfig(rank=2)
    lora.add(model.lm, config)
    for tensor in low_rank.adapter_state(model.lm).values():
        tensor.normal_()
    lora.save_adapter(tmp_path / "adapter", model.lm, config, str(tiny_model))
    assert run("--text", "rain", "--temperature", "0", "--out", "plain.wav")[0] == 0
    words = ["--text", "rain", "--temperature", "0", "--adapter", str(tmp_path / "adapter")]
    assert run(*words, "--out", "adapted.wav")[0] == 0
    assert samples("plain.wav") != samples("adapted.wav")
    status, _, err = run("--text", "rain", model=tmp_path / "adapter")
    assert status == 2 and f"give --model {tiny_model} --adapter {tmp_path / 'adapter'}" in err[0]
    status, _, err = run("--text", "rain", "--adapter", str(tiny_model))
    assert status == 2 and "'lora' is needed" in err[0]


def test_odd_prompts_are_warned_of_and_generated(run) -> None:
    status, out, err = run("--text", "a dog barks " * 1700, "--text", "🐶🐶", "--text", "日本")
    assert status == 0 and len(out) == 4
    assert len(err) == 3 and all(line.startswith("warning: ") for line in err)
    assert "reads the first 512" in err[0] and "has no token for '🐶🐶'" in err[1]
    names = [path.name for path in sorted(Path("generated").glob("*.wav"))]
    assert len(names[0]) < 70 and names[1:] == ["1_0_sound_seed0.wav", "2_0_sound_seed0.wav"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing to generate; give --text"),
        ("--text= ", "--text number 1 is empty"),
        ("--text rain --negative=", "negative text is empty"),
        ("--text rain --duration 0", "duration is 0 s; it must be above 0"),
        ("--text rain --duration=-2", "duration is -2 s"),
        ("--text rain --duration 1e9", "at most 3600 s"),
        ("--text rain --duration nan", "duration is nan s"),
        ("--text rain --num-samples 0", "--num-samples is 0"),
        ("--text rain --threads 0", "--threads is 0; it must be from 1 to 1024"),
        ("--text rain --temperature=-1", "temperature is -1"),
        ("--text rain --top-k=-1", "top_k is -1"),
        ("--text rain --top-p 2", "top_p is 2"),
        ("--text rain --seed=-1", "seed is -1"),
        ("--text rain --guidance nan", "guidance is nan"),
        ("--text rain --device cuda", "device 'cuda' cannot be used"),
        ("--text rain --device cuda:1", "device 'cuda:1' cannot be used"),
        (
            "--text rain --device gpu",
            "device 'gpu' cannot be used; allowed: auto (a CUDA GPU if there is one), cpu",
        ),
        ("--text rain --prompts none.txt", "none.txt: cannot be read"),
        ("--text rain --continue-from none.wav", "none.wav: "),
        ("--text rain --continue-from ../noise.wav", "not a sound file"),
        ("--text rain --text wind --out one.wav", "one file, but there are 2 sounds"),
        ("--text rain --out one.wav --format mp3", "--out one.wav and --format mp3 disagree"),
        ("--text rain --out one.m4a", "format 'm4a' cannot be written"),
        ("--text rain --out ../noise.wav/x", "is not a folder that can be written to"),
        ("--text rain --out ../file", "--out ../file is a file"),
    ],
)
def test_bad_input_is_one_line_status_2_and_no_file(run, words: str, said: str) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    Path("../noise.wav").write_text("no sound")
    Path("../file").write_text("a file")
    status, out, err = run(*(["--text", " "] if words == "--text= " else words.split()))
    assert (status, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ") and said in err[0]
    assert files() == []


def test_bad_model_directories(run, tiny_model: Path, tmp_path: Path) -> None:
    half, pickled = tmp_path / "half", tmp_path / "pickled"
    shutil.copytree(tiny_model, half)
    weights = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for model, said in [
        (tmp_path / "missing", "neither a directory nor a bundled model"),
        (half, "damaged or half-written"),
        (tiny_model / "codec", "a codec, which audiogen.load_codec opens; a token language model or"),
        (tiny_model / "text", "kind 'text_encoder'; a token language model or"),
        (pickled, "holds a pickle (pytorch_model.bin)"),
        (tiny_model / "config.json", "is a file"),
    ]:
        status, out, err = run("--text", "rain", model=model)
        assert (status, out, len(err)) == (2, [], 1), err
        assert said in err[0]
    assert files() == []


def test_as_a_command(tiny_model: Path, tmp_path: Path) -> None:
    with open(tmp_path / "p.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name", "caption"], ["", "a dog, then rain"]])
    command = [
        sys.executable,
        "-m",
        "audiogen.generate",
        "--prompts",
        str(tmp_path / "p.csv"),
        "--duration",
        "0.1",
    ]
    command += ["--model", str(tiny_model), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "0_0_a_dog_then_rain_seed0.wav").is_file()
    failed = subprocess.run(
        [*command[:3], "--text", ""], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)


def test_a_stream_to_a_file_is_the_sound_without_a_picture(run) -> None:
    assert run("--text", "rain", "--out", "whole.wav")[0] == 0
    status, out, err = run("--text", "rain", "--stream", "--out", "streamed.wav")
    assert (status, err) == (0, []) and out[0].startswith("streamed.wav  seed 0  first sound after 0.")
    whole, streamed = (audio.load(f"{name}.wav")[0] for name in ("whole", "streamed"))
    assert streamed.shape == whole.shape and torch.allclose(streamed, whole, atol=2**-14)
    assert files() == ["streamed.wav", "whole.png", "whole.wav"]
    assert run("--text", "rain", "--stream")[0] == 0
    assert files("generated") == ["generated/0_0_rain_seed0.wav"]


def test_a_stream_to_a_player_is_a_wav_file_that_need_not_end(
    tiny_model: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["--model", str(tiny_model), "--text", "rain", "--stream", "--out", "-", "--duration"]
    command = [sys.executable, "-m", "audiogen.generate", *words, "inf"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    begin = process.stdout.read(8000 + 2 * 8000)  # the metadata, and more than a second of it
    process.stdout.close()
    assert process.wait(60) == 141
    (tmp_path / "begin.wav").write_bytes(begin)
    sound, rate = soundfile.read(tmp_path / "begin.wav")
    assert rate == 8000 and len(sound) > 8000 and sound.any()
    assert run_command(main, [*words, "0.5"]) == 0
    whole, said = capsysbinary.readouterr()
    (_, _, part), (_, _, endless) = (data.partition(b"data\xff\xff\xff\xff") for data in (whole, begin))
    assert part[:4000] == endless[:4000] and len(part) == 2 * 4000
    assert b"first sound after" in said


def test_what_cannot_be_streamed_costs_one_line(run, tmp_path: Path) -> None:
    for words, said in (
        (("--text", "a", "--text", "b", "--stream"), "--stream makes one sound, and there are 2"),
        (("--text", "a", "--out", "-"), "--out - is the WAV file that --stream writes"),
        (("--text", "a", "--stream", "--out", "-", "--format", "mp3"), "--out - is the WAV file"),
        (("--text", "a", "--duration", "inf"), "duration is inf s"),
        (("--text", "a", "--stream", "--duration", "nan"), "duration is nan s"),
        (("--text", "a", "--stream", "--peer-padding"), "--peer-padding is for batches"),
    ):
        status, out, err = run(*words)
        assert (status, out, len(err)) == (2, [], 1) and said in err[0]
    assert files() == []


def test_latent_diffusion_by_the_same_verb(run, tiny_latent: Path) -> None:
    words = "--steps 3 --sampler euler --guidance 2.5 --negative rain --seed 4 --num-samples 2".split()
    status, out, err = run("--text", "a dog barks", *words, "--out", "a", model=tiny_latent)
    assert (status, err) == (0, [])
    assert files() == [
        f"a/0_{n}_a_dog_barks_seed{4 + n}.{suffix}" for n in (0, 1) for suffix in ("png", "wav")
    ]
    assert out[2].startswith("attention heads (2, 4): those of ") and out[3].startswith("real-time factor")
    model = generators.load(tiny_latent, "cpu")
    expected = model.generate(
        ["a dog barks"],
        0.1,
        seed=5,
        sampling=Sampling(steps=3, sampler="euler", negative="rain"),
        guidance=2.5,
    )
    audio.save("b.wav", expected[0], 16000)
    assert samples("a/0_1_a_dog_barks_seed5.wav") == samples("b.wav")
    assert run("--text", "a dog barks", *words, "--heads", "2,2", "--out", "c", model=tiny_latent)[0] == 0
    assert samples("a/0_1_a_dog_barks_seed5.wav") != samples("c/0_1_a_dog_barks_seed5.wav")


FOR_DIFFUSERS = {"pipeline.py", "projection", "text_encoder", "tokenizer"}  # copies of what is in ours, too


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of systems as training leaves them, which between them have every component; random."""
    found = {}
    for name in ("audioldm2", "stable_audio", "tangoflux"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            system = LatentSystem(tiny(name), train_vocabulary(CAPTIONS, 40))
        found[name] = tmp_path_factory.mktemp(name)
        save_diffusers(found[name], system, name, {}, sampling=LatentSampling(SAMPLINGS[name].sampler, 2))
    return found


def refused(done: tuple[int, list[str], list[str]]) -> str:
    """The one line of a command that refuses what it was given, and has written nothing."""
    status, out, err = done
    assert (status, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ") and files() == []
    return err[0]


@pytest.mark.parametrize("name", ["audioldm2", "stable_audio", "tangoflux"])
def test_a_system_without_one_of_its_components_or_half_of_it(
    run, latents: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Each is named in one line: folders, weights and the two files at the top."""
    words = ("--text", "rain")
    assert run(*words, "--out", "../whole.wav", model=latents[name])[0] == 0
    half = tmp_path / "half"
    for part in sorted(latents[name].iterdir()):
        if part.name in FOR_DIFFUSERS:
            continue
        shutil.copytree(latents[name], half)
        shutil.rmtree(half / part.name) if part.is_dir() else (half / part.name).unlink()
        said = refused(run(*words, model=half))
        # without the system's own settings, the index says too little, or names a pipeline with other parts
        assert part.name in said or part.name == "system.json", said
        shutil.rmtree(half)
    components = {"vae", "text", "scheduler", "system.json", "model_index.json"}
    extra = {"audioldm2": {"vocoder", "unet", "projection_model", "language_model", "conditioner"}}
    extra |= {
        "stable_audio": {"transformer", "projection_model"} | FOR_DIFFUSERS,
        "tangoflux": {"transformer", "conditioner"} | FOR_DIFFUSERS,
    }
    assert {part.name for part in latents[name].iterdir()} == components | extra[name]
    for path in sorted(latents[name].rglob("*.safetensors")):
        if path.relative_to(latents[name]).parts[0] in FOR_DIFFUSERS:
            continue
        shutil.copytree(latents[name], half)
        cut = half / path.relative_to(latents[name])
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert str(cut) in refused(run(*words, model=half))
        shutil.rmtree(half)
    for path in ("system.json", "model_index.json"):
        for contents in ("", "{", "[]", "{}", '{"config": 7}'):
            shutil.copytree(latents[name], half)
            (half / path).write_text(contents)
            if path == "system.json" or contents[:1] != "{" or contents == "{":
                assert path in refused(run(*words, model=half))
            shutil.rmtree(half)


@pytest.mark.parametrize(("name", "component"), [("audioldm2", "vocoder"), ("stable_audio", "vae")])
def test_components_of_different_sample_rates(
    run, latents: dict[str, Path], name: str, component: str, tmp_path: Path
) -> None:
    """They would sound at a wrong pitch; a sound to begin from is resampled, see below."""
    shutil.copytree(latents[name], tmp_path / "mixed")
    path = tmp_path / "mixed" / component / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"sampling_rate": 22050}))
    said = refused(run("--text", "rain", model=tmp_path / "mixed"))
    rate = settings["sampling_rate"]
    assert f"{path}: sampling_rate is 22050 Hz, but {rate} Hz in system.json; the {component} is of" in said


def test_a_sound_made_of_another(run, tiny_latent: Path, tmp_path: Path) -> None:
    clip = 0.3 * torch.sin(torch.arange(3200) / 4.0)[None]  # 0.2 s
    audio.save("clip.wav", clip, 16000)
    audio.save("stereo.wav", clip.repeat(2, 1), 32000)  # 0.1 s
    words = ["--text", "rain", "--steps", "2", "--duration", "0.2"]
    edits = (["--strength", "0.6"], ["--inpaint", "0.05:0.1"], ["--upsample"], ["--strength", "1"], [])
    for number, edit in enumerate(edits):
        init = ["--init", "clip.wav"] if edit else []
        status, _, err = run(*words, *init, *edit, "--out", f"{number}.wav", model=tiny_latent)
        assert (status, err) == (0, [])
    sounds = [samples(f"{number}.wav") for number in range(len(edits))]
    assert len(set(sounds)) == 4 and sounds[3] == sounds[4]  # strength 1 is a fresh sound
    words = ["--init", "stereo.wav", "--strength", "0", "--out", "none.wav"]  # no text is needed
    assert plan(parse_arguments(words), 0.3)[0].duration_s == 0.3
    assert plan(parse_arguments([*words, "--duration", "0.1"]), 0.3)[0].duration_s == 0.1
    status, _, err = run(*words, model=tiny_latent)
    assert status == 0 and err == ["warning: stereo.wav has 32000 Hz and the model 16000 Hz; it is resampled"]
    assert soundfile.info("none.wav").frames == 1600
    clap = write_clap(tmp_path / "clap", 12)
    words = ["--text", "rain", "--steps", "2", "--candidates", "3", "--clap", str(clap), "--out", "best.wav"]
    assert run(*words, model=tiny_latent)[0] == 0
    model = generators.load(tiny_latent, "cpu", clap=str(clap))
    assert isinstance(model, LatentGenerator)
    audio.save(
        "b.wav",
        model.generate(["rain"], 0.1, sampling=Sampling(steps=2, candidates=3))[0],
        16000,
    )
    assert samples("best.wav") == samples("b.wav")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sampler ddim", "sampler 'ddim' does not fit a flow process; use euler or heun"),
        ("--sampler eulr", "sampler 'eulr' does not fit"),
        ("--steps 0", "0 sampling steps; at least 1 is needed"),
        ("--steps=-3", "-3 sampling steps"),
        ("--init clip.wav --strength 1.2", "strength is 1.2; it must be from 0"),
        ("--init clip.wav --strength=-0.1", "strength is -0.1; it must be from 0"),
        ("--init clip.wav --strength nan", "strength is nan"),
        ("--init clip.wav", "nothing is to become of the sound to begin from; give a strength (0.6, say)"),
        ("--init none.wav --upsample", "none.wav: cannot be opened"),
        ("--init text.wav --upsample", "not a sound file"),
        ("--strength 0.5", "--strength says what becomes of a sound; give it with --init"),
        ("--inpaint 0:1", "--inpaint says what becomes"),
        ("--upsample", "--upsample says what becomes"),
        (
            "--init clip.wav --inpaint 0.05:0.3",
            "0.05 s to 0.3 s; it must ascend and lie within the sound, 0 to 0.2",
        ),
        ("--init clip.wav --inpaint 0.1:0.05", "it must ascend"),
        ("--init clip.wav --inpaint=-0.1:0.1", "-0.1 s to 0.1 s; it must ascend and lie within"),
        ("--init clip.wav --inpaint 5:6", "5 s to 6 s; it must ascend and lie within the sound, 0 to 0.2"),
        ("--init clip.wav --inpaint a:b", "--inpaint is 'a:b'; give A:B in seconds"),
        ("--init clip.wav --inpaint 0:nan", "it must ascend"),
        ("--init clip.wav --inpaint 0.1", "--inpaint is '0.1'; give A:B in seconds"),
        ("--init clip.wav --inpaint 0:0.1 --upsample", "choose one"),
        ("--init clip.wav --upsample --duration 0.3", "has 0.2 s and 0.3 s are to be made"),
        ("--duration 61", "at most 60 s"),
        ("--candidates 0", "candidates is 0; it must be from 1 to 64"),
        ("--candidates 2", "CLAP model with an audio branch, which this system lacks"),
        ("--candidates 2 --clap ../nowhere/clap", "CLAP model '../nowhere/clap' cannot be opened"),
        ("--heads two", "--heads is 'two'; give whole numbers"),
        ("--heads 2", "heads (2,), attention"),
        ("--dtype int4", "dtype is 'int4'"),
        ("--text-encoder ../t5", "has no T5 that could be replaced"),
        ("--top-k 5", "--top-k is not for"),
        ("--top-p 0.5", "--top-p is not for"),
        ("--temperature 0", "--temperature is not for"),
        ("--stream", "--stream is not for"),
        ("--continue-from clip.wav", "--continue-from is not for"),
        ("--adapter a", "a holds no adapter: there is no pytorch_lora_weights.safetensors"),
        ("--adapter a:nan", "the adapter a has the weight nan; give a number such as 0.7"),
        ("--peer-padding", "--peer-padding is not for"),
        ("--cuda-graph", "--cuda-graph is not for"),
    ],
)
def test_what_latent_diffusion_cannot_do_is_one_line(run, tiny_latent: Path, words: str, said: str) -> None:
    audio.save("clip.wav", torch.ones(1, 3200) / 4, 16000)
    Path("text.wav").write_text("no sound")
    status, out, err = run("--text", "rain", *words.split(), model=tiny_latent)
    assert (status, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ") and said in err[0], err
    assert files() == ["clip.wav", "text.wav"]


@pytest.mark.parametrize(
    "words",
    [
        "--steps 5",
        "--sampler ddim",
        "--candidates 2",
        "--clap c",
        "--heads 4",
        "--strength 0 --init clip.wav",
    ],
)
def test_what_a_language_model_does_not_have_is_refused_by_name(run, words: str) -> None:
    status, out, err = run("--text", "rain", *words.split())
    name = next(word for word in words.split() if word[:2] == "--" and word != "--init")
    assert (status, out, len(err)) == (2, [], 1) and files() == []
    assert err[0].startswith(f"error: {name} is not for ") and "a token language model" in err[0]


def test_a_latent_system_without_a_component_is_one_line(run, tiny_latent: Path, tmp_path: Path) -> None:
    for component in ("vae", "unet", "vocoder"):
        shutil.copytree(tiny_latent, tmp_path / component)
        shutil.rmtree(tmp_path / component / component)
        status, out, err = run("--text", "rain", model=tmp_path / component)
        assert (status, out, len(err)) == (2, [], 1) and f"lacks {component}" in err[0]
    assert files() == []


def test_nothing_is_said_of_packages_on_the_way_to_a_sound(tiny_latent: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audiogen.generate", "--model", str(tiny_latent), "--steps", "1"]
    command += ["--text", "rain", "--duration", "0.1", "--out", str(tmp_path / "a.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("model", "longest"), [("lafma_tiny", "60"), ("lm_tiny", "3600")])
def test_a_duration_that_cannot_be_is_refused_before_weights_are_read(
    model: str, longest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("audiogen.generators.load.load", read)
    with pytest.raises(InputError, match=f"duration is 3601 s; it must be above 0 and at most {longest} s"):
        main(["--model", model, "--text", "rain", "--duration", "3601", "--out", str(tmp_path / "a.wav")])
