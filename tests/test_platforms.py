"""What only Linux or a new Python has is not needed: Windows by simulation, workers that are spawned, as on macOS."""

import ast
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiogen.data.dataset import AudioDataset, BuiltInClip
from audiogen.data.loader import AudioLoader

ROOT = Path(__file__).resolve().parent.parent

# Everything is imported once, so that other packages are the Linux packages that they are; then the platform becomes
# Windows, with a module of locks that takes one lock a file, and without what Windows lacks.
WINDOWS = """
import importlib, os, pathlib, pkgutil, signal, sys, types
import torch
import audiogen

def import_all():
    for module in pkgutil.walk_packages(audiogen.__path__, "audiogen."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

import_all()
for name in [name for name in sys.modules if name.startswith("audiogen.")]:
    del sys.modules[name]

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGALRM", "SIGKILL", "SIGHUP", "SIGXFSZ", "alarm", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
locked = set()

def locking(descriptor, mode, size):
    inode = os.fstat(descriptor).st_ino
    if inode in locked:
        raise PermissionError(13, "Permission denied")
    locked.add(inode)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
open_ = os.open

def open_as_windows(path, flags, *mode):
    if pathlib.Path(path).is_dir():
        raise PermissionError(13, "Permission denied")  # folders cannot be opened
    return open_(path, flags, *mode)

os.open = open_as_windows
sys.platform = "win32"

import_all()
from audiogen import audio
from audiogen.data import loader
from audiogen.files import checkpoint, locks

folder = pathlib.Path(sys.argv[1])
checkpoint.save_state(folder / "state", {"weight": torch.ones(3)})
assert torch.equal(checkpoint.load_state(folder / "state")["weight"], torch.ones(3))
audio.save(folder / "a.wav", torch.zeros(1, 100), 16000)
loader._outlive_signals(0)
with locks.only_writer(folder / "locked"):
    pass
print("done")
"""


def test_windows_by_simulation(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WINDOWS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout == "done\n", run.stderr


def test_the_oldest_python_reads_the_package_and_its_tests() -> None:
    """Its grammar, and no generic NamedTuple, which 3.10 refuses at import.

    mypy (`make check`) takes the standard library as the oldest Python has it, so that a newer name in the package is
    an error: its version has to be the one that the package promises.
    """
    settings = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'^requires-python = ">=(3\.\d+)"$', settings, re.MULTILINE)
    assert f'\npython_version = "{oldest}"\n' in settings
    assert f'\ntarget-version = "py{oldest.replace(".", "")}"\n' in settings
    version = tuple(map(int, oldest.split(".")))
    for path in (path for folder in ("audiogen", "tests", "tools") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=version)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                assert len(node.bases) == 1, f"{path}:{node.lineno}"


@pytest.mark.skipif(sys.platform == "win32", reason="nothing else is there")
def test_spawned_workers_load_what_forked_ones_do() -> None:
    dataset = AudioDataset([BuiltInClip(i) for i in range(4)], 8000, segment_s=0.2)
    before = multiprocessing.get_start_method(allow_none=True)
    found = []
    for method in ("fork", "spawn"):
        multiprocessing.set_start_method(method, force=True)
        try:
            batches = AudioLoader(dataset, 2, workers=1).batches()
            found.append(next(batches).audio)
            batches.close()
        finally:
            multiprocessing.set_start_method(before, force=True)
    assert torch.equal(*found)
