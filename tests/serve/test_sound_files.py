"""Files that the server sends: their metadata, loudness and shape, and the command that makes the same sound."""

import hashlib
import io
import json
import shlex
from pathlib import Path

import pyloudnorm
import pytest
import soundfile
import torch

from audiogen import audio, provenance
from audiogen.errors import run_command
from audiogen.generate.__main__ import main
from audiogen.serve.engine import Order
from audiogen.serve.orders import origin
from audiogen.serve.page.takes import Take
from tests.serve.conftest import Start
from tests.serve.test_api import SETTINGS, STEPS, Client
from tests.serve.test_api import client as client  # a fixture

HIDDEN = {"input": "a secret", "prompt_metadata": False}


def record(data: bytes, folder: Path, form: str) -> provenance.Provenance:
    path = folder / f"a.{form}"
    path.write_bytes(data)
    found = provenance.read(path)
    assert found is not None
    return found


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "opus", "mp3"])
def test_every_format_says_that_it_is_generated_and_how(client: Client, tmp_path: Path, form: str) -> None:
    asked = SETTINGS | {"input": "rain", "response_format": form, "temperature": 0.7}
    found = record(client.post("/v1/audio/generate", **asked).content, tmp_path, form)
    assert found.settings is not None and found.model_sha256
    wanted = {"text": "rain", "seed": 3, "duration": 0.5, "temperature": 0.7, "model": "tokens"}
    assert wanted.items() <= found.settings.items()
    hidden = client.post("/v1/audio/generate", **asked | HIDDEN).content
    assert record(hidden, tmp_path, form).settings is None and b"secret" not in hidden


@pytest.mark.parametrize(("more", "model"), [({"in_order": False}, "tiny_model"), (STEPS, "tiny_latent")])
def test_the_command_makes_the_sound_that_was_sent(
    client: Client, tmp_path: Path, request: pytest.FixtureRequest, more: dict[str, object], model: str
) -> None:
    """The server names its model as it is asked for; the command needs the directory in its place."""
    shape = {"loudness": -30, "fade_out": 0.1}
    sent = client.post("/v1/audio/generate", **SETTINGS | more | shape | {"input": "rain"}).content
    words = shlex.split(record(sent, tmp_path, "wav").command(str(tmp_path / "again.wav")) or "")
    words[words.index("--model") + 1] = str(request.getfixturevalue(model))
    assert run_command(main, words[3:]) == 0
    samples, again = (
        soundfile.read(file, dtype="int16") for file in (io.BytesIO(sent), tmp_path / "again.wav")
    )
    assert samples[1] == again[1] and (samples[0] == again[0]).all()


def test_streams_and_the_page_have_it_too(client: Client, start: Start, tmp_path: Path) -> None:
    asked = SETTINGS | {"input": "rain", "stream_format": "audio"}
    answer = client.post("/v1/audio/generate", **asked)
    assert len(answer.content) == int(answer.headers["content-length"])
    found = record(answer.content, tmp_path, "wav")
    assert found.settings is not None and found.settings["stream"] is True
    assert audio.load(tmp_path / "a.wav")[0].shape[-1] == 4000
    take = Take("rain", "", "rain", 8000)
    assert take.tags is None  # of what was uploaded

    class Watched:
        class job:
            order = Order("rain", 1.0, 5)

    take._worker, take._watched = start("tokens"), Watched  # type: ignore[assignment]
    assert take.tags is not None and '"seed": 5' in take.tags.comment


def test_a_sound_of_an_upload_names_its_hash(client: Client, tmp_path: Path) -> None:
    file = audio.save(tmp_path / "b.wav", torch.rand(1, 4000) / 2, 8000).read_bytes()
    settings = json.dumps(STEPS | {"seed": 3, "input": "rain"})
    given = {"files": {"file": ("b.wav", file)}, "data": {"settings": settings, "inpaint": "0.1:0.3"}}
    found = record(client("POST", "/v1/audio/edit", **given).content, tmp_path, "wav")
    assert found.inputs == {"init": hashlib.sha256(file).hexdigest()}
    assert found.settings is not None and found.settings["inpaint"] == ["0.1:0.3"]


def test_loudness_rate_and_width_are_of_what_is_sent(client: Client) -> None:
    asked = SETTINGS | {
        "input": "rain",
        "loudness": -23,
        "sample_rate": 48000,
        "stereo_width": 0.5,
        "audio_length": 1,
    }
    answer = client.post("/v1/audio/generate", **asked)
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert (rate, samples.shape) == (48_000, (48_000, 2))
    assert abs(pyloudnorm.Meter(rate).integrated_loudness(samples) + 23) < 0.2
    assert (answer.headers["x-sample-rate"], answer.headers["x-channels"]) == ("48000", "2")
    assert answer.headers["x-duration"] == "1"
    assert "x-duration" not in client.post("/v1/audio/generate", **asked | {"trim_silence": True}).headers


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"loudness": 3}, "--loudness is 3.0; it must be from -70 to -5 LUFS"),
        ({"fade_in": 1, "fade_out": 1}, "take 2 s together, and the sound has 0.5 s"),
        ({"sample_rate": 44_000, "response_format": "mp3"}, "mp3 has no sample rate 44000"),
        (
            {"loudness": -20, "stream_format": "audio"},
            "loudness is for whole sounds; drop it, or stream_format",
        ),
        ({"lowdness": -20}, "lowdness"),
    ],
)
def test_what_cannot_be_is_refused(client: Client, asked: dict[str, object], message: str) -> None:
    answer = client.post("/v1/audio/generate", **SETTINGS | {"input": "rain"} | asked)
    assert answer.status_code in (400, 422) and message in answer.json()["error"]["message"]


def test_the_folder_of_a_model_is_not_sent(start: Start, tiny_model: Path) -> None:
    found = origin(start("tokens"), Order("rain", 1.0, 5))
    assert str(tiny_model) not in json.dumps(found.record())
