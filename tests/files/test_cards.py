"""Model cards: what they say, that a card which is there stays, and the way to a hub."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import audiogen
from audiogen.__main__ import main
from audiogen.errors import InputError
from audiogen.files import cards
from audiogen.info import describe
from audiogen.models import listing
from audiogen.models.find import bundled, find, weights_folder


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_model_has_a_card_that_agrees_with_its_files(name: str) -> None:
    folder = weights_folder() / name
    text = (folder / cards.CARD).read_text()
    lines = cards.front_matter(folder)
    assert lines["license"] == "mit" and lines["library_name"] == "audiogen" and "audiogen" in lines["tags"]
    for heading in ("Intended use and limits", "Figures", "How it was made", "Data and licence"):
        assert f"\n## {heading}\n" in text
    figures = text.partition("\n## Figures\n")[2].partition("\n## ")[0]
    assert f"# {name}\n" in text and re.search(r"2026-\d\d-\d\d", figures)
    assert "python -m audiogen.evaluate" in figures or "recipe `" in figures, "figures without their command"
    if (folder / describe.SOUNDS).is_file():
        number = describe.sounds(folder / describe.SOUNDS)["makes"].partition(" ")[0]
        assert f"it makes {number}" in " ".join(text.split())
    if name == "lm_tiny":
        info = json.loads((folder / "config.json").read_text())["info"]
        for key in ("valid/ce", "valid/ce_shuffled", "valid/ce_none"):
            assert f"{info[key]:.3f}" in text


def test_a_trained_model_says_what_its_record_says_and_a_card_that_is_there_stays(tmp_path: Path) -> None:
    recipe = {"data": {"train": ["sounds/"]}, "init_from": "lm_tiny", "seed": 3, "model": {"dim": 4}}
    info = {"recipe": recipe, "step": 70, "valid/loss": 1.23456}
    cards.write(tmp_path, "token LM", {"sound": "8000 Hz"}, info)
    text = (tmp_path / cards.CARD).read_text()
    for line in (
        "- `data.train`: ['sounds/']",
        "- `init_from`: lm_tiny",
        "- `step`: 70",
        "- `valid/loss`: 1.235",
    ):
        assert line in text.splitlines()
    assert "- sound: 8000 Hz" in text and "dim" not in text
    assert cards.front_matter(tmp_path)["tags"] == ["audiogen", "token-lm"]
    assert cards.licence(tmp_path) == cards.UNSTATED
    (tmp_path / cards.CARD).write_text("---\nlicense: [mit, cc-by-4.0]\n---\nmine\n")
    cards.write(tmp_path, "token LM", {}, {})
    assert cards.licence(tmp_path) == "mit, cc-by-4.0"


@pytest.mark.parametrize(
    "text", ["", "# no lines", "---\nlicense: mit\n", "---\n: [\n---\n", "---\n- a\n---\n", "\xff"]
)
def test_a_card_without_lines_for_programs_states_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / cards.CARD).write_bytes(text.encode("latin-1"))
    assert cards.front_matter(tmp_path) == {} and cards.licence(tmp_path) == cards.UNSTATED


def test_saving_writes_a_card_for_both_families(tiny_model: Path, tiny_latent: Path, tmp_path: Path) -> None:
    for folder, family in ((tiny_model, "token LM"), (tiny_latent, "latent flow")):
        audiogen.load(folder, "cpu").save_pretrained(tmp_path / folder.name)
        text = (tmp_path / folder.name / cards.CARD).read_text()
        assert "license" not in cards.front_matter(tmp_path / folder.name)
        assert f"- family: {family}\n" in text and f'audiogen.load("{folder.name}")' in text
        assert listing.describe(find(tmp_path / folder.name)).family == family


def test_what_is_made_of_a_model_keeps_its_licence(tmp_path: Path) -> None:
    assert main(["convert", "lm_tiny", "--to", "audiogen", "-o", str(tmp_path / "copy")]) == 0
    assert cards.licence(tmp_path / "copy") == "mit"
    assert "- `opened from`: lm_tiny\n- `its licence`: mit\n" in (tmp_path / "copy" / cards.CARD).read_text()


# ---------------------------------------------------------------------------------------------------- a hub


class Repositories(ThreadingHTTPServer):
    """A hub that takes uploads. files: by path; what was sent for each."""

    files: dict[str, bytes]
    created: list[Any]
    refuse: bool


class Answer(BaseHTTPRequestHandler):
    server: Repositories
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self.path.rpartition("/")[2] in self.server.files:
            self.answer({}, ETag='"x"', X_Repo_Commit="a" * 40)
        else:
            self.answer({}, 404, X_Error_Code="EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_secret"
        here = f"http://{self.headers['Host']}"
        if self.server.refuse:
            self.answer({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{here}/org/tiny"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": _mode(path), "shouldIgnore": False} for path in files]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                item | {"actions": {"upload": {"href": f"{here}/store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] in ("file", "lfsFile"):
                    value = line["value"]
                    sent = value.get("content") or self.server.files.pop(value.get("oid"))
                    self.server.files[value["path"]] = sent
            self.answer({"commitUrl": f"{here}/org/tiny/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer({}, 404)

    def do_PUT(self) -> None:
        self.server.files[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, contents: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(contents).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    with Repositories(("127.0.0.1", 0), Answer) as server:
        server.files, server.created, server.refuse = {}, [], False
        here = f"http://127.0.0.1:{server.server_address[1]}"
        for name, value in {"ENDPOINT": here, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        template = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_model_is_pushed_whole_and_a_card_of_the_repository_stays(
    server: Repositories, tiny_model: Path, tmp_path: Path
) -> None:
    model = audiogen.load(tiny_model, "cpu")
    address = model.push_to_hub("org/tiny", private=True, token="hf_secret")
    assert address.endswith("/org/tiny/commit/" + "a" * 40)
    (asked,) = server.created
    assert asked["name"] == "tiny" and (asked.get("private") is True or asked.get("visibility") == "private")
    model.save_pretrained(tmp_path / "tiny")
    saved = {path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*.*")}
    assert set(server.files) == saved and cards.CARD in saved
    weights = server.files["model.safetensors"]
    assert weights == (tmp_path / "tiny" / "model.safetensors").read_bytes()
    server.files = {cards.CARD: b"theirs"}
    model.push_to_hub("org/tiny", token="hf_secret")
    assert server.files[cards.CARD] == b"theirs" and "config.json" in server.files


def test_what_the_hub_refuses_is_one_line(
    server: Repositories, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = audiogen.load(tiny_model, "cpu")
    with pytest.raises(InputError, match="'tiny' is not a repository of the hub; give org/name"):
        model.push_to_hub("tiny")
    server.refuse = True
    with pytest.raises(InputError, match=r"org/tiny cannot be written: .*; log in with a token") as caught:
        model.push_to_hub("org/tiny", token="hf_secret")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        model.push_to_hub("org/tiny")
