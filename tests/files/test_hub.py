"""Models by hub id: from the cache without a network, and from a small hub that runs inside the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from audiogen.errors import InputError
from audiogen.files import checkpoint, hub

COMMIT, OLDER = "a" * 40, "b" * 40
LAYOUTS = (
    hub.Layout("several files", ("config.json", "part-*.txt"), ("config.json", "part-*.txt")),
    hub.Layout("one file", ("whole.bin",), ("whole.bin", "*.md")),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/audiogen-medium", True),
        ("org/name@v1.0", True),
        ("org/name@refs/pr/3", True),
        ("org_1/na.me-2", True),
        ("codec_tiny", False),
        ("runs/lm/best", False),
        ("./org/name", False),
        ("../name", False),
        ("/org/name", False),
        ("org/name@", False),
        ("org/name@../../x", False),
        ("org/na me", False),
        ("org/name\n", False),
    ],
)
def test_what_reads_as_a_hub_id(name: str, expected: bool) -> None:
    assert hub.is_hub_id(name) is expected


def test_a_path_that_exists_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not hub.is_hub_id("org/name")


# -------------------------------------------------------------------------------------------- without a network


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in which the hub's client looks, for tests that are offline as all of the suite."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, commit: str, files: dict[str, str], revision: str | None = None) -> Path:
    """A snapshot as earlier downloads leave it: links to blobs, and a branch or tag that names the commit."""
    folder = cache / "models--org--name"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(files.items()):
        (folder / "blobs" / f"{commit}{number}").write_text(text)
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder / "blobs" / f"{commit}{number}")
    if revision is not None:
        (folder / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    return folder / "snapshots" / commit


def test_offline_the_cache_is_used_by_branch_tag_and_commit(cache: Path) -> None:
    new = put(cache, COMMIT, {"config.json": "{}", "part-1.txt": "1"}, "main")
    old = put(cache, OLDER, {"whole.bin": "w"}, "refs/pr/1")
    assert hub.fetch("org/name", LAYOUTS) == new
    assert hub.fetch("org/name@main", LAYOUTS) == new
    assert hub.fetch("org/name@refs/pr/1", LAYOUTS) == old
    assert hub.fetch(f"org/name@{OLDER}", LAYOUTS) == old


def test_what_a_trained_model_records_names_commits(cache: Path, tmp_path: Path) -> None:
    put(cache, COMMIT, {"config.json": "{}"}, "main")
    put(cache, OLDER, {"config.json": "{}"}, "v1")
    config = {
        "encoder": "org/name",
        "codecs": ("org/name@v1", f"org/name@{OLDER}"),
        "other": ["org/none", 3, None],
    }
    expected = {
        "encoder": f"org/name@{COMMIT}",
        "codecs": [f"org/name@{OLDER}", f"org/name@{OLDER}"],
        "other": ["org/none", 3, None],
    }
    assert hub.pinned(config) == expected
    checkpoint.save_model(tmp_path / "model", "codec", config, {}, {"recipe": config})
    stored = checkpoint.read_config(tmp_path / "model")
    assert stored["config"] == stored["info"]["recipe"] == expected
    assert hub.fetch(stored["config"]["encoder"], [hub.Layout("any", ("config.json",), ("*",))]) == (
        cache / "models--org--name" / "snapshots" / COMMIT
    )


def test_offline_what_the_cache_lacks_is_said(cache: Path) -> None:
    with pytest.raises(
        InputError, match=r"^org/name cannot be fetched: .*not in the cache, and HF_HUB_OFFLINE"
    ):
        hub.fetch("org/name", LAYOUTS)
    folder = put(cache, COMMIT, {"config.json": "{}", "part-1.txt": "1"}, "main")
    with pytest.raises(InputError, match="^org/name@v2 cannot be fetched"):
        hub.fetch("org/name@v2", LAYOUTS)
    (folder / "part-1.txt").resolve().unlink()  # an interrupted download, or a cleaned cache
    with pytest.raises(InputError, match=r"the cache holds only config\.json of it") as caught:
        hub.fetch("org/name", LAYOUTS)
    assert "\n" not in str(caught.value)


def test_what_is_no_id_is_refused() -> None:
    for name in ("name", "org/name@", "a/b/c", "org/../name"):
        with pytest.raises(InputError, match="is not a hub id"):
            hub.fetch(name, LAYOUTS)


# --------------------------------------------------------------------------------------------------- with a hub

FILES = {"config.json": "{}", "part-1.txt": "one", "part-2.txt": "two", "whole.bin": "w", "README.md": "r"}
REPOSITORIES = {
    "org/both": FILES,
    "org/whole": {name: FILES[name] for name in ("whole.bin", "README.md")},
    "org/other": {"model.onnx": "o", "README.md": "r"},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download takes: what a revision holds, and its files."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)  # type: ignore[attr-defined]
        parts = path.split("/")
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository == "org/gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository == "org/broken":
            self.answer(500, b"{}", {})
        elif repository not in REPOSITORIES:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and parts[4:] and parts[-1] not in ("main", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif parts[0] == "api":
            self.answer(200, json.dumps(self.listing(parts[4:5], REPOSITORIES[repository])).encode(), {})
        else:
            data = REPOSITORIES[repository][parts[-1]].encode()
            self.answer(200, data, {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": COMMIT})

    def listing(self, kind: list[str], files: dict[str, str]) -> object:
        if kind == ["tree"]:
            return [
                {"type": "file", "path": name, "size": len(text), "oid": name} for name, text in files.items()
            ]
        return {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


SCRIPT = """
import json, sys
from audiogen.files import hub
from audiogen.errors import InputError
layouts = [hub.Layout(*map(lambda x: x if isinstance(x, str) else tuple(x), each)) for each in json.loads(sys.argv[1])]
results = []
for name in sys.argv[2:]:
    try:
        folder = hub.fetch(name, layouts)
        results.append({path.name: path.read_text() for path in folder.iterdir()})
    except InputError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def fetch_from(port: int, home: Path, *names: str) -> list[dict[str, str] | str]:
    """What `fetch` gives for each name in a process that may use the network: files, or the error's line."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(LAYOUTS), *names],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_files_of_the_first_layout_come_from_the_hub_and_without_it_from_the_cache(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    port, home = server.server_address[1], tmp_path / "home"
    names = ("org/both", "org/whole@main", f"org/whole@{COMMIT}")
    whole = {"whole.bin": "w", "README.md": "r"}
    wanted = [{name: FILES[name] for name in ("config.json", "part-1.txt", "part-2.txt")}, whole, whole]
    assert fetch_from(port, home, *names) == wanted
    assert not [path for path in server.asked if path.endswith("both/resolve/" + COMMIT + "/whole.bin")]  # type: ignore[attr-defined]
    asked = len(server.asked)  # type: ignore[attr-defined]
    assert fetch_from(port, home, *names) == wanted
    assert not [path for path in server.asked[asked:] if "/resolve/" in path], "fetched twice"  # type: ignore[attr-defined]
    *cached, line = fetch_from(1, home, *names, "org/other")
    assert cached == wanted, "no hub at this port: the cache is used"
    assert isinstance(line, str) and "not in the cache, and the hub cannot be reached" in line


def test_each_refusal_of_the_hub_is_one_line_that_says_what_to_do(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    names = ("org/none", "org/gated", "org/both@v9", "org/other", "org/broken", "org/a--b")
    lines = fetch_from(server.server_address[1], tmp_path, *names)
    for name, line, part in zip(
        names,
        lines,
        (
            "no directory here, and no model of the hub",
            "accept it on the model's page and log in",
            "no revision 'v9'",
            "holds README.md, model.onnx; what can be read needs config.json and part-*.txt (several files); or",
            "the hub answers",
            "check the name",
        ),
        strict=True,
    ):
        assert isinstance(line, str) and line.startswith(name) and part in line and "\n" not in line, line
