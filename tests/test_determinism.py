"""The same seed and settings give the same bytes with one thread and with two, in new processes and a forked one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from audiogen.codec.__main__ import main as encode
from audiogen.generate.__main__ import main as generate

# What the bundled models make, and the codes of a sound, as digests; a forked process makes the language model's again.
PROGRAM = """
import hashlib, os, sys, torch
from audiogen import audio
from audiogen.codec.segmented import in_segments
from audiogen.generators.load import load
from audiogen.models.build import load_codec
from audiogen.models.find import find

assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])

def show(*facts):
    *name, samples = facts
    print(*name, hashlib.sha256(samples.contiguous().numpy().tobytes()).hexdigest(), flush=True)

sound, _ = audio.load(sys.argv[1])
show("codes", in_segments(load_codec("codec_tiny", "cpu")).encode(sound[None], 8)[0].codes)
latent = load(find("lafma_tiny"), "cpu", "float32")
show("lafma_tiny", latent.generate(["rain"], 0.3, seed=3))
show("lafma_tiny", latent.generate(["waves break on the shore"], 0.4, seed=3))
for dtype in ("float32", "int8"):
    model = load(find("lm_tiny"), "cpu", dtype)
    # six tokens, for which MKL's products depend on the threads where there is AVX-512
    show("lm_tiny", dtype, model.generate(["waves break on the shore"], 0.2, seed=3))
    show("lm_tiny", dtype, model.generate(["rain", "a dog barks"], 0.2, seed=[3, 4])[0])
    show("lm_tiny", dtype, model.generate(["rain"], 0.2, seed=3)[0])
# GNU's OpenMP waits for ever in a fork of a process that computed with several threads: PyTorch's limit, not ours.
if torch.get_num_threads() > 1 or os.fork() == 0:
    show("lm_tiny", dtype, model.generate(["rain"], 0.2, seed=3)[0])
else:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_threads_processes_and_batches_change_no_byte(tmp_path: Path) -> None:
    """Real models, since small random ones take other ways through the products: seconds a process."""
    sound = tmp_path / "a.wav"
    soundfile.write(
        sound, torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy() / 10, 16_000
    )
    said = []
    for threads in ("1", "2"):
        own = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(sound)],
            env=own,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        said.append([line.rsplit(" ", 1) for line in run.stdout.splitlines()])
    assert said[0] == said[1]
    lines = said[0]
    assert [name for name, _ in lines] == [
        "codes",
        *["lafma_tiny"] * 2,
        *["lm_tiny float32"] * 3,
        *["lm_tiny int8"] * 4,
    ]
    assert len({digest for _, digest in lines}) == 7  # batch, alone and forked are one


def test_a_slow_disk_and_a_clock_that_jumps_change_no_byte(
    tmp_path: Path,
    tiny_model: Path,
    odd_machine: Callable[[], list[float]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a stream and of token files; what is printed of times and speeds stays in bounds."""
    (tmp_path / "in").mkdir()
    for seed in range(2):
        noise = torch.randn(4000, generator=torch.Generator().manual_seed(seed)).numpy() / 10
        soundfile.write(tmp_path / "in" / f"{seed}.wav", noise, 8000)
    made = []
    for name in ("steady", "odd"):
        slow = odd_machine() if name == "odd" else []
        out = str(tmp_path / name)
        words = [
            "--model",
            str(tiny_model),
            "--text",
            "rain",
            "--duration",
            "0.3",
            "--stream",
            "--out",
            f"{out}/a.wav",
        ]
        assert generate(words) == 0
        assert encode(["encode", str(tmp_path / "in"), "-o", out, "--codec", str(tiny_model / "codec")]) == 0
        said = capsys.readouterr().out
        assert not re.search(r"[ (]-\d", said) and "encoded 2 clips" in said
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert slow and made[0] == made[1] and len(made[0]) == 3
