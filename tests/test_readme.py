"""README and docs/finetuning.md are executed: every shell and Python block, in order, in one folder.

Long commands run in a reduced form, and a release with random weights stands for the released ones.

A command that is not in `COMMANDS` fails, so a new block cannot slip in untried. `text` blocks are not run.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiogen.errors import run_command
from audiogen.models.build import load_codec
from audiogen.models.export import save_codec_transformers as save_transformers
from tools import random_release

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FINETUNING = (ROOT / "docs/finetuning.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README + FINETUNING, flags=re.MULTILINE | re.DOTALL)

# What README says -> what runs here, "..." being the command itself.
GENERATE = 'python -m audiogen.generate --text "a dog barks" --text "rain falls"'
SMALL = "fit.steps=1 fit.workers=0 fit.batch_size=2 fit.valid_batches=1 data.segment_s=0.5"
RELEASED_TEXT = "--text-encoder release/text_encoder"
BENCH = f"{shlex.quote(sys.executable)} $ROOT/tools/bench_generate.py --shape tiny --threads 1 --frames 6 --steps 2"
LATENT = f"{SMALL} data.train=synth:4 data.valid=synth:2@100"
COMMANDS: dict[str, str] = {
    "python -m audiogen.train recipe=mel_autoencoder_tiny": f"... {LATENT}",
    # after one step the check would refuse the autoencoder
    "python -m audiogen.train recipe=lafma_tiny": f"... {LATENT} max_reconstruction=100",
    (
        'python -m audiogen.generate --model runs/lafma_tiny --text "rain falls" --steps 25 --sampler euler '
        "--guidance 3"
    ): "... --steps 2 --duration 0.5",
    'python -m audiogen.generate --model lafma_tiny --text "a rooster crows"': "... --steps 2 --duration 0.5",
    (
        "python -m audiogen.train recipe=lafma_tiny init_from=lafma_tiny autoencoder=null text_from=null "
        "data.train=my_sounds/manifest.jsonl out=runs/my_flow"
    ): "... fit.steps=1 fit.workers=0 fit.batch_size=1 fit.valid_batches=1 fit.sample_every=0",
    "python tools/bench_generate.py --shape small": f"{BENCH} --rounds 1 --models packed-float32 packed-int8",
    (
        "python tools/bench_generate.py --shape medium --threads 2 --models transformers-float32 native-bfloat16 "
        "native-int8"
    ): f"{BENCH} --rounds 1 --models transformers-float32 native-bfloat16 native-int8",
    "make demo": f"make --directory $ROOT --dry-run demo | grep --fixed-strings -e {shlex.quote(GENERATE[7:])}",
    "make test": "make --directory $ROOT --dry-run test | grep 'pytest -n 2'",
    "python -m audiogen.train recipe=lm": (
        f"... {SMALL} data.train=synth:16 data.valid=synth:2@100 model.dim=32 model.num_layers=2 model.num_heads=2 "
        "text.width=32 text.dim=32 text.num_layers=1 text.vocab_size=64"
    ),
    f"{GENERATE} --num-samples 2 --out generated": "... --duration 0.2",
    'python -m audiogen.generate --text "rain falls" --stream --out rain.wav': "... --duration 0.3",
    # a player that is closed after half a second
    'python -m audiogen.generate --text "rain falls" --stream --duration inf --out - | aplay': (
        f"( {shlex.quote(sys.executable)} -m audiogen.generate --text 'rain falls' --stream --duration inf --out - "
        "| head -c 16044 > endless.wav ) || [ $(wc -c < endless.wav) -eq 16044 ]"
    ),
    "python -m audiogen.codec encode my_sounds/ -o tokens/": "...",
    "python -m audiogen.codec decode tokens/ -o back/": "...",
    "python -m audiogen.data scan my_sounds/ -o my_sounds/manifest.jsonl": "... --overwrite",
    (
        "python -m audiogen.train recipe=lm_tiny init_from=lm_tiny "
        "data.train=my_sounds/manifest.jsonl out=runs/mine"
    ): f"... {SMALL} pretokenize_epochs=1",
    'python -m audiogen.generate --model runs/mine --text "a bell rings twice"': "... --duration 0.2",
    "python -m audiogen.codec encode my_sounds/manifest.jsonl --shards 1000 -o shards/": "...",
    "python -m audiogen.train recipe=lm_tiny data.train=shards/ out=runs/from_tokens": f"... {SMALL}",
    (
        "python -m audiogen.evaluate codec --codec codec_tiny --data my_sounds/manifest.jsonl "
        "--out evaluation/codec"
    ): "... --opus 12",
    (
        "python -m audiogen.evaluate compare --model lm_tiny --model runs/mine --data my_sounds/manifest.jsonl "
        "--seeds 0,1,2 --out evaluation/compare"
    ): "... --seeds 0 --duration 0.2 --num-clips 2",
    (
        "python -m audiogen.evaluate codec --codec codec_tiny --data esc10/manifest.jsonl "
        "--where fold=4 --where license=CC0,CC-BY --opus 6,8,12,16"
    ): "...",
    (
        "python -m audiogen.evaluate compare --model lm_tiny --data esc10/manifest.jsonl --where fold=4 "
        "--where license=CC0,CC-BY --reference-where fold=1,2,3 --order-prompts 60"
    ): "... --order-prompts 1 --duration 1.3",
    # Released models: one of their layout with random weights stands for them.
    'python -m audiogen.generate --model facebook/audiogen-medium --text "a train passes, then birds sing"': (
        f"python -m audiogen.generate --model release {RELEASED_TEXT} --duration 0.2 --text 'a train passes'"
    ),
    "python -m audiogen.codec encode my_sounds/ --codec facebook/encodec_24khz --bandwidth 6 -o encodec/": (
        "python -m audiogen.codec encode my_sounds/ --codec encodec_directory --bandwidth 0.5 -o encodec/"
    ),
    (
        "python -m audiogen.convert facebook/audiogen-medium --to transformers -o audiogen-medium-transformers/"
    ): f"python -m audiogen.convert release {RELEASED_TEXT} --to transformers -o audiogen-medium-transformers/",
    (
        "python -m audiogen.train recipe=lm_lora init_from=facebook/musicgen-small "
        "data.train=my_sounds/manifest.jsonl out=runs/adapter"
    ): (
        "python -m audiogen.train recipe=lm_lora init_from=release text_encoder=release/text_encoder "
        f"data.train=my_sounds/manifest.jsonl out=runs/adapter {SMALL} fit.accumulate=1"
    ),
    (
        "python -m audiogen.generate --model facebook/musicgen-small --adapter runs/adapter "
        '--text "a bell rings three times"'
    ): (
        f"python -m audiogen.generate --model release {RELEASED_TEXT} --adapter runs/adapter --duration 0.2 "
        "--text 'a bell rings three times'"
    ),
    (
        "python -m audiogen.train recipe=lm_lora init_from=facebook/audiogen-medium "
        "data.train=my_sounds/manifest.jsonl data.segment_s=10 out=runs/bells"
    ): (
        "python -m audiogen.train recipe=lm_lora init_from=release text_encoder=release/text_encoder "
        f"data.train=my_sounds/manifest.jsonl out=runs/bells {SMALL} fit.accumulate=1"
    ),
    (
        "python -m audiogen.generate --model facebook/audiogen-medium --adapter runs/bells "
        '--text "a small bell rings"'
    ): (
        f"python -m audiogen.generate --model release {RELEASED_TEXT} --adapter runs/bells --duration 0.2 "
        "--text 'a small bell rings'"
    ),
    "python -m audiogen.train recipe=lm_tiny_finetune data.train=my_sounds/ out=runs/piano": (
        f"... {SMALL} pretokenize_epochs=1"
    ),
    (
        'python -m audiogen.generate --model lm_tiny --adapter runs/piano/best --text "a piano plays a note"'
    ): "... --duration 0.2",
    "python -m audiogen.convert facebook/audiogen-medium --adapter runs/bells --to audiogen -o merged/": (
        f"python -m audiogen.convert release {RELEASED_TEXT} --adapter runs/bells --to audiogen -o merged/"
    ),
    (
        "python -m audiogen.evaluate compare --model facebook/audiogen-medium --model merged "
        "--data my_sounds/manifest.jsonl --out evaluation/finetuned"
    ): (
        "python -m audiogen.evaluate compare --model merged --data my_sounds/manifest.jsonl "
        "--out evaluation/finetuned --seeds 0 --duration 0.2 --num-clips 2"
    ),
    (
        "python -m audiogen.evaluate files --reference my_sounds/ --generated back/ --out evaluation/files"
    ): "...",
}

# Python blocks run as they are but for these words.
SHORTER = {"duration_s=5.0": "duration_s=0.2", "duration_s=2.0": "duration_s=0.2"}


def commands(block: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments dropped."""
    lines = (line.strip() for line in block.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def run(command: str) -> int:
    """Exit status. Our own verbs run in this process, for torch is imported here already; the rest in bash."""
    words = shlex.split(command)
    if words[:2] != ["python", "-m"]:
        environment = os.environ | {"ROOT": str(ROOT)}
        bash = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(bash, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    package = ROOT / words[2].replace(".", "/")
    module = importlib.import_module(f"{words[2]}.__main__" if package.is_dir() else words[2])
    with warnings.catch_warnings():
        return run_command(module.main, words[3:])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: a few captioned sounds of their own, and as many that stand for ESC-10."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_sounds").mkdir()
    (folder / "esc10").mkdir()
    seconds = np.arange(16000) / 16000
    for number, word in enumerate(["low", "deep", "high", "bright", "soft"]):
        tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * seconds) * np.exp(-3 * seconds)
        soundfile.write(folder / "my_sounds" / f"bell_{number}.wav", tone, 16000)
        (folder / "my_sounds" / f"bell_{number}.txt").write_text(f"a {word} bell rings\n")
    lines = [
        {
            "audio": f"../my_sounds/bell_{number}.wav",
            "captions": ["It is raining"],
            "label": "rain",
            "fold": fold,
            "license": ["CC0", "CC-BY"][number % 2],
        }
        for number, fold in enumerate([1, 2, 3, 4, 4])
    ]
    (folder / "esc10" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    random_release.build(folder / "release", random_release.SIZES["tiny"], text_encoder=True)
    save_transformers(folder / "encodec_directory", load_codec(folder / "release"))
    return folder


@pytest.mark.parametrize("number", [i for i, (language, _) in enumerate(BLOCKS) if language == "sh"])
def test_shell_block(number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    for command in commands(BLOCKS[number][1]):
        assert command in COMMANDS, f"README has a new command: say in COMMANDS how it is tried: {command}"
        assert run(COMMANDS[command].replace("...", command)) == 0, f"failed: {command}"


@pytest.mark.parametrize("number", [i for i, (language, _) in enumerate(BLOCKS) if language == "python"])
def test_python_block(number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    code = BLOCKS[number][1]
    for said, shorter in SHORTER.items():
        code = code.replace(said, shorter)
    exec(compile(code, f"README.md block {number}", "exec"), {"__name__": "readme"})


def test_every_block_is_run_or_plain_text() -> None:
    assert not [body for language, body in BLOCKS if language not in ("sh", "python", "text")]
    said = [command for language, body in BLOCKS if language == "sh" for command in commands(body)]
    assert not [command for command in COMMANDS if command not in said], (
        "no longer in README: remove them here"
    )
    code = "".join(body for language, body in BLOCKS if language == "python")
    assert not [word for word in SHORTER if word not in code]


def test_the_table_of_folders_is_complete() -> None:
    table = README.partition("## Where things are")[2].partition("\n\nRead ")[0]
    listed = set(re.findall(r"`(\w+)/`", table))
    present = {path.name for path in (ROOT / "audiogen").iterdir() if path.is_dir()} - {"__pycache__"}
    assert listed - {"synth"} == present
