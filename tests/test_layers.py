"""Imports go one way: a name may import only what its line below lists (and itself). Names file and line."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = {
    "errors",
    "interfaces",
    "config",
    "audio",
    "checkpoint",
    "distributed",
    "hub",
    "pickles",
    "__version__",
}
MODELS = {"codec", "conditioning", "data", "tagger", "lm", "diffusion"}
MAY_IMPORT = {
    **dict.fromkeys(CORE | {"codec", "conditioning", "data", "tagger", "requests", "streaming"}, CORE),
    **dict.fromkeys({"lm", "diffusion"}, CORE | {"conditioning"}),
    "latent_generator": CORE | {"diffusion", "requests"},
    "generators": CORE | MODELS | {"latent_generator", "token_generator"},
    "token_generator": CORE | MODELS | {"export", "requests"},
    **dict.fromkeys({"export", "train"}, CORE | MODELS),
    **dict.fromkeys(
        {"generate", "serve"},
        CORE | {"data", "generate_options", "generators", "latent_generator", "requests", "streaming"},
    ),
    "generate_options": CORE,
    "convert": CORE | MODELS | {"generators"},
    "evaluate": CORE | {"data", "generators", "codec", "tagger"},
    "__init__": {"generators"},  # the lazy public name audiogen.AudioGen
    # the verbs of audiogen.codec read manifests and write token shards
    **dict.fromkeys({"codec/__main__", "codec/decode", "codec/describe", "codec/encode"}, CORE | {"data"}),
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of audiogen) of every import in the file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("audiogen."))


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        allowed = MAY_IMPORT.get("/".join(parts), MAY_IMPORT.get(parts[0], set())) | {parts[0]}
        found += [
            f"{path}:{line}: {parts[0]} imports {name}" for line, name in imports(path) if name not in allowed
        ]
    return found


def test_imports_only_go_down() -> None:
    assert not (found := violations(ROOT / "audiogen")), "\n".join(found)


def test_a_violation_is_named_with_file_and_line(tmp_path: Path) -> None:
    for name, source in {
        "lm/model.py": "import torch\n\ndef f():\n    from audiogen.codec import rvq\n",
        "codec/__main__.py": "from audiogen import data\nimport audiogen.conditioning.t5\n",
        "new.py": "import audiogen.errors\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert violations(tmp_path) == [
        f"{tmp_path}/codec/__main__.py:2: codec imports conditioning",
        f"{tmp_path}/lm/model.py:4: lm imports codec",
        f"{tmp_path}/new.py:1: new imports errors",
    ]
