"""The package in figures: lines per folder, what is large, late imports, comments, files that import each other.

    python tools/house.py            of the audiogen beside this file
    python tools/house.py FOLDER     of another copy of it, to compare

Everything is counted from the source alone; nothing is imported or run.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FUNCTION_LINES, ARGUMENTS = 400, 80, 8  # what STYLE calls large begins above these

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package, sorted."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, package: str = "audiogen") -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what the file imports from the package, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith(f"{package}."))


def circles(package: Path) -> list[str]:
    """Pairs of files that import each other, over any number of others in between; late imports count as well."""
    files = modules(package)
    graph = {}
    for module, path in files.items():
        found = {
            name if name in files else name.rpartition(".")[0] for _, name in imports(path, package.name)
        }
        graph[module] = (found & files.keys()) - {module}
    reaches: dict[str, set[str]] = {}
    for module in graph:
        seen: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        reaches[module] = seen
    return [
        f"{one} and {other} import each other"
        for one in graph
        for other in graph
        if one < other and other in reaches[one] and one in reaches[other]
    ]


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_arguments(function: Function) -> int:
    """Arguments a caller may give, `self` and `cls` excluded."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def late_imports(tree: ast.AST) -> list[int]:
    """Lines of the imports that stand in functions."""
    found = {
        node.lineno
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(found)


def num_comments(source: str) -> int:
    """Lines with a comment, those that only speak to a tool excluded."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    marks = ("# type:", "# noqa", "# pragma")
    return sum(token.type == tokenize.COMMENT and not token.string.startswith(marks) for token in tokens)


def report(package: Path) -> str:
    """All figures of the package as text."""
    lines: Counter[str] = Counter()
    comments, large_files, large_functions, wide_functions, late = 0, [], [], [], Counter[str]()
    for path in modules(package).values():
        source = path.read_text()
        tree = ast.parse(source)
        name = path.relative_to(package).as_posix()
        length = source.count("\n")
        lines[name.split("/")[0] + "/" if "/" in name else "(files of the package itself)"] += length
        comments += num_comments(source)
        large_files += [f"{length:5}  {name}"] if length > FILE_LINES else []
        late[name] = len(late_imports(tree))
        for function in functions(tree):
            size = (function.end_lineno or function.lineno) - function.lineno + 1
            where = f"{name}:{function.lineno} {function.name}"
            large_functions += [f"{size:5}  {where}"] if size > FUNCTION_LINES else []
            count = num_arguments(function)
            wide_functions += [f"{count:5}  {where}"] if count > ARGUMENTS else []
    total = sum(lines.values())
    parts = {
        f"lines: {total} in {len(modules(package))} files": [
            f"{n:5}  {folder}" for folder, n in sorted(lines.items())
        ],
        f"files over {FILE_LINES} lines": sorted(large_files, reverse=True),
        f"functions over {FUNCTION_LINES} lines": sorted(large_functions, reverse=True),
        f"functions with more than {ARGUMENTS} arguments": sorted(wide_functions, reverse=True),
        f"late imports: {late.total()}": [f"{n:5}  {name}" for name, n in late.most_common() if n],
        f"comments: {1000 * comments / max(1, total):.0f} in 1,000 lines": [],
        "files that import each other": circles(package),
    }
    text = []
    for title, rows in parts.items():
        text += [title, *rows] if rows or ":" in title else [f"{title}: none"]
    return "\n".join(text)


if __name__ == "__main__":
    print(
        report(
            Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "audiogen"
        )
    )
