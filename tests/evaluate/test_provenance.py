"""Sounds that a comparison generated say so, and how to make them again; the real ones beside them say nothing."""

import shlex
from pathlib import Path

import soundfile

from audiogen import provenance
from audiogen.errors import run_command
from audiogen.evaluate import compare
from audiogen.evaluate.systems import Comparison
from audiogen.generate.__main__ import main


def test_the_command_of_a_compared_sound_makes_its_bytes(
    tiny_model: Path, tiny_tagger: str, labelled: Path, tmp_path: Path
) -> None:
    wanted = Comparison(
        (str(tiny_model),), labelled, seeds=(3,), num_clips=3, duration_s=0.4, embedders=(tiny_tagger,), num_sounds=1,
        device="cpu", out=tmp_path / "out",
    )  # fmt: skip
    compare.run(wanted, lambda message: None)
    made = {path: provenance.read(path) for path in (tmp_path / "out").rglob("*.wav")}
    generated = {path: found for path, found in made.items() if found is not None}
    assert len(generated) == 3 and len(made) > 6  # with recordings, and what the codec makes of them
    for path, found in generated.items():
        command = found.command(str(tmp_path / "again.wav"))
        assert command is not None and run_command(main, [*shlex.split(command)[3:], "--overwrite"]) == 0
        again = soundfile.read(tmp_path / "again.wav")[0]
        assert (again == soundfile.read(path)[0]).all()
        assert provenance.read(tmp_path / "again.wav") == found
