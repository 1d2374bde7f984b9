"""How much memory the commands take: the most that was resident in their process at once, Python and PyTorch included.

    python tools/command_memory.py
    python tools/command_memory.py --only "lafma" "hour" --threads 1
    python tools/command_memory.py --json figures.jsonl

Sounds of an hour, releases with random weights (tools/random_release.py) and outputs lie in a folder of their own
(--folder) that stays, so that one kind of command can be measured again. Trainings take three steps of their recipe's
batch on built-in sounds. Processor time is printed beside it, for it says how long one waits. Unix only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from audiogen.errors import InputError, run_command

ROOT = Path(__file__).resolve().parent.parent
DATA = "data.train=synth:64 data.valid=synth:8@100 fit.steps=3 fit.valid_batches=1 fit.sample_every=0"
TRAINED = (  # in this order: later ones take what earlier ones made; what is added to the recipe
    ("codec_tiny", ""),
    ("codec_tiny_decoder", "init_from=codec_tiny"),
    ("lm_tiny", "pretokenize_epochs=1"),
    ("lm_tiny_finetune", ""),
    ("mel_autoencoder_tiny", ""),
    ("waveform_autoencoder_tiny", ""),
    ("lafma_tiny", "autoencoder={}/mel_autoencoder_tiny max_reconstruction=100"),
    ("lafma_tiny_fast", "init_from=lafma_tiny"),
    ("audioldm_tiny", "autoencoder={}/mel_autoencoder_tiny max_reconstruction=100"),
    ("audioldm2_tiny", "autoencoder={}/mel_autoencoder_tiny max_reconstruction=100"),
    ("tango_tiny", "autoencoder={}/mel_autoencoder_tiny max_reconstruction=100"),
    ("stable_audio_tiny", "autoencoder={}/waveform_autoencoder_tiny max_reconstruction=100"),
    ("tangoflux_tiny", "autoencoder={}/waveform_autoencoder_tiny max_reconstruction=100"),
    ("clap_tiny", ""),
    ("tagger_tiny", ""),
    # AudioGen's codec in place of a trained one, and a text encoder of our own in place of a T5 of the hub
    ("lm_small", "codec={}/small text.encoder=embedded pretokenize_epochs=1 fit.batch_size=8 fit.workers=0"),
)
# A process without PyTorch starts each command: a child's peak counts what its parent held.
ALONE = (
    "import os, sys; pid = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); "
    "_, status, used = os.wait4(pid, 0); print(used.ru_maxrss, used.ru_utime + used.ru_stime); "
    "sys.exit(os.waitstatus_to_exitcode(status) != 0)"
)


class Command(NamedTuple):
    """A line of the table, and the arguments of `python -m` or of a file."""

    name: str
    arguments: str


def commands(folder: Path) -> Iterator[Command]:
    """What is measured, in an order in which each finds what it reads."""
    say = f"--text dog_barks --overwrite --out {folder}/sounds"
    for dtype in ("float32", "bfloat16", "int8"):
        yield Command(
            f"generate, lm_tiny {dtype}, 5 s", f"audiogen.generate --model lm_tiny --dtype {dtype} {say}"
        )
    yield Command(
        "generate, lm_tiny, 32 sounds of 5 s", f"audiogen.generate --model lm_tiny {say} --num-samples 32"
    )
    yield Command("generate, lm_tiny, 60 s", f"audiogen.generate --model lm_tiny {say} --duration 60")
    stream = f"--text dog_barks --overwrite --stream --duration 60 --out {folder}/stream.wav"
    yield Command("generate, lm_tiny, stream of 60 s", f"audiogen.generate --model lm_tiny {stream}")
    yield Command("generate, lafma_tiny, 5 s", f"audiogen.generate --model lafma_tiny {say}")
    yield Command(
        "generate, lafma_tiny, 32 sounds", f"audiogen.generate --model lafma_tiny {say} --num-samples 32"
    )
    for size in ("small", "medium"):
        yield Command(
            f"prepare, {size}",
            f"{ROOT}/tools/random_release.py build {folder}/{size} --size {size} --text-encoder",
        )
        release = f"--model {folder}/{size} --text-encoder {folder}/{size}/text_encoder --duration 1"
        for dtype in ("float32", "bfloat16", "int8"):
            yield Command(
                f"generate, MusicGen {size}'s sizes {dtype}, 1 s",
                f"audiogen.generate {release} --dtype {dtype} {say}",
            )
    hour = f"{folder}/hour.wav --overwrite -o {folder}/hour"
    yield Command("codec encode, codec_tiny, an hour", f"audiogen.codec encode {hour}")
    yield Command(
        "codec decode, codec_tiny, an hour",
        f"audiogen.codec decode {folder}/hour --overwrite -o {folder}/back",
    )
    yield Command(
        "codec encode, AudioGen's, an hour", f"audiogen.codec encode {hour}_seanet --codec {folder}/small"
    )
    for recipe, more in TRAINED:
        yield Command(
            f"train, {recipe}",
            f"audiogen.train recipe={recipe} out={folder}/{recipe} {DATA} {more.format(folder)}",
        )


def an_hour(path: Path) -> None:
    """Mono noise at 16 kHz, the same second again and again."""
    if path.exists():
        return
    levels = random.Random(0)
    second = b"".join(levels.randrange(-3000, 3000).to_bytes(2, "little", signed=True) for _ in range(16000))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        for _ in range(3600):
            file.writeframesraw(second)


def measure(command: Command, threads: int, limit_s: float) -> tuple[float, float] | None:
    """Megabytes and seconds of processors; None, and a line, where it failed."""
    first, *rest = command.arguments.split()
    for word in rest:
        if word.startswith("out="):  # a run that is there would be resumed, at its end
            shutil.rmtree(word.removeprefix("out="), ignore_errors=True)
    program = [sys.executable, first] if first.endswith(".py") else [sys.executable, "-m", first]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, "-c", ALONE, *program, *rest]
    with subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the command, too
            print(f"{command.name} is left out: it takes more than {limit_s:g} s", flush=True)
            return None
    if process.returncode:
        print(f"{command.name} is left out: {(errors.strip() or 'it failed').splitlines()[-1]}", flush=True)
        return None
    kilobytes, seconds = out.splitlines()[-1].split()
    return int(kilobytes) / (1e6 if sys.platform == "darwin" else 1e3), float(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="commands whose line has any of these words")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds that a command may take")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "memory")
    parser.add_argument("--json", type=Path, help="file to add lines of JSON to")
    args = parser.parse_args(argv)
    if not hasattr(os, "wait4"):
        raise InputError("the peak of a command's memory is what Unix counts; this system does not")
    args.folder.mkdir(parents=True, exist_ok=True)
    an_hour(args.folder / "hour.wav")
    print("| command | MB | s of processors |\n|---|---|---|", flush=True)
    for command in commands(args.folder.resolve()):
        if not any(word in command.name for word in args.only) or not (
            found := measure(command, args.threads, args.limit)
        ):
            continue
        megabytes, seconds = found
        if not command.name.startswith("prepare"):
            print(f"| {command.name} | {megabytes:,.0f} | {seconds:.0f} |", flush=True)
        if args.json:
            row = {"bench": "memory", "command": command.name, "MB": megabytes, "processor s": seconds}
            with open(args.json, "a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
