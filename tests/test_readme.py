"""README and the pages of docs/ are executed: every shell and Python block, page after page, in one folder.

`tests/pages.py` says which pages, and in which reduced form long commands run; a release with random weights stands
for the released ones. A command that no rule is about fails, so that a new block cannot slip in untried.
"""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiogen.errors import run_command
from audiogen.models.build import load_codec
from audiogen.models.export import save_codec_transformers as save_transformers
from tests import pages
from tests.pages import COMMANDS, DOCS, ELSEWHERE, ORDER, REASONS, RECORDS, ROOT, Block
from tools import random_release

BLOCKS = [block for page in ORDER for block in pages.blocks(page)]

# Python blocks run as they are but for these words.
SHORTER = {"duration_s=5.0": "duration_s=0.2", "duration_s=2.0": "duration_s=0.2"}


def run(command: str) -> int:
    """Exit status. Our own verbs run in this process, for torch is imported here already; the rest in bash."""
    words = shlex.split(command)
    if words[:2] != ["python", "-m"]:
        here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `python` is this one
        environment = os.environ | {"ROOT": str(ROOT), "PATH": here}
        bash = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(bash, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    package = ROOT / words[2].replace(".", "/")
    module = importlib.import_module(f"{words[2]}.__main__" if package.is_dir() else words[2])
    with warnings.catch_warnings():
        return run_command(module.main, words[3:])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: a few captioned sounds of their own, and as many that stand for ESC-10."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_sounds").mkdir()
    (folder / "esc10").mkdir()
    seconds = np.arange(16000) / 16000
    for number, word in enumerate(["low", "deep", "high", "bright", "soft"]):
        tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * seconds) * np.exp(-3 * seconds)
        soundfile.write(folder / "my_sounds" / f"bell_{number}.wav", tone, 16000)
        (folder / "my_sounds" / f"bell_{number}.txt").write_text(f"a {word} bell rings\n")
    shutil.copytree(folder / "my_sounds", folder / "held_out")
    lines = [
        {
            "audio": f"../my_sounds/bell_{number}.wav",
            "captions": ["It is raining"],
            "label": "rain",
            "fold": fold,
            "license": ["CC0", "CC-BY"][number % 2],
        }
        for number, fold in enumerate([1, 2, 3, 4, 4])
    ]
    (folder / "esc10" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    random_release.build(folder / "release", random_release.SIZES["tiny"], text_encoder=True)
    save_transformers(folder / "encodec_directory", load_codec(folder / "release"))
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, dict[str, Any]]:
    """What the Python blocks of each page have defined so far: a page may go on from its earlier blocks."""
    return {}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("sh", "python")], ids=str)
def test_block(
    block: Block, workplace: Path, names: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.reason:
        pytest.skip(block.reason)
    monkeypatch.chdir(workplace)
    if block.language == "sh":
        for command in pages.commands(block.body):
            assert run(pages.reduced(command)) == 0, f"failed: {command}"
    else:
        code = block.body
        for said, shorter in SHORTER.items():
            code = code.replace(said, shorter)
        exec(compile(code, str(block), "exec"), names.setdefault(block.page, {"__name__": "readme"}))


def test_every_page_is_run_or_said_to_be_tried_elsewhere() -> None:
    present = {path.name for path in DOCS.glob("*.md")} - set(RECORDS) - {"README.md"}
    ran = {Path(page).name for page in ORDER} - {"README.md"}
    silent = {
        name
        for name in present - ran - set(ELSEWHERE)
        if not [block for block in pages.blocks(name) if block.language in ("sh", "python")]
    }
    assert present == ran | set(ELSEWHERE) | silent
    assert not [test for test in ELSEWHERE.values() if not (ROOT / test).is_file()]


def test_every_block_is_run_or_says_why_not() -> None:
    every = [block for path in sorted(DOCS.glob("*.md")) for block in pages.blocks(path.name)] + BLOCKS
    assert not [str(b) for b in every if b.language not in ("sh", "python", "text", "json", "yaml")]
    assert not [f"{b}: {b.reason}" for b in every if b.reason and not b.reason.startswith(REASONS)]
    hidden = [
        f"{block}: {line}"
        for block in BLOCKS
        if block.language == "text"
        for line in block.body.splitlines()
        if line.startswith(("python ", "make ", "pip ", "torchrun ", "curl ", "git "))
    ]
    others = [block for page in ELSEWHERE for block in pages.blocks(page)]
    hidden += [
        f"{b}: {b.body[:60]}"
        for b in others
        if b.page == "serving.md" and not b.reason and (b.language == "python" or "curl" not in b.body)
    ]
    assert not hidden, "commands belong into a block in sh, with a reason where they are not run"


def test_every_reduced_form_is_of_a_command_that_a_page_has() -> None:
    said = {command for b in BLOCKS if b.language == "sh" for command in pages.commands(b.body)}
    assert not set(COMMANDS) - said, "no longer in a page: remove them from tests/pages.py"
    code = "".join(block.body for block in BLOCKS if block.language == "python")
    assert not [word for word in SHORTER if word not in code]
