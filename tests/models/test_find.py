"""The one door: what names hold, and how often the hub is asked for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

import audiogen
from audiogen.convert.__main__ import main as convert
from audiogen.errors import InputError
from audiogen.evaluate.embedders import load_embedder
from audiogen.files import hub
from audiogen.generate.__main__ import main as generate
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.token import AudioGen
from audiogen.models import build
from audiogen.models.find import CODEC, LM, bundled, find
from audiogen.models.latent_codecs import load_autoencoder
from audiogen.models.own import load_tagger
from audiogen.train.lm import LMRecipe

COMMIT = "a" * 40


def write(path: Path, contents: object = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("" if contents is None else json.dumps(contents))


@pytest.mark.parametrize(
    ("files", "prefer", "expected"),
    [
        ({"config.json": {"kind": "tagger", "model_type": "musicgen"}}, "", ("tagger", "audiogen")),
        ({"config.json": {"model_type": "musicgen"}}, "", ("token_lm", "transformers")),
        ({"config.json": {"model_type": "musicgen"}}, CODEC, ("codec", "transformers")),
        ({"config.json": {"model_type": "encodec"}}, LM, ("codec", "transformers")),
        ({"config.json": {"model_type": "dac"}}, "", ("codec", "transformers")),
        ({"state_dict.bin": None, "compression_state_dict.bin": None}, "", ("token_lm", "audiocraft")),
        ({"state_dict.bin": None, "compression_state_dict.bin": None}, CODEC, ("codec", "audiocraft")),
        ({"state_dict.bin": None, "config.json": {"model_type": "musicgen"}}, "", ("token_lm", "audiocraft")),
        (
            {"state_dict.bin": None, "config.json": {"model_type": "musicgen"}, "model.safetensors": None},
            "",
            ("token_lm", "transformers"),
        ),
        ({"compression_state_dict.bin": None}, LM, ("codec", "audiocraft")),
        ({"encodec_24khz-d7cc33bc.th": None}, "", ("codec", "encodec")),
        ({"model_index.json": {}, "config.json": {"model_type": "x"}}, "", ("system", "diffusers")),
        ({"model_config.json": {}}, "", ("system", "stable-audio-tools")),
        ({"pytorch_model_main.bin": None, "main_config.json": {}}, "", ("system", "Tango")),
        ({"tangoflux.safetensors": None, "config.json": {}}, "", ("system", "TangoFlux")),
        ({"audioldm.ckpt": None}, "", ("system", "AudioLDM")),
        ({"lafma.ckpt": None, "hifigan.ckpt": None}, "", ("system", "LAFMA")),
    ],
)
def test_what_a_directory_holds(
    tmp_path: Path, files: dict[str, object], prefer: str, expected: tuple[str, str]
) -> None:
    for name, contents in files.items():
        write(tmp_path / name, contents)
    found = find(tmp_path, prefer)
    assert (found.kind, found.layout) == expected
    assert (found.path, found.name) == (tmp_path, str(tmp_path))


def test_what_is_nothing_or_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (
        ("lm_tinny", "neither a directory nor a bundled model .*did you mean 'lm_tiny'"),
        ("runs/lm", "neither a directory nor a bundled model"),  # no hub is asked for a run
        ("a/b/c", "neither a directory"),
        ("org/none", "^org/none cannot be fetched: it is no directory here"),
        (".", "config.json|model.safetensors is missing"),
        ("text.txt", "is a file"),
        ("mimi", r"model_type is 'mimi'; allowed: 'musicgen' \(a generator\), 'encodec', 'dac'"),
        ("deep", "config.json cannot be read"),
    ):
        write(tmp_path / "text.txt")
        write(tmp_path / "mimi" / "config.json", {"model_type": "mimi"})
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / "config.json").write_text("[" * 100_000)
        with pytest.raises(InputError, match=message) as caught:
            find(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match="holds a codec, which audiogen.load_codec opens; a token language model is"
    ):
        find("codec_tiny").check(LM)


def test_names_resolve_to_bundled_models_or_directories(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model / "codec", tmp_path / "weights" / "tiny")
    monkeypatch.setattr("audiogen.models.find.weights_folder", lambda: tmp_path / "weights")
    assert bundled() == ["tiny"]
    assert (
        find("tiny").check(CODEC).path
        == find(tmp_path / "weights" / "tiny").path
        == tmp_path / "weights" / "tiny"
    )
    with pytest.raises(InputError, match=r"bundled model .here: tiny.*did you mean 'tiny'\?"):
        find("tinny")
    with pytest.raises(InputError, match="holds a codec, which .* a token language model is needed"):
        find("tiny").check(LM)


@pytest.mark.parametrize(
    "opens, name, message",
    [
        (AudioGen.from_pretrained, "lafma_tiny", "a latent-diffusion system, which audiogen.load opens"),
        (AudioGen.from_pretrained, "nosuch", r"\(here: lm_tiny\)"),
        (LatentGenerator.from_pretrained, "lm_tiny", "a token language model, which audiogen.load opens"),
        (audiogen.load, "nosuch", r"\(here: lafma_tiny, lm_tiny\); give one of these"),
        (audiogen.load, "tagger_tiny", "holds a tagger, which .*; a token language model or a latent-diff"),
        (audiogen.load_codec, "nosuch", r"\(here: codec_tiny\)"),
        (audiogen.load_codec, "lm_tiny", "a codec is needed here"),
        (load_tagger, "nosuch", r"\(here: tagger_tiny\)"),
    ],
)
def test_a_model_of_another_kind_says_what_opens_it_and_a_missing_one_lists_those_of_the_kind(
    opens: Callable[[str], object], name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opens(name)
    assert "did you mean" not in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- the hub


class Listings(BaseHTTPRequestHandler):
    """The hub's answer to what a model holds, by the folders of its cache; nothing can be downloaded from it."""

    def do_GET(self) -> None:
        server: Hub = self.server  # type: ignore[assignment]
        if self.path.startswith("/api/models/"):  # the client asks for its own purposes, too
            server.asked.append(self.path)
        server.awake.wait(10)
        name = "--".join(self.path.split("/")[3:5])
        snapshot = server.cache / f"models--{name}" / "snapshots" / COMMIT
        files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
        answer = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        data = json.dumps(answer).encode()
        self.send_response(200 if files else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


class Hub(ThreadingHTTPServer):
    asked: list[str]
    cache: Path
    awake: Event


@pytest.fixture
def server(
    tmp_path: Path, tiny_model: Path, tiny_latent: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub whose models are in the cache as well, and a client that may reach it."""
    with Hub(("127.0.0.1", 0), Listings) as server:
        server.asked, server.cache, server.awake = [], tmp_path / "hub", Event()
        server.awake.set()
        folders = {"tokens": tiny_model, "codec": tiny_model / "codec", "latent": tiny_latent}
        for name, folder in folders.items():
            repository = server.cache / f"models--org--{name}"
            shutil.copytree(folder, repository / "snapshots" / COMMIT)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text(COMMIT)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(server.cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}"
        )
        hub._ask.cache_clear()
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.awake.set()
        server.shutdown()
        hub._ask.cache_clear()


def train_from(name: str) -> None:
    """As training from a model does: its sizes, its codec, its weights."""
    parts = build.read_lm(find(name, LM))
    assert LMRecipe.inherit({"init_from": name})["codec"] == parts.codec.location
    build.load_codec(parts.codec.location)
    build.load_lm(name)


def compare(name: str) -> None:
    """As `evaluate compare` does: first whether all models are there."""
    find(name)
    audiogen.load(name, "cpu")


COMMANDS: dict[str, Callable[[Path], object]] = {
    "load a language model": lambda out: audiogen.load("org/tokens", "cpu"),
    "load a latent system": lambda out: audiogen.load("org/latent", "cpu"),
    "AudioGen": lambda out: audiogen.AudioGen.from_pretrained("org/tokens", "cpu"),
    "load a codec": lambda out: audiogen.load_codec("org/codec"),
    "convert a language model": lambda out: convert(["org/tokens", "--to", "audiogen", "-o", str(out)]),
    "convert a codec": lambda out: convert(["org/codec", "--to", "audiogen", "-o", str(out)]),
    "convert a latent system": lambda out: convert(["org/latent", "--to", "audiogen", "-o", str(out)]),
    "generate": lambda out: generate(
        ["--model", "org/tokens", "--text", "rain", "--duration", "0.1", "--out", str(out / "a.wav")]
    ),
    "generate by diffusion": lambda out: generate(
        [
            "--model",
            "org/latent",
            "--text",
            "rain",
            "--duration",
            "0.1",
            "--steps",
            "2",
            "--out",
            str(out / "a.wav"),
        ]
    ),
    "compare": lambda out: compare("org/tokens"),
    "embed": lambda out: load_embedder("codec:org/codec", "cpu"),
    "train from a language model": lambda out: train_from("org/tokens"),
    "train from an autoencoder": lambda out: load_autoencoder("org/latent"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_asks_the_hub_once(server: Hub, tmp_path: Path, command: str) -> None:
    COMMANDS[command](tmp_path / "out")
    assert len(server.asked) == 1, server.asked


def test_a_hub_that_does_not_answer_leaves_the_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, and waited for no longer than the limit, however often the model is opened."""
    assert hub.TIMEOUT_S <= 5
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    server.awake.clear()
    first, second = audiogen.load_codec("org/codec"), audiogen.load_codec("org/codec")
    assert first.identity == second.identity and hub._ask.cache_info().misses == 1
    with pytest.raises(InputError, match="org/none cannot be fetched: .*no answer within 0.2 s"):
        find("org/none")


def test_a_newer_commit_is_noticed(server: Hub) -> None:
    """The revision's commit is what the hub says, and kept for when it cannot be asked."""
    reference = server.cache / "models--org--codec" / "refs" / "main"
    reference.write_text("b" * 40)
    assert find("org/codec").path.name == COMMIT
    assert reference.read_text() == COMMIT
    assert torch.is_tensor(next(audiogen.load_codec("org/codec").parameters()))
