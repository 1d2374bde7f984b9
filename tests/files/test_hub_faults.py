"""A hub that answers wrongly, slowly or not at all: one line each, and a cache that a later run can trust."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import huggingface_hub
import pytest
from huggingface_hub import constants

from audiogen.errors import InputError
from audiogen.files import hub
from audiogen.train import run

COMMIT, OLDER = "a" * 40, "b" * 40
FILES = {"config.json": b"{}", "notes.txt": b"of each kind", "weights.bin": bytes(range(256)) * 40}
LAYOUT = hub.Layout("model", ("config.json", "weights.bin"), ("*.json", "*.txt", "*.bin"))

Fault = Callable[
    ["Answer", str, str], bool
]  # the answer, "list", "head" or "get", the file; whether it has answered


def checksum(name: str) -> str:
    """As the hub names a file's contents: SHA-256 of a large file, git's SHA-1 of a small one."""
    data = FILES[name]
    if name.endswith(".bin"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    daemon_threads = True
    fault: Fault | None = None
    asked: list[tuple[str, str, str | None]]  # what, file, the Authorization header
    awake: Event


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        listing = self.path.startswith("/api/")
        what = "list" if listing else {"HEAD": "head", "GET": "get"}[self.command]
        name = self.path.partition("?")[0].split("/")[-1]
        self.server.asked.append((what, name, self.headers["Authorization"]))
        if self.server.fault is not None and self.server.fault(self, what, name):
            return
        if listing:
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.answer(200, FILES[name], {"ETag": f'"{checksum(name)}"', "X-Repo-Commit": COMMIT})

    def answer(
        self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        """cut: bytes after which the connection breaks."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    slept: list[float] = []
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.3, raising=False)
    monkeypatch.setattr("time.sleep", slept.append)  # the client's pauses between its tries
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DOWNLOAD_TIMEOUT": 0.3,
        "HF_HUB_ETAG_TIMEOUT": 0.3,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with Hub(("127.0.0.1", 0), Answer) as server:
        server.asked, server.awake = [], Event()
        here = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            here + "/{repo_id}/resolve/{revision}/{filename}",
        )
        hub._ask.cache_clear()
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.awake.set()
        server.shutdown()
        hub._ask.cache_clear()
        assert sum(slept) < 120, slept


def status(code: int, at: str, **headers: str) -> Fault:
    def fault(answer: Answer, what: str, name: str) -> bool:
        if what == at and name != "config.json":
            answer.answer(code, b"<html>", {key.replace("_", "-"): value for key, value in headers.items()})
            return True
        return False

    return fault


def body(at: str, data: bytes, cut: int | None = None) -> Fault:
    def fault(answer: Answer, what: str, name: str) -> bool:
        if what == at and name != "config.json":
            answer.answer(200, data, {"ETag": '"x"', "X-Repo-Commit": COMMIT}, cut)
            return True
        return False

    return fault


def silent(at: str) -> Fault:
    def fault(answer: Answer, what: str, name: str) -> bool:
        if what == at and name != "config.json":
            answer.close_connection = True
            answer.server.awake.wait(20)
            return True
        return False

    return fault


def listing(**changed: object) -> Fault:
    answer = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
    return body("list", json.dumps(answer | changed).encode())


WEIGHTS = FILES["weights.bin"]
NOTES = FILES["notes.txt"]
FAULTS: dict[str, Fault] = {
    "listing: not JSON": body("list", b"<html>log in</html>"),
    "listing: a list": body("list", b"[1, 2]"),
    "listing: empty": body("list", b""),
    "listing: cut": body("list", b'{"id": "org/name", "sha"' * 9, cut=20),
    "listing: no commit": listing(sha=None),
    "listing: a path for a commit": listing(sha="../../../other"),
    "listing: a path for a file": listing(siblings=[{"rfilename": "../../../../evil.json"}]),
    "listing: an absolute path": listing(siblings=[{"rfilename": "/tmp/evil.json"}]),
    "listing: numbers for files": listing(siblings=[1, 2]),
    "listing: a number for a file": listing(siblings=[{"rfilename": 3}]),
    "listing: no answer": silent("list"),
    **{f"{at}: {code}": status(code, at) for at in ("list", "head", "get") for code in (401, 403, 404, 503)},
    **{f"{at}: 429, an hour": status(429, at, Retry_After="3600") for at in ("list", "head", "get")},
    **{
        f"{at}: redirect to {where}": status(302, at, Location=where)
        for at in ("list", "head", "get")
        for where in ("http://192.0.2.1/x", "file:///etc/passwd", "//[")
    },
    "head: redirect to itself": status(307, "head", Location="/org/name/resolve/main/weights.bin"),
    "head: no checksum": status(200, "head", X_Repo_Commit=COMMIT),
    "head: no commit": status(200, "head", ETag='"x"'),
    "head: another commit": status(200, "head", ETag='"x"', X_Repo_Commit=OLDER, Content_Length="5"),
    "head: the file of another commit": lambda answer, what, name: (
        what == "head"
        and (answer.answer(200, FILES[name], {"ETag": f'"{checksum(name)}"', "X-Repo-Commit": OLDER}) or True)
    ),
    "head: no answer": silent("head"),
    "get: no answer": silent("get"),
    "get: cut": lambda answer, what, name: (
        what == "get" and name == "weights.bin" and (answer.answer(200, WEIGHTS, cut=1000) or True)
    ),
    "get: short": body("get", b"half"),
    "get: long": body("get", WEIGHTS * 2),
    "get: other bytes": lambda answer, what, name: (
        what == "get" and name == "weights.bin" and (answer.answer(200, WEIGHTS[::-1]) or True)
    ),
    "get: other bytes of a small file": lambda answer, what, name: (
        what == "get" and name == "notes.txt" and (answer.answer(200, NOTES[::-1]) or True)
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_line_and_leaves_a_cache_to_trust(
    server: Hub, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = FAULTS[name]
    if name == "listing: no answer":
        monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    with pytest.raises(InputError) as caught:
        hub.fetch("org/name", [LAYOUT])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("org/name cannot be fetched: ")
    left = [p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "hub")]
    assert left == [], "outside the cache"
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    for reference in ("org/name", f"org/name@{COMMIT}"):
        with monkeypatch.context() as patch, pytest.raises(InputError):
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            hub.fetch(reference, [LAYOUT])
    server.fault = None
    hub._ask.cache_clear()
    folder = hub.fetch("org/name", [LAYOUT])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_redirect_to_another_host_is_followed_without_the_token(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub sends large files, from the hosts that store them."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub(("127.0.0.1", 0), Answer) as store:
        store.asked = []
        Thread(target=store.serve_forever, daemon=True).start()
        there = f"http://localhost:{store.server_address[1]}/weights.bin"

        def moved(answer: Answer, what: str, name: str) -> bool:
            if name != "weights.bin":
                return False
            headers = {"X-Linked-Etag": f'"{checksum(name)}"', "X-Linked-Size": str(len(WEIGHTS))}
            answer.answer(302, b"", {"Location": there, "X-Repo-Commit": COMMIT, **headers})
            return True

        server.fault = moved
        folder = hub.fetch("org/name", [LAYOUT])
        store.shutdown()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert {token for _, _, token in server.asked} == {"Bearer hf_secret"}
    assert store.asked == [("get", "weights.bin", None)]


def test_a_redirect_out_of_https_is_refused() -> None:
    session = huggingface_hub.utils.get_session()
    package = sys.modules[
        type(session).__module__.split(".")[0]
    ]  # httpx, by whichever name this version has it
    for start, target in (("https://hub/x", "//other/x"), ("https://hub/x", "/y"), ("http://hub/x", "//o/x")):
        response = package.Response(302, headers={"Location": target}, request=package.Request("GET", start))
        hub._guard(response)
    answers = package.MockTransport(
        lambda request: package.Response(302, headers={"Location": "http://other/x"})
    )
    client = package.Client(transport=answers, event_hooks={"response": [hub._guard]}, follow_redirects=True)
    with pytest.raises(OSError, match="leads away from https, to http://other/x"):
        client.get("https://hub/x")


def test_a_download_that_broke_off_is_no_model_without_the_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every model of a layout has comes last: files without which it opens as another model are there then."""
    config_only = hub.Layout("model", ("config.json",), ("*",))
    server.fault = status(503, "get")  # but of config.json
    for _ in range(2):
        with pytest.raises(InputError, match="notes.txt cannot be downloaded"):
            hub.fetch(f"org/name@{COMMIT}", [config_only])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="not in the cache, and HF_HUB_OFFLINE"):
            hub.fetch(f"org/name@{COMMIT}", [config_only])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        hub._ask.cache_clear()


@pytest.mark.parametrize(
    "name", ["listing: not JSON", "listing: a path for a commit", "list: 503", "list: 401"]
)
def test_with_a_model_in_the_cache_a_faulty_hub_is_as_none(server: Hub, name: str) -> None:
    folder = hub.fetch("org/name", [LAYOUT])
    hub._ask.cache_clear()
    server.fault = FAULTS[name]
    assert hub.fetch("org/name", [LAYOUT]) == folder


def test_a_process_and_a_run_that_goes_on_keep_to_the_commit_they_began_with(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may move the cache's revision on while a training runs for days."""
    folder = hub.fetch("org/name", [LAYOUT])
    reference = folder.parents[1] / "refs" / "main"
    assert reference.read_text() == COMMIT and hub.commits() == {"org/name": COMMIT}
    reference.write_text(OLDER)
    assert hub.pinned(["org/name", "org/name@main"]) == [f"org/name@{COMMIT}", f"org/name@{OLDER}"]
    (tmp_path / "run.json").write_text(json.dumps({"hub": hub.commits()}))
    monkeypatch.setattr(hub, "_commits", {})  # of another process
    hub._ask.cache_clear()
    server.fault = listing(sha=OLDER)
    with pytest.raises(InputError, match="cannot be downloaded"):  # no such files in this test's hub
        hub.fetch("org/name", [LAYOUT])
    server.fault, asked = None, len(server.asked)
    hub.keep(tmp_path / "run.json")
    assert hub.fetch("org/name", [LAYOUT]) == folder and hub.pinned("org/name") == f"org/name@{COMMIT}"
    assert [name for _, name, _ in server.asked[asked:]] == [COMMIT], "the revision that is asked for"


@pytest.mark.parametrize("odd", [3, None, [], {"name": COMMIT}, {"org/name": "main"}, {"org/name": None}])
def test_a_run_with_odd_commits_is_one_line(tmp_path: Path, odd: object) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"hub": odd}))
    with pytest.raises(InputError, match="run.json: .* is no hub id with its commit"):
        hub.keep(tmp_path / "run.json")


def test_a_run_records_the_commits_and_opens_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_commits", {(constants.HF_HUB_CACHE, "org/name"): COMMIT})
    settings = [f"out={tmp_path}", "data.train=[synth:10]"]
    run.record(run.open_recipe("codec_tiny", settings))
    monkeypatch.setattr(hub, "_commits", {})
    run.open_recipe("codec_tiny", settings)
    assert hub.commits() == {"org/name": COMMIT}
