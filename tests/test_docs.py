"""The pages of the documentation: links that lead somewhere, lengths, and generated parts that are current."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pages
from tests.pages import DOCS, RECORDS, ROOT
from tools import pages as generated

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
LONGEST_PAGE, LONGEST_README = 250, 180  # lines


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    found = []
    for link in pages.links(page.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):  # https:, which is not looked up
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or not path.is_relative_to(ROOT):
            found.append(f"{page.name}: {link}")
        elif anchor and anchor not in pages.anchors(path.read_text()):
            found.append(f"{page.name}: {link} (no such heading)")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert not broken(page)


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# B\n\n## What `x` is: 1, 2\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[ok](b.md#what-x-is-1-2) [web](https://example.org/x) `[code](no.md)`\n"
        "![picture](no.png) [gone](c.md) [wrong](b.md#b2) [out](../x.md)\n\n```text\n[block](no.md)\n```\n"
    )
    assert broken(page) == [
        "a.md: no.png",
        "a.md: c.md",
        "a.md: b.md#b2 (no such heading)",
        "a.md: ../x.md",
    ]


def test_no_page_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PAGES if path.name not in RECORDS}
    assert lengths[ROOT / "README.md"] <= LONGEST_README
    assert not {path.name: length for path, length in lengths.items() if length > LONGEST_PAGE}


def test_every_page_is_listed_and_in_the_site() -> None:
    names = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert names <= set(pages.links((DOCS / "README.md").read_text()))
    assert set(re.findall(r"\w[\w-]*\.md", (ROOT / "mkdocs.yml").read_text())) == names | {"README.md"}


def test_generated_pages_are_current() -> None:
    stale = [path.name for path, text in generated.pages().items() if path.read_text() != text]
    assert not stale, "python tools/pages.py"


def test_signatures_are_those_of_the_source() -> None:
    tree = ast.parse(
        "def f(a: int, *, b: str = 'x') -> bool: ...\n"
        "class C:\n    n: int\n    k: float = 1.0\n    def m(self, t: str) -> None: ...\n"
        "class D:\n    def __init__(self, path: str): ...\n"
    )
    shown = {name: generated.signature(name, generated.find(tree, name)) for name in ("f", "C", "C.m", "D")}
    assert shown == {
        "f": "f(a: int, *, b: str='x') -> bool",
        "C": "C(n: int, k: float = 1.0)",
        "C.m": "C.m(t: str) -> None",
        "D": "D(path: str)",
    }
    with pytest.raises(KeyError, match="correct SECTIONS"):
        generated.find(tree, "C.gone")


def test_every_option_of_generate_is_on_its_page() -> None:
    options = re.findall(
        r"^audiogen\.generate (--[\w-]+)", (ROOT / "tests/cli_options.txt").read_text(), re.M
    )
    page = (DOCS / "generate.md").read_text()
    assert len(options) > 25
    assert not [option for option in options if not re.search(rf"{option}\b(?!-)", page)]


def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs (pip install '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    pages_built = sorted(tmp_path.glob("*.html"))
    assert {path.stem for path in pages_built} >= {path.stem for path in DOCS.glob("*.md")} - {"README"}
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"'](?:https?:)?//", re.I)
    assert not [path.name for path in pages_built if loads.search(path.read_text())]
    styles = [
        path for path in tmp_path.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", path.read_text())
    ]
    assert not styles, "fonts or pictures of another host"
