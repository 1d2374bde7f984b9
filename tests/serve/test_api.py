"""The HTTP API as clients use it: sounds, streams, edits, aliases, and errors that say what to do."""

import asyncio
import base64
import io
import json
import re
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.codec.tokens import read_tokens
from audiogen.errors import InputError
from audiogen.interfaces import Edit, Generator, Sampling
from audiogen.serve.api import Limits, create_app
from audiogen.serve.engine import BLOCKS_S, Job, Order
from audiogen.serve.jobs import Jobs, Kept
from audiogen.serve.refusals import Refused
from tests.serve.conftest import Start

SETTINGS = {"seed": 3, "audio_length": 0.5}
STEPS = {"model": "latent", "num_inference_steps": 2}


class Client:
    """Calls of the app without a network."""

    def __init__(self, app: Any):
        self.app = app

    def __call__(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, timeout=60, **given)

        return asyncio.run(call())

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self("POST", path, json=given)


@pytest.fixture
def client(start: Start) -> Iterator[Client]:
    limits = Limits(max_duration_s=5.0, max_body=500_000)
    yield Client(create_app({name: start(name) for name in ("tokens", "latent")}, limits))


def read(data: bytes) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return torch.from_numpy(samples).T, rate


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() < 1e-4)  # 16 bits


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "opus", "pcm"])
def test_a_sound_comes_in_each_format_with_what_it_takes_to_make_it_again(
    client: Client, models: dict[str, Generator], form: str
) -> None:
    answer = client.post("/v1/audio/generate", input="rain", response_format=form, **SETTINGS)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/")
    facts = {name: answer.headers[f"x-{name}"] for name in ("model", "seed", "sample-rate", "duration")}
    assert facts == {"model": "tokens", "seed": "3", "sample-rate": "8000", "duration": "0.5"}
    (alone,) = models["tokens"].generate(["rain"], 0.5, seed=3)
    if form == "pcm":
        assert answer.content == audio.pcm16(alone)
        return
    sound, rate = read(answer.content)
    assert rate == 8000 and abs(sound.shape[-1] - 4000) < 3000
    if form in ("wav", "flac"):
        assert same(sound, alone)


def test_a_stream_is_the_sound_in_pieces_as_bytes_and_as_events(
    client: Client, models: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"input": "rain", "response_format": "pcm", **SETTINGS}
    alone = audio.pcm16(torch.cat(list(models["tokens"].stream("rain", 0.5, seed=3, chunk_s=BLOCKS_S)), -1))
    pcm = client.post("/v1/audio/generate", stream_format="audio", **asked)
    assert pcm.content == alone and pcm.headers["content-length"] == str(len(alone))
    wav = client.post("/v1/audio/generate", stream_format="audio", **asked | {"response_format": "wav"})
    assert wav.headers["content-length"] == str(len(wav.content))
    with wave.open(io.BytesIO(wav.content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 4000)
        assert file.readframes(9999) == alone
    answer = client.post("/v1/audio/generate", stream_format="sse", **asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [each["type"] for each in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    assert b"".join(base64.b64decode(each["audio"]) for each in events[:-1]) == alone


def test_a_batch_has_an_error_for_each_item_that_fails(client: Client, models: dict[str, Generator]) -> None:
    items = [{"input": "rain"}, {"input": "rain", "audio_length": 99}, {"input": "a dog", "seed": 4, **STEPS}]
    results = client.post("/v1/audio/generate/batch", items=items, **SETTINGS).json()["results"]
    assert [result["index"] for result in results] == [0, 1, 2]
    assert results[1]["error"]["param"] == "audio_length"
    (rain,) = models["tokens"].generate(["rain"], 0.5, seed=3)
    (dog,) = models["latent"].generate(["a dog"], 0.5, seed=4, sampling=Sampling(steps=2))
    for result, sound in ((results[0], rain), (results[2], dog)):
        assert same(
            read(base64.b64decode(result["audio"]))[0], sound[:, : round(0.5 * int(result["sample-rate"]))]
        )


def test_loops_schedules_and_morphs_are_those_of_the_generator(
    client: Client, models: dict[str, Generator]
) -> None:
    for settings, sampling in (
        ({"loop": True}, Sampling(loop=True)),
        (
            {"schedule": "0.2:a dog; 0.3:rain", "crossfade": 0.1},
            Sampling(schedule=((0.2, "a dog"), (0.3, "rain")), crossfade_s=0.1),
        ),
        ({"morph_to": "a dog", "morph": 0.3}, Sampling(to="a dog", morph=0.3)),
    ):
        answer = client.post("/v1/audio/generate", input="rain", **SETTINGS, **settings)
        (alone,) = models["tokens"].generate(["rain"], 0.5, seed=3, sampling=sampling)
        assert answer.status_code == 200 and same(read(answer.content)[0], alone)
    for settings, message in (
        ({"schedule": "rain"}, "schedule has 'rain'; give SECONDS:TEXT"),
        ({"schedule": "9:rain"}, "before the end of the sound, 0.5 s"),
        ({"morph": 0.5}, "morph is between two texts"),
        ({"loop": True, "stream_format": "audio"}, "a loop is a new sound, made whole; drop stream or loop"),
    ):
        answer = client.post("/v1/audio/generate", input="rain", **SETTINGS, **settings)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_a_sound_is_changed_and_continued(client: Client, models: dict[str, Generator]) -> None:
    given = 0.1 * torch.randn(1, 4000)
    (path := io.BytesIO()).name = "a.wav"
    soundfile.write(path, given[0].numpy(), 8000, subtype="FLOAT", format="WAV")

    def edit(settings: dict[str, Any], **form: Any) -> httpx.Response:
        files = {"file": ("../../a.wav", path.getvalue(), "audio/wav")}
        return client("POST", "/v1/audio/edit", files=files, data={"settings": json.dumps(settings), **form})

    answer = edit({"input": "rain", "seed": 1, **STEPS}, inpaint="0.2:0.3")
    change = Edit(given, 8000, None, (0.2, 0.3))
    (alone,) = models["latent"].generate(["rain"], 0.5, seed=1, edit=change, sampling=Sampling(steps=2))
    assert answer.status_code == 200 and same(read(answer.content)[0], alone)
    form = {"inpaint": "0.1:0.2,0.3:0.4", "extend": "0.1", "extend_before": "0.1", "inpaint_resample": "2"}
    answer = edit({"input": "rain", "seed": 1, **STEPS}, **form)
    change = Edit(given, 8000, None, ((0.1, 0.2), (0.3, 0.4)), False, 0.1, 0.1, 2)
    (alone,) = models["latent"].generate(["rain"], 0.7, seed=1, edit=change, sampling=Sampling(steps=2))
    assert answer.status_code == 200 and same(read(answer.content)[0], alone)
    answer = edit({"seed": 1}, extend="0.3")
    (alone,) = models["tokens"].generate([None], 0.8, seed=1, prompt=(given, 8000))
    assert answer.status_code == 200 and same(read(answer.content)[0], alone)
    answer = edit({"seed": 1, "audio_length": 0.8}, prolong="true")
    (alone,) = models["tokens"].generate([None], 0.8, seed=1, prompt=(given, 8000))
    assert answer.status_code == 200 and same(read(answer.content)[0], alone)
    for settings, form, message in (
        ({"input": "rain"}, {"prolong": "true", "strength": "0.5"}, "prolong continues the sound as it is"),
        ({"input": "rain"}, {"inpaint": "0.2:0.3"}, "inpaint is not for a token language model"),
        (
            {"input": "rain", "audio_length": 0.6},
            {"extend": "0.3"},
            "extended to 0.8 s and 0.6 s are to be made",
        ),
        (
            {"input": "rain", "audio_length": 0.6, **STEPS},
            {"extend": "0.3"},
            "extended to 0.8 s and 0.6 s are",
        ),
        ({"input": "rain", "loop": True, **STEPS}, {"strength": "0.3"}, "a loop is a new sound, made whole"),
        ({"input": "rain", "model": "latent"}, {"inpaint": "x"}, "inpaint is 'x'; give A:B in seconds"),
        ({"input": "rain", "nonsense": 1}, {}, "settings: .*nonsense"),
    ):
        answer = edit(settings, **form)
        assert answer.status_code in (400, 422) and re.search(message, answer.json()["error"]["message"])


def test_a_sound_becomes_a_token_file_and_a_sound_again(
    client: Client, models: dict[str, Any], tmp_path: Path
) -> None:
    path, tokens = tmp_path / "a.wav", tmp_path / "a.agtok"
    audio.save(path, 0.1 * torch.randn(1, 4000), 8000)

    def post(verb: str, file: bytes, **form: Any) -> httpx.Response:
        return client("POST", f"/v1/audio/{verb}", files={"file": file}, data=form)

    tokens.write_bytes(post("encode", path.read_bytes(), num_codebooks=2).content)
    header, segments = read_tokens(tokens)
    codec = models["tokens"].codec
    expected = codec.encode(audio.load(path)[0][None], 2)
    assert header.num_codebooks == 2 and torch.equal(
        torch.cat([each.codes for each in segments], -1), expected
    )
    sound = post("decode", tokens.read_bytes(), response_format="flac").content
    assert same(read(sound)[0], codec.decode(expected)[0, :, :4000].clamp(-1, 1))
    damaged = bytearray(tokens.read_bytes())
    damaged[-9] ^= 1
    for answer, message in (
        (post("encode", b"nonsense"), "file is no sound"),
        (post("encode", path.read_bytes(), num_codebooks=99), "num_codebooks is 99"),
        (post("encode", path.read_bytes(), model="latent"), "no codec of tokens"),
        (post("decode", b"nonsense"), "file"),
        (post("decode", bytes(damaged)), "damaged"),
        (post("decode", tokens.read_bytes(), response_format="x"), "allowed are wav"),
    ):
        error = answer.json()["error"]["message"]
        assert answer.status_code in (400, 422) and message in error and "/tmp" not in error


def test_clients_of_others_find_their_own_api(client: Client) -> None:
    answer = client.post("/v1/audio/speech", input="rain", model="tts-1", voice="alloy", speed=1.0)
    assert answer.status_code == 200 and answer.headers["content-type"] == "audio/mpeg"
    asked = {"text": "rain", "duration_seconds": 0.5, "model_id": "eleven_text_to_sound_v2"}
    answer = client("POST", "/v1/sound-generation?output_format=pcm_44100", json=asked)
    assert answer.status_code == 200 and len(answer.content) == 8000
    looped = client("POST", "/v1/sound-generation?output_format=pcm_44100", json=asked | {"loop": True})
    assert looped.status_code == 200 and len(looped.content) == 8000


@pytest.mark.parametrize(
    ("given", "status", "param", "message"),
    [
        (
            {"input": "a", "model": "nosuch"},
            404,
            "model",
            "there is no model 'nosuch' here; there are tokens",
        ),
        ({"input": " "}, 400, "input", "is empty"),
        ({}, 422, "input", "input: Field required"),
        ({"input": "a", "audio_length": 9}, 400, "audio_length", "makes up to 5 s here"),
        ({"input": "a", "audio_length": -1}, 422, "audio_length", "greater than 0"),
        ({"input": "a", "nonsense": 1}, 422, "nonsense", "not permitted"),
        ({"input": "a", "seed": 2**63}, 422, "seed", "less than"),
        ({"input": "a", "num_inference_steps": 3}, 400, "num_inference_steps", "steps is not for a token"),
        (
            {"input": "a", "response_format": "mp3", "stream_format": "sse"},
            400,
            "response_format",
            "wav, pcm",
        ),
        (
            {"input": "a", "model": "latent", "stream_format": "sse"},
            400,
            "stream_format",
            "stream is not for",
        ),
        ({"input": "\ud800"}, 400, None, ""),
        ({"input": "a" * 200_000}, 422, "input", "at most"),
    ],
)
def test_a_bad_request_names_its_field(
    client: Client, given: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    answer = client(
        "POST", "/v1/audio/generate", content=json.dumps(given), headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and message in error["message"]
    assert (answer.status_code in (status, 422), error["param"]) == (True, param or error["param"])


async def pieces() -> AsyncIterator[bytes]:
    """A body whose length no header gives."""
    for _ in range(70):
        yield b" " * 10_000


def test_what_is_no_json_no_sound_too_long_or_nowhere_is_an_error_of_the_same_shape(client: Client) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, torch.zeros(9 * 8000).numpy(), 8000, format="FLAC")  # 9 s in a few bytes
    for path, given, status in (
        ("/v1/audio/generate", {"content": b"{"}, 422),
        ("/v1/audio/generate", {"content": b"a=1", "headers": {"content-type": "text/plain"}}, 422),
        ("/v1/audio/edit", {"files": {"file": b"RIFFnonsense"}}, 400),
        ("/v1/audio/edit", {"files": {"file": silence.getvalue()}}, 400),
        ("/v1/audio/edit", {"files": {"file": bytes(600_000)}}, 413),
        ("/v1/audio/generate", {"content": pieces(), "headers": {"content-type": "application/json"}}, 413),
        ("/v1/audio/nowhere", {}, 404),
    ):
        answer = client("POST", path, **given)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_key_is_asked_for_where_one_is_set(start: Start) -> None:
    client = Client(create_app({"tokens": start("tokens")}, Limits(api_key="s3cret")))
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer nonsense"}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
        ({"xi-api-key": "s3cret"}, 200),
    ):
        answer = client("GET", "/v1/models", headers=headers)
        assert answer.status_code == status
    assert client("GET", "/health").status_code == 200
    assert client("GET", "/v1/models").headers["www-authenticate"] == "Bearer"


def test_a_full_queue_is_503_with_a_time_to_come_back(start: Start) -> None:
    worker = start("tokens")
    client = Client(create_app({"tokens": worker}, Limits()))
    assert client("GET", "/ready").status_code == 200
    worker.max_queue = 0
    for answer in (client("GET", "/ready"), client.post("/v1/audio/generate", input="rain", **SETTINGS)):
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "server_busy"


def test_a_job_is_ordered_watched_fetched_and_forgotten(start: Start, models: dict[str, Generator]) -> None:
    worker = start("tokens")
    app = create_app({"tokens": worker}, Limits())

    async def use() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test/v1/audio", timeout=60
        ) as client:
            given = {"input": "rain", **SETTINGS}
            answer = await client.post("/jobs", json=given)
            job = answer.json()
            assert answer.status_code == 202 and job["status"] in ("queued", "in_progress", "completed")
            path = f"/jobs/{job['id']}"
            while (job := (await client.get(path)).json())["status"] != "completed":
                assert job["status"] in ("queued", "in_progress") and 0 <= job["progress"] <= 1
                early = await client.get(f"{path}/content")
                assert early.status_code in (409, 200)
                await asyncio.sleep(0.01)
            assert (job["progress"], job["place"], job["seed"]) == (1, 0, 3)
            content = await client.get(f"{path}/content")
            (alone,) = models["tokens"].generate(["rain"], 0.5, seed=3)
            assert same(read(content.content)[0], alone) and content.headers["x-seed"] == "3"
            assert (await client.delete(path)).status_code == 204
            assert [(await client.get(path)).status_code, (await client.delete(path)).status_code] == [
                404,
                404,
            ]
            long = (await client.post("/jobs", json=given | {"audio_length": 60})).json()
            assert (await client.get(f"/jobs/{long['id']}/content")).status_code == 409
            assert (await client.delete(f"/jobs/{long['id']}")).status_code == 204
            while worker.running:
                await asyncio.sleep(0.01)
            assert (await client.post("/jobs", json=given | {"stream_format": "sse"})).status_code == 400

    asyncio.run(use())


def test_finished_sounds_make_place_and_go_after_a_while(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, jobs = start("tokens"), Jobs(2)
    kept = [Kept(worker, Job(Order("rain", 1.0, seed), lambda job: None), "wav") for seed in range(4)]
    for each in kept[:3]:
        jobs.add(each)  # those that run are never dropped
    kept[1].job.end("failed", InputError("too bad"))
    assert jobs[kept[0].job.id] is kept[0]
    with pytest.raises(Refused):
        _ = jobs[kept[1].job.id]
    kept[0].job.end("done")
    jobs.add(kept[3])
    monkeypatch.setattr("audiogen.serve.jobs.KEPT_S", -1.0)
    kept[2].job.end("done")
    with pytest.raises(Refused):
        _ = jobs[kept[2].job.id]
    assert kept[1].status()["error"]["message"] == "too bad"


def test_models_and_metrics(client: Client) -> None:
    client.post("/v1/audio/generate", input="rain", **SETTINGS)
    models = {model["id"]: model for model in client("GET", "/v1/models").json()["data"]}
    assert models["tokens"]["streams"] and not models["latent"]["streams"]
    metrics = client("GET", "/metrics").text
    assert 'audiogen_sounds_total{model="tokens"} 1.0' in metrics
    assert 'audiogen_sound_seconds_total{model="tokens"} 0.5' in metrics
    assert 'audiogen_queued{model="latent"} 0.0' in metrics and "audiogen_rows_a_step" in metrics
