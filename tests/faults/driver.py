"""Run commands on a file system that fails at its n-th call, for every n, and say what went wrong with them.

    LD_PRELOAD=shim.so python tests/faults/driver.py WORK [--at N] [--only NAME,..] [--signals N]

WORK holds `in/` and `reference/` afterwards, and nothing of the runs. For each scenario and each n a forked child runs
the command in a fresh folder with the n-th write (open, write, fsync, rename, mkdir) below it failing, or the n-th
read of its input. Afterwards: status 0, or status 2 and one line on stderr; no half-written file; the same command
without faults succeeds, and its files are those of an undisturbed run. --at: only N places of each scenario.

--signals: in place of faults, SIGKILL at N random moments, SIGINT and SIGTERM at half as many. After SIGKILL a hidden
file may be left of a command that does not lock its folder; the other two leave nothing, and end in one line.
"""

import argparse
import ctypes
import errno
import filecmp
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import torch

from audiogen import audio
from audiogen.errors import run_command
from audiogen.files.locks import LOCK
from audiogen.files.writing import TEMPORARY

TIMEOUT_S = 120
SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])


@dataclass(frozen=True)
class Scenario:
    """A command: what `python -m audiogen.VERB` is given, with {out} and {in} for folders."""

    name: str
    verb: str
    words: str
    repeats: str = ""  # what the second run needs in addition
    # Files that two runs do not write alike: with times in them, and checkpoints that a fault kept from deletion.
    unlike: str = r"log\.jsonl|checkpoints/step_00000001/.*"


SCENARIOS = (
    Scenario(
        "generate", "generate", "--text dog --text rain --duration 0.2 --out {out}", repeats="--overwrite"
    ),
    Scenario(
        "formats", "generate", "--text dog --duration 0.2 --format flac --out {out}", repeats="--overwrite"
    ),
    Scenario(
        "stream", "generate", "--text dog --duration 0.5 --stream --out {out}/a.wav", repeats="--overwrite"
    ),
    Scenario("encode", "codec encode", "{in}/sounds --out {out}"),
    Scenario("shards", "codec encode", "{in}/sounds --shards 2 --out {out}"),
    Scenario("decode", "codec decode", "{in}/tokens --out {out}", repeats="--overwrite"),
    Scenario("scan", "data scan", "{in}/sounds --out {out}/manifest.jsonl", repeats="--overwrite"),
    Scenario("train", "train", "recipe={in}/lm.yaml out={out}"),
    Scenario("codec", "train", "recipe={in}/codec.yaml out={out}"),
    Scenario(
        "denoiser",
        "train",
        "recipe={in}/denoiser.yaml out={out}",
    ),
    Scenario("evaluate", "evaluate files", "--reference {in}/sounds --generated {in}/sounds --out {out}"),
)

LM = """
task: lm
codec: codec_tiny
model: {{num_codebooks: 8, codebook_size: 512, dim: 16, num_layers: 1, num_heads: 2}}
text: {{width: 16, vocab_size: 40, dim: 8, num_layers: 1, num_heads: 2}}
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: {sounds}, valid: {sounds}, segment_s: 0.2}}
fit: {{steps: 2, batch_size: 2, log_every: 1, valid_every: 1, save_every: 1, keep_last: 2, ema_decay: 0.9, device: cpu}}
"""

CODEC = """
task: codec
model:
  sample_rate: 2000
  arch: spectral
  spectral: {{n_fft: 80, hop_length: 40, width: 16, num_encoder_blocks: 1, num_decoder_blocks: 1, kernel_size: 3}}
  latent_dim: 6
  num_codebooks: 3
  codebook_size: 8
loss: {{mel_windows: [64, 128]}}
discriminator: {{n_ffts: [64], num_filters: 2, dilations: [1]}}
data: {{train: {sounds}, valid: {sounds}, segment_s: 0.2}}
fit: {{steps: 2, batch_size: 2, log_every: 1, valid_every: 1, save_every: 1, keep_last: 2, ema_decay: 0.9, device: cpu}}
"""

MEL = """
mel_autoencoder:
  channels: [8, 16]
  num_res_blocks: 1
  latent_dim: 4
  norm_groups: 4
  mid_attention: false
  mel: {{sample_rate: 2000, n_fft: 64, hop_length: 20, num_mels: 16, f_max: 1000.0}}
  vocoder: null
"""

AUTOENCODER = f"""
task: autoencoder
{MEL}
loss: {{{{mel_windows: [64, 128], adversarial: 0, feature_matching: 0}}}}
data: {{{{train: {{sounds}}, valid: {{sounds}}, segment_s: 0.5}}}}
fit: {{{{steps: 2, batch_size: 2, valid_every: 0, save_every: 0, device: cpu}}}}
"""

DENOISER = f"""
task: diffusion
kind: lafma
autoencoder: {{autoencoder}}
max_reconstruction: 99.0
system:
{indent(MEL.strip(), "  ")}
  conditioner: {{{{cross: [[text]], text: {{{{width: 24, vocab_size: 40, dim: 16, num_layers: 1, num_heads: 2}}}}}}}}
  audio_unet: {{{{latent_dim: 4, channels: [16, 32], heads: [2, 2], attention: [false, true], num_res_blocks: 1,
    norm_groups: 4, layers: [24, 24], vector_dim: null}}}}
process: {{{{kind: flow, prediction: velocity}}}}
sampling: {{{{steps: 2, sampler: euler}}}}
optim: {{{{lr: 1e-2, warmup_steps: 2}}}}
data: {{{{train: {{sounds}}, valid: {{sounds}}, segment_s: 0.5}}}}
fit: {{{{steps: 2, batch_size: 2, log_every: 1, valid_every: 1, save_every: 1, keep_last: 2, ema_decay: 0.9,
  device: cpu}}}}
"""


def prepare(folder: Path) -> None:
    """Sounds, tokens and a recipe to work on."""
    random = torch.Generator().manual_seed(0)
    for number in range(5):
        path = folder / "sounds" / f"{'dog' if number % 2 else 'rain'} {number}.wav"
        audio.save(path, 0.1 * torch.randn(1, 8000, generator=random), 16_000)
    names = {"sounds": folder / "sounds", "autoencoder": folder / "autoencoder"}
    for name, text in {"lm": LM, "codec": CODEC, "autoencoder": AUTOENCODER, "denoiser": DENOISER}.items():
        (folder / f"{name}.yaml").write_text(text.format(**names))
    status, text = run("train", [f"recipe={folder}/autoencoder.yaml", f"out={folder}/autoencoder"])
    assert status == 0, text
    status, text = run("codec encode", ["--out", str(folder / "tokens"), str(folder / "sounds")])
    assert status == 0, text


def run(
    verb: str,
    words: Sequence[str],
    fault: tuple[str, int, int, int, int] | None = None,
    stop: tuple[int, float] | None = None,
) -> tuple[int, str]:
    """Run a command in a child -> (status, stderr, with the calls counted at its end); fault: as the shim is armed.

    stop: a signal, and after how many seconds it comes.
    """
    errors = Path(os.environ["SCRATCH"]) / "stderr"
    child = os.fork()
    if child == 0:
        begun = False
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
            signal.alarm(TIMEOUT_S)
            # an interrupt that a finaliser swallows before the command has begun is none of its
            sys.unraisablehook = lambda ignored: os._exit(130)
            for number, path in ((1, os.devnull), (2, errors)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            package, *command = verb.split()
            main = __import__(f"audiogen.{package}.__main__", fromlist=["main"]).main
            begun, sys.unraisablehook = True, sys.__unraisablehook__
            if fault is not None:
                SHIM.fault_arm(fault[0].encode(), *fault[1:])
            status = run_command(main, [*command, *words])
            calls = SHIM.fault_calls()
            SHIM.fault_arm(b"", 0, 0, 0, 0)
            print(f"\ncalls {calls}", file=sys.stderr, flush=True)
            os._exit(status)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not begun:
                os._exit(130)
            import traceback

            traceback.print_exc()
            os._exit(99)
    if stop is not None:
        time.sleep(stop[1])
        with suppress(ProcessLookupError):
            os.killpg(child, stop[0])
    _, status = os.waitpid(child, 0)
    try:
        for _ in range(
            20
        ):  # a compiler that was asked for its version, or one of the dead that nobody has collected
            os.killpg(child, 0)
            time.sleep(0.1)
        os.killpg(child, signal.SIGKILL)
        return 98, f"processes of {verb} are left: {errors.read_text(errors='replace')}"
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(status), errors.read_text(errors="replace")


def differing(one: Path, other: Path, unlike: str) -> list[str]:
    """Files that only one folder has, or that differ."""
    names = {
        str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*") if path.is_file()
    }
    alike = [name for name in sorted(names) if not re.fullmatch(unlike, name)]
    return [
        name
        for name in alike
        if not (
            (one / name).is_file()
            and (other / name).is_file()
            and filecmp.cmp(one / name, other / name, False)
        )
    ]


def places(calls: int, at: int | None) -> list[int]:
    """Which calls fail: all, or `at` of them, evenly spread."""
    at = calls if at is None else min(at, calls)
    return [1 + (2 * k + 1) * calls // (2 * at) for k in range(at)]


def trials(scenario: Scenario, work: Path, at: int | None) -> Iterator[tuple[str, str | None]]:
    """-> (the fault, what is wrong after it or None) of each trial."""
    given, reference = work / "in", work / "reference" / scenario.name
    out = work / "out"

    def words(folder: Path, more: str = "") -> list[str]:
        text = f"{scenario.words} {more}".replace("{out}", str(folder)).replace("{in}", str(given))
        return text.split()

    shutil.rmtree(out, ignore_errors=True)
    status, text = run(scenario.verb, words(out))
    assert status == 0, f"{scenario.name}: {text}"
    shutil.rmtree(reference, ignore_errors=True)
    reference.parent.mkdir(exist_ok=True)
    out.rename(reference)
    for kind, number, stays, reads in (
        ("full disk", errno.ENOSPC, 1, 0),
        ("fault of the disk", errno.EIO, 0, 0),
        ("fault in reading", errno.EIO, 0, 1),
    ):
        where = given if reads else out
        shutil.rmtree(out, ignore_errors=True)
        _, text = run(scenario.verb, words(out), (str(where), 0, number, 0, reads))
        calls = int(text.rpartition("calls ")[2])
        for nth in places(calls, at):
            shutil.rmtree(out, ignore_errors=True)
            name = f"{scenario.name}: {kind} at call {nth} of {calls}"
            status, text = run(scenario.verb, words(out), (str(where), nth, number, stays, reads))
            yield name, wrong(scenario, status, text, out)
            # Shards have at their end what could not be read at first; a training warns, and goes on without it.
            unlike = (reads and scenario.name == "shards") or (status == 0 and scenario.verb == "train")
            status, text = run(scenario.verb, words(out, scenario.repeats))
            # Latents that were made without a sound are not used for a list of sounds that has it.
            if status == 2 and reads and unlike and "latents made with other settings (clips)" in text:
                continue
            if status != 0:
                yield f"{name}, once more", f"status {status}: {text[-600:]}"
            elif unlike:
                continue
            elif found := differing(out, reference, scenario.unlike):
                yield f"{name}, once more", f"other files than without a fault: {found}"


def interruptions(scenario: Scenario, work: Path, count: int) -> Iterator[tuple[str, str | None]]:
    """-> (the signal and its moment, what is wrong after it or None) of each trial."""
    given, reference, out = work / "in", work / "reference" / scenario.name, work / "out"
    text = scenario.words.replace("{out}", str(out)).replace("{in}", str(given))
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    status, said = run(scenario.verb, text.split())
    lasts_s = time.monotonic() - began
    assert status == 0, f"{scenario.name}: {said}"
    shutil.rmtree(reference, ignore_errors=True)
    reference.parent.mkdir(exist_ok=True)
    out.rename(reference)
    random = torch.Generator().manual_seed(0)
    for number, endings in ((signal.SIGKILL, (-9,)), (signal.SIGINT, (130,)), (signal.SIGTERM, (143,))):
        for _ in range(count if number == signal.SIGKILL else (count + 1) // 2):
            shutil.rmtree(out, ignore_errors=True)
            at_s = lasts_s * float(torch.rand(1, generator=random))
            name = f"{scenario.name}: {number.name} after {at_s:.3f} of {lasts_s:.3f} s"
            status, said = run(scenario.verb, text.split(), stop=(number, at_s))
            if status not in (0, *endings) or "Traceback" in said:
                yield name, f"status {status}: {said[-1500:]}"
            left = [
                str(path) for path in out.rglob(f"{TEMPORARY}*")
            ]  # the file of a lock is free, whoever left it
            yield name, f"left behind: {left}" if left and number != signal.SIGKILL else None
            status, said = run(scenario.verb, f"{text} {scenario.repeats}".split())
            for path in [*out.glob(f"{TEMPORARY}*"), *out.glob(LOCK)]:
                path.unlink()
            if status != 0:
                yield f"{name}, once more", f"status {status}: {said[-600:]}"
            elif found := differing(out, reference, scenario.unlike):
                yield f"{name}, once more", f"other files than of an undisturbed run: {found}"


def wrong(scenario: Scenario, status: int, text: str, out: Path) -> str | None:
    """What is wrong after a run with a fault."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if status not in (0, 1, 2) or "Traceback" in text:
        return f"status {status}: {text[-1500:]}"
    if (status != 0) != (len(lines) == 1):
        return f"status {status} with {len(lines)} errors: {text[-600:]}"
    left = [str(path) for path in out.rglob("*") if path.name.startswith((TEMPORARY, LOCK))]
    return f"left behind: {left}" if left else None


def main() -> int:
    """-> 1 where something is wrong; one line of JSON for each scenario."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--at", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--signals", type=int, metavar="N")
    given = parser.parse_args()
    work = given.work.resolve()
    os.environ["SCRATCH"] = str(work)
    prepare(work / "in")
    findings = 0
    for scenario in SCENARIOS:
        if given.only and scenario.name not in given.only.split(","):
            continue
        began, count = time.monotonic(), 0
        found = (
            interruptions(scenario, work, given.signals)
            if given.signals
            else trials(scenario, work, given.at)
        )
        for name, what in found:
            count += "once more" not in name
            if what is not None:
                findings += 1
                print(json.dumps({"fault": name, "wrong": what}), flush=True)
        spent_s = round(time.monotonic() - began)
        print(json.dumps({"scenario": scenario.name, "faults": count, "s": spent_s}), flush=True)
    return min(findings, 1)


if __name__ == "__main__":
    # Before forking: what takes seconds to import (PyTorch's optimisers need _dynamo), and no threads.
    torch.set_num_threads(1)
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401

    from audiogen.codec import decode, encode  # noqa: F401
    from audiogen.data.synth import corpus  # noqa: F401
    from audiogen.generate import run as _run  # noqa: F401
    from audiogen.train import autoencoder, diffusion, lm  # noqa: F401

    sys.exit(main())
