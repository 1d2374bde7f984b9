"""Every function of the numerical folders that takes or gives tensors says their shapes, in words or at a line."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "audiogen"
FOLDERS = ("lm", "codec", "diffusion", "train", "text")
# [B, C, N], [..., N], [rows, inputs], [n]; not list[str] or rows[0]
SHAPE = re.compile(
    r"(?<!\w)\[[^\[\]'\"=]*\b([BCDEFKLMNRSTVn]|num|labels|rows|inputs|outputs?|in|time|layers|positions)\b[^\[\]]*\]"
)
OTHERWISE = re.compile(r"scalar|any shapes?|same shape|[Aa]s `\w|[Ss]ee `\w|as in `\w")
# Named tensors and those of a whole model, whose shapes are the model's.
NAMED = re.compile(r"(Mapping|dict)\[str, (Tensor|Any)\]")


SPEAKS_FOR = ("forward", "__call__", "__init__")  # methods whose shapes a class may say


def silent(source: str) -> list[tuple[int, str]]:
    """(line, name) of the functions on tensors that say no shapes, by docstrings and comments alone."""
    tree = ast.parse(source)
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    docs = {item: ast.get_docstring(cls) or "" for cls in classes for item in cls.body}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        hints = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        signature = NAMED.sub("", " ".join(ast.unparse(hint) for hint in hints if hint is not None))
        said = [ast.get_docstring(node) or "", docs.get(node, "") if node.name in SPEAKS_FOR else ""]
        said += [comments.get(line, "") for line in range(node.lineno, (node.end_lineno or 0) + 1)]
        text = "\n".join(said)
        if re.search(r"\bTensor\b", signature) and not SHAPE.search(text) and not OTHERWISE.search(text):
            found.append((node.lineno, node.name))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_shapes_are_said(folder: str) -> None:
    missing = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for line, name in silent(path.read_text())
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("body", "is_silent"),
    [
        ('    """Twice x[0], a list[str]."""\n    return x + rows[0]\n', True),
        ('    """Twice."""\n    return torch.stack([row * 2 for row in x])\n', True),
        ('    """[B, N] -> [B, N]."""\n    return 2 * x\n', False),
        ("    return 2 * x  # [B, N]\n", False),
    ],
)
def test_code_alone_says_no_shapes(body: str, is_silent: bool) -> None:
    assert bool(silent(f"def double(x: Tensor) -> Tensor:\n{body}")) is is_silent
