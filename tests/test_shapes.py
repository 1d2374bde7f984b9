"""Every function that takes or gives tensors says their shapes, in its docstring or at a line of it."""

import ast
import re
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


def functions(tree: ast.Module) -> list[tuple[ast.FunctionDef, str]]:
    """Each function, and the docstring of its class where that speaks for it: `forward`, and the constructor."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    docs = {item: ast.get_docstring(cls) or "" for cls in classes for item in cls.body}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [(node, docs.get(node, "")) for node in found]


def lacks_shapes(node: ast.FunctionDef, class_doc: str, lines: list[str]) -> bool:
    hints = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    signature = NAMED.sub("", " ".join(ast.unparse(hint) for hint in hints if hint is not None))
    text = class_doc + "\n".join(lines[node.lineno - 1 : node.end_lineno])
    return bool(re.search(r"\bTensor\b", signature)) and not SHAPE.search(text) and not OTHERWISE.search(text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_shapes_are_said(folder: str) -> None:
    missing = []
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        text = path.read_text()
        for node, class_doc in functions(ast.parse(text)):
            if lacks_shapes(node, class_doc, text.splitlines()):
                missing.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)


def test_the_check_finds_a_function_without_shapes() -> None:
    bare = 'def double(x: Tensor) -> Tensor:\n    """Twice x[0], a list[str]."""\n    return x + rows[0]\n'
    said = 'def double(x: Tensor) -> Tensor:\n    """[B, N] -> [B, N]."""\n    return 2 * x\n'
    for source, expected in ((bare, True), (said, False)):
        ((node, class_doc),) = functions(ast.parse(source))
        assert lacks_shapes(node, class_doc, source.splitlines()) is expected
