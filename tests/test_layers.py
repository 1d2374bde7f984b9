"""Imports go one way between folders and never in a circle between files. Each finding names file and line."""

from pathlib import Path

from tools.house import circles, imports

ROOT = Path(__file__).resolve().parent.parent
CORE = {"errors", "interfaces", "config", "audio", "spectrogram", "distributed", "device", "onednn", "files"}
CORE |= {"finish", "provenance", "watermark", "credentials", "adapters", "lora", "version", "__version__"}
CORE |= {"packed", "snake", "signals", "command", "report", "native", "griffin_lim"}
# A folder may import itself and what its line lists.
LAYERS = {"codec", "text", "data", "tagger"}
MODELS = CORE | LAYERS | {"lm", "diffusion", "models"}
MAY_IMPORT = {
    **dict.fromkeys(CORE - {"__version__"} | LAYERS, CORE),
    **dict.fromkeys({"lm", "diffusion"}, CORE | {"text"}),
    "models": MODELS - {"data"},
    "generators": MODELS,
    **dict.fromkeys({"generate", "info", "serve", "convert", "evaluate", "train"}, MODELS | {"generators"}),
    "__init__": {"generators", "models", "version"},  # the public names, imported with their first use
    "__main__": CORE,
    # the commands of audiogen.codec open models, read manifests and write token shards
    **dict.fromkeys(
        {f"codec/{name}" for name in ("__main__", "decode", "encode", "info", "parts")},
        CORE | {"data", "models"},
    ),
}


def violations(package: Path) -> list[str]:
    """Imports that go up from a folder."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        allowed = MAY_IMPORT.get("/".join(parts), MAY_IMPORT.get(parts[0], set())) | {parts[0]}
        found += [
            f"{path}:{line}: {parts[0]} imports {name.split('.')[1]}"
            for line, name in imports(path)
            if name.split(".")[1] not in allowed
        ]
    return found


def test_imports_only_go_down() -> None:
    assert not (found := violations(ROOT / "audiogen")), "\n".join(found)


def test_no_files_import_each_other() -> None:
    assert not (found := circles(ROOT / "audiogen")), "\n".join(found)


def test_a_violation_is_named_with_file_and_line(tmp_path: Path) -> None:
    for name, source in {
        "lm/model.py": "import torch\n\ndef f():\n    from audiogen.codec import rvq\n",
        "codec/__main__.py": "from audiogen import data\nimport audiogen.text.t5\n",
        "new.py": "import audiogen.errors\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert violations(tmp_path) == [
        f"{tmp_path}/codec/__main__.py:2: codec imports text",
        f"{tmp_path}/lm/model.py:4: lm imports codec",
        f"{tmp_path}/new.py:1: new imports errors",
    ]


def test_a_circle_is_found_over_several_files_and_in_late_imports(tmp_path: Path) -> None:
    package = tmp_path / "audiogen"
    for name, source in {
        "lm/__init__.py": "",
        "lm/a.py": "from audiogen.lm import b\n",
        "lm/b.py": "from audiogen.lm.c import thing\n",
        "lm/c.py": "def f():\n    import audiogen.lm.a\n",
        "lm/d.py": "from audiogen.lm import a\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert circles(package) == [
        f"audiogen.lm.{one} and audiogen.lm.{other} import each other"
        for one, other in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
