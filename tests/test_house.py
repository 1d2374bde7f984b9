"""tools/house.py counts what it says, on a package whose figures are counted by hand."""

from pathlib import Path

from tools.house import report


def test_every_figure_of_a_small_package(tmp_path: Path) -> None:
    package = tmp_path / "audiogen"
    wide = ", ".join(f"a{index}" for index in range(9))
    long = "def long(self):\n" + "    x = 1\n" * 80
    for name, source in {
        "__init__.py": "",
        "audio.py": "# why\nx = 1  # noqa: E501\n",
        "lm/a.py": f"from audiogen.lm import b\n\n\ndef wide(self, {wide}):\n    import math\n    return math\n",
        "lm/b.py": "def f():\n    from audiogen.lm import a  # late\n",
        "codec/long.py": "x = 1\n" * 330 + long,
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert report(package).splitlines() == [
        "lines: 421 in 5 files",
        "    2  (files of the package itself)",
        "  411  codec/",
        "    8  lm/",
        "files over 400 lines",
        "  411  codec/long.py",
        "functions over 80 lines",
        "   81  codec/long.py:331 long",
        "functions with more than 8 arguments",
        "    9  lm/a.py:4 wide",
        "late imports: 2",
        "    1  lm/a.py",
        "    1  lm/b.py",
        "comments: 5 in 1,000 lines",
        "files that import each other",
        "audiogen.lm.a and audiogen.lm.b import each other",
    ]
