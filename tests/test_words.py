"""Plain English: words that make persons of code stand in no source, message, help text or page.

docs/LOG.md and docs/CHANGELOG.md speak of the past and keep its names.
"""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = re.compile(
    r"\b(heard|hears?|overhear\w*|told|tells?|knows?|known|forg[eo]ts?|forgotten|heeds?|heeded|no news|to be had"
    r"|nothing of ours|at the begin of)\b|(?<!both)_(heard|told|known|hear|tell)\b|\b(heard|told|known|hear|tell)_"
    r"|class (Known|Routes|Rhythm|Place|Held|Team|Opened|_Sheet)\b",
    re.IGNORECASE,
)


def sources() -> Iterator[Path]:
    for pattern in (
        "audiogen/**/*.py",
        "audiogen/**/*.cpp",
        "audiogen/**/*.h",
        "tools/**/*.py",
        "tests/**/*.py",
    ):
        yield from ROOT.glob(pattern)
    yield from (
        *ROOT.glob("recipes/*.yaml"),
        *ROOT.glob("tools/*.mk"),
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
        ROOT / "Makefile",
    )


def test_no_source_speaks_of_code_as_of_a_person() -> None:
    found = []
    for path in sources():
        if path.name in ("LOG.md", "CHANGELOG.md", Path(__file__).name):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found += [
                f"{path}:{number}: {match[0]!r} in {line.strip()[:90]}" for match in WORDS.finditer(line)
            ]
    assert not found, "\n".join(found)
