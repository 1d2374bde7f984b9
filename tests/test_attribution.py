"""The credits that ship with the weights are complete, and are what the tool writes today."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from audiogen.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "audiogen" / "weights" / "ATTRIBUTION.md"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "attribution.py"))


def row(**changes: object) -> dict[str, object]:
    return {
        "audio": "audio/1-2-A.ogg",
        "title": "bark.wav",
        "author": "ann",
        "source": "http://www.freesound.org/people/ann/sounds/2/",
        "license": "CC-BY",
        "fold": 1,
    } | changes


def test_shipped_page_is_current(
    shared: Path, tool: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = shared / "data" / "esc10" / "manifest.jsonl"
    tool["main"]([str(manifest)])
    assert capsys.readouterr().out == PAGE.read_text(), "run tools/attribution.py again"

    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    page = PAGE.read_text()
    for clip in rows:
        used = clip["fold"] <= 3 and clip["license"] in ("CC0", "CC-BY")
        assert (f"| {Path(clip['audio']).stem} |" in page) == used, clip["audio"]


def test_only_licences_and_folds_of_the_bundled_models_are_taken(tool: dict[str, Any]) -> None:
    rows = [row(), row(license="CC-Sampling+"), row(fold=4), row(license="CC0", author="Zoe")]
    assert tool["selected"](rows) == [row(), row(license="CC0", author="Zoe")]


def test_a_clip_that_cannot_be_credited_is_an_error(tool: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="audio/1-2-A.ogg: no author"):
        tool["selected"]([row(author="")])


def test_markup_in_titles_stays_text(tool: dict[str, Any]) -> None:
    page = tool["render"]([row(title="a|b *c* d_e")])
    assert page.splitlines()[-1] == (
        r"| 1-2-A | a\|b \*c\* d\_e | ann | <http://www.freesound.org/people/ann/sounds/2/> | CC-BY |"
    )
