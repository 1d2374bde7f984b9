"""The generated parts of the documentation: docs/python-api.md, and the tree in docs/architecture.md.

    python tools/pages.py            write them
    python tools/pages.py --check    name those that are not current, exit status 1

Everything is read from the source; nothing is imported or run.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "audiogen"
API, ARCHITECTURE = ROOT / "docs/python-api.md", ROOT / "docs/architecture.md"
BEGIN, END = "<!-- tree: python tools/pages.py -->\n", "<!-- end of tree -->\n"
HEAD = """# Python API

This page is generated from docstrings by `python tools/pages.py`; a test fails where it is not current. Examples are in
[Generate](generate.md#from-python), [Codec and tokens](codec.md#from-python) and [Extending](extending.md).

Letters in shapes: B batch, C audio channels, N audio samples, T frames, K codebooks, S pattern steps, V codebook size,
L text positions, D width, M mel bins. Audio is float32 in [-1, 1]. A mistake raises `audiogen.errors.InputError`, a
`ValueError` whose message says what to do. `audiogen.load` and `audiogen.load_codec` are the first two functions below.
"""
# Section -> (module, names); a name with a dot is a method.
SECTIONS: dict[str, list[tuple[str, list[str]]]] = {
    "Opening models": [("generators.load", ["load"]), ("models.build", ["load_codec"])],
    "Generating": [
        (
            "interfaces",
            ["Generator.generate", "Generator.stream", "Generator.reconstruct", "Sampling", "Edit"],
        ),
        ("generators.live", ["SoundStream", "SoundStream.send"]),
    ],
    "Saving models": [
        ("generators.token", ["AudioGen.save_pretrained", "AudioGen.save_transformers"]),
        ("generators.latent", ["LatentGenerator.save_pretrained"]),
    ],
    "Sound files": [
        ("audio", ["load", "stream", "save", "info", "resample", "convert_channels"]),
        ("finish", ["Finish", "Finish.apply"]),
        ("interfaces", ["Generator.provenance"]),
        ("provenance", ["Provenance", "Provenance.tags", "Provenance.command", "read"]),
        ("spectrogram", ["log_mel", "save_spectrogram"]),
    ],
    "Codecs and tokens": [
        ("interfaces", ["Codec.encode", "Codec.decode"]),
        ("codec.stream", ["encode_stream", "decode_stream", "decode_live"]),
        ("codec.tokens", ["read_tokens", "read_header", "write_tokens", "TokenHeader"]),
        ("data.shards", ["ShardReader", "ShardReader.codes"]),
    ],
    "Data": [("data.manifest", ["Clip", "read_manifest", "scan_folder", "write_manifest"])],
    "Language models": [
        ("lm.patterns", ["Pattern", "make_pattern", "interleave", "deinterleave"]),
        ("interfaces", ["Condition"]),
    ],
    "Evaluation": [
        ("evaluate.embedders", ["load_embedder", "embed_clips"]),
        (
            "evaluate.metrics",
            ["frechet_distance", "kernel_distance", "label_kl", "accuracy", "prompt_interval"],
        ),
    ],
}


def parse(module: str) -> ast.Module:
    """The source of a module of the package."""
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def find(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef:
    """A function, class or method by its name. KeyError where there is none."""
    body: list[ast.stmt] = tree.body
    found: ast.FunctionDef | ast.ClassDef | None = None
    for part in name.split("."):
        named = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        found = next((node for node in named if node.name == part), None)
        if found is None:
            raise KeyError(f"{name} is not there; correct SECTIONS in tools/pages.py")
        body = found.body
    assert found is not None
    return found


def signature(name: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    """As it is called: a function with its types, a dataclass with its fields."""
    if isinstance(node, ast.FunctionDef):
        arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
        return f"{name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    made = next(
        (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None
    )
    if made is not None:
        return f"{name}({ast.unparse(made.args).removeprefix('self, ')})"
    fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
    return f"{name}({', '.join(fields)})"


def entry(module: str, name: str) -> str:
    """The paragraph of one name: where it is, how it is called, and its docstring."""
    node = find(parse(module), name)
    doc = ast.get_docstring(node)
    assert doc, f"{module}.{name} has no docstring"
    text = " ".join(doc.split()).replace("<", "\\<").replace("*", "\\*")
    text = re.sub(r"(?<=[.;?] )((?:\w+, )*\w+): ", r"*\1*: ", text)  # the arguments, in italics
    return f"**{name}** in `audiogen.{module}`: `{signature(name.split('.')[-1], node)}`\n\n{text}\n"


def api() -> str:
    """The page of the Python interface."""
    parts = [HEAD]
    for section, entries in SECTIONS.items():
        parts.append(f"## {section}\n")
        parts += [entry(module, name) for module, names in entries for name in names]
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """Of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return doc.partition("\n")[0].removesuffix(".")


def tree() -> str:
    """Folders of the package with their first lines and the names of their files."""
    lines = []
    for folder in (
        PACKAGE,
        *sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE),
    ):
        names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        what = first_line(folder / "__init__.py")
        lines += [f"{folder.relative_to(ROOT)}/   {what}"] if folder != PACKAGE else ["audiogen/"]
        lines += textwrap.wrap(", ".join(names), 110, initial_indent="    ", subsequent_indent="    ")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def pages() -> dict[Path, str]:
    """Path -> what it should hold."""
    before, _, rest = ARCHITECTURE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return {API: api(), ARCHITECTURE: f"{before}{BEGIN}{tree()}{END}{after}"}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where one is not current"
    )
    arguments = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is not current: python tools/pages.py")
        else:
            path.write_text(pages()[path])
            print(path.relative_to(ROOT))
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
