"""Every command of docs/serving.md works against a live server."""

import re
import subprocess
from pathlib import Path

import pytest

from audiogen import audio
from tests.serve.test_server import serve

DOCS = (Path(__file__).parents[2] / "docs/serving.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", DOCS, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    command for block in BLOCKS for command in re.findall(r"^curl (?:.*\\\n)*.*$", block, re.MULTILINE)
]


def test_the_documentation_is_run(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 12
    process = serve("--model", "lm_tiny", "--model", "lafma_tiny", "--port", "0", "--dtype", "float32")
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removesuffix("/docs")
        for command in COMMANDS:
            shell = command.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
            run = subprocess.run(
                ["sh", "-c", shell], env={"URL": address, "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if run.returncode == 127:
                pytest.skip("there is no curl")
            assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
    finally:
        process.terminate()
        process.communicate(timeout=60)
    lengths = {path.name: audio.load(path)[0].shape[-1] / 16_000 for path in tmp_path.glob("*.[wm]*")}
    assert (
        lengths["dog.wav"] == lengths["changed.wav"] == lengths["again.wav"] == 2
        and lengths["longer.wav"] == 4
    )
    names = "dog.wav rain.wav changed.wav longer.wav again.wav speech.mp3 eleven.mp3"
    assert lengths.keys() == set(names.split())
