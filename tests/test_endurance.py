"""Memory and open files stay flat: the tool that watches long runs sees a leak, and short runs leave no object."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.codec.segmented import in_segments
from audiogen.codec.transcode import Clip, Sound, encode_clips
from audiogen.errors import InputError
from audiogen.generate.files import write
from audiogen.generate.jobs import Job
from audiogen.generate.options import parse_arguments
from audiogen.generators.token import AudioGen
from audiogen.models.build import load_codec
from tools.endurance import slopes, watch

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="read from /proc, which Linux has")

LOOP = """
import pathlib, time
kept = []
for done in range(1, 41):
    {step}
    pathlib.Path("done").write_text(str(done))
    time.sleep(0.02)
"""
LEAKS = {
    "memory": "kept.append(bytearray(200_000))",
    "files": "kept.append(open('done', 'a'))",
    "": "bytearray(200_000)",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_has_a_slope(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 kB and a file each time are 200 MB (less what the allocator had) and 1,000 files in 1,000."""
    monkeypatch.chdir(tmp_path)
    step = tmp_path / "done"
    readings = watch(
        [sys.executable, "-c", LOOP.format(step=LEAKS[leak])],
        lambda: int(step.exists() and step.read_text() or 0),
        0.005,
    )
    memory, files = slopes(readings)
    assert 150 < memory < 250 if leak == "memory" else abs(memory) < 30
    assert 900 < files < 1100 if leak == "files" else files == pytest.approx(0, abs=1e-6)


def test_a_command_that_fails_is_no_flat_run() -> None:
    with pytest.raises(InputError, match="ended with 3: so it is"):
        watch([sys.executable, "-c", "print('so it is'); raise SystemExit(3)"], lambda: 0, 0.005)
    with pytest.raises(InputError, match="too few"):
        slopes([])


def test_a_command_without_end_is_terminated(tmp_path: Path) -> None:
    endless = "import itertools, pathlib, signal, sys, time\n"
    endless += "signal.signal(signal.SIGTERM, lambda *given: sys.exit(int(sys.argv[2])))\n"
    endless += "for n in itertools.count(1): pathlib.Path(sys.argv[1]).write_text(str(n)); time.sleep(0.01)"
    step = tmp_path / "done"
    for status in ("143", "2"):
        step.unlink(missing_ok=True)
        command = [sys.executable, "-c", endless, str(step), status]
        try:
            readings = watch(command, lambda: int(step.exists() and step.read_text() or 0), 0.005, stop_at=30)
            assert status == "143" and readings[-1].done >= 30
        except InputError as error:
            assert status == "2" and "ended with 2" in str(error)


def grown(step: Callable[[int], object], count: int, settle: int) -> tuple[int, int, int]:
    """Python objects, bytes of tensors and open files that `count` calls leave after the first `settle`."""

    def now() -> tuple[int, int, int]:
        gc.collect()
        objects = gc.get_objects()
        # Of those that hold memory; other tests leave some that only have sizes.
        tensors = [item for item in objects if type(item) in (torch.Tensor, torch.nn.Parameter)]
        return len(objects), sum(item.nbytes for item in tensors), len(os.listdir("/proc/self/fd"))

    for number in range(settle):
        step(number)
    before = now()
    for number in range(count):
        step(number)
    objects, tensors, files = (after - first for after, first in zip(now(), before, strict=True))
    return objects, tensors, files


def flat(step: Callable[[int], object], count: int, settle: int = 5) -> bool:
    """No call leaves an object, a tensor or a file."""
    objects, tensors, files = grown(step, count, settle)
    print(f"{objects} objects, {tensors} bytes of tensors, {files} files")
    return objects < count and tensors <= 0 and files <= 0


def test_what_a_leak_leaves() -> None:
    kept: list[object] = []
    assert flat(lambda number: torch.zeros(9), 50)
    assert not flat(lambda number: kept.append([number]), 50)
    assert not flat(lambda number: kept.append(torch.zeros(9)), 50)
    assert not flat(lambda number: kept.append(open("/dev/null")), 50)  # noqa: SIM115


def test_generations_and_streams_leave_nothing(tmp_path: Path) -> None:
    generator = AudioGen.from_pretrained("lm_tiny", dtype="float32")
    job = Job(tmp_path / "a.wav", "rain", 0.04, 0)

    def generate(number: int) -> None:
        sound = generator.generate([job.text], job.duration_s, seed=number)[0]
        audio.save(job.path, sound, generator.sample_rate)

    assert flat(generate, 40)
    args = parse_arguments(["--text", "rain", "--model", "lm_tiny", "--overwrite"])
    args.inputs = {}
    silence, rate = torch.zeros(1, 640), generator.sample_rate
    assert flat(lambda number: write(args, job, silence, rate, generator), 5)
    generator.max_frames = 20  # short windows, of which many pass
    blocks = generator.stream("rain", None, seed=0)
    assert flat(lambda number: next(blocks), 20, settle=10)


def test_encoded_clips_leave_nothing(tmp_path: Path) -> None:
    codec = in_segments(load_codec("codec_tiny", "cpu"))
    soundfile.write(tmp_path / "a.wav", torch.rand(1600).numpy(), 16_000)
    coming = encode_clips(codec, (Sound(str(n), Path("a"), tmp_path / "a.wav") for n in range(10_000)), 4)
    assert flat(lambda number: isinstance(next(coming), Clip), 200)
    coming.close()  # type: ignore[attr-defined]
