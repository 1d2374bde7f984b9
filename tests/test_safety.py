"""Reading a checkpoint never runs code from it: no pickle in package or tools, no unguarded torch.load."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unsafe(source: str) -> list[str]:
    """`line: reason` for each import of a pickle module and each load that may unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                f"{node.lineno}: imports {a.name}" for a in node.names if a.name.split(".")[0] in PICKLES
            ]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            found.append(f"{node.lineno}: imports {node.module}")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            # A bare `load` would hide its calls from the check below.
            found += [f"{node.lineno}: imports torch.load by itself" for a in node.names if a.name == "load"]
        elif isinstance(node, ast.Call):
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            function = ast.unparse(node.func)
            if function == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if "trust_remote_code" in options:
                found.append(f"{node.lineno}: {function} with trust_remote_code")
            if options.get("allow_pickle", "False") != "False":
                found.append(f"{node.lineno}: {function} with allow_pickle")
    return found


def test_package_and_tools_never_unpickle() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("audiogen", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in unsafe(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_no_code_of_a_repository_is_ever_trusted() -> None:
    """Not by a variable, a mapping or a comment either."""
    files = [path for folder in ("audiogen", "tools", "recipes") for path in (ROOT / folder).rglob("*")]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".yaml")}
    assert len(texts) > 100 and not [path for path, text in texts.items() if "trust_remote_code" in text]


def test_shipped_models_hold_no_pickle() -> None:
    suffixes = {".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".npy", ".npz"}
    assert not [path for path in (ROOT / "audiogen" / "weights").rglob("*") if path.suffix in suffixes]


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "numpy.load(path)", "from torch import nn", "model.load(path)"],
)
def test_safe_code_passes(source: str) -> None:
    assert unsafe(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "import pickle as p",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_unsafe_code_is_found_with_its_line(source: str) -> None:
    assert [line.split(":")[0] for line in unsafe(f"\n\n{source}")] == ["3"]
