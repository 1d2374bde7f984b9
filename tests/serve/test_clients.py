"""Clients that people have, against a server that listens: each gets the sound that its request has alone."""

import asyncio
import io
import json
import shutil
import subprocess
import wave
from typing import Any

import httpx
import pytest

from audiogen import audio
from audiogen.interfaces import Generator
from tests.serve.conftest import Live


def alone(generator: Generator, text: str, duration_s: float, seed: int) -> bytes:
    return audio.pcm16(generator.generate([text], duration_s, seed=seed)[0])


def test_openai_sdk(live: Live) -> None:
    openai = pytest.importorskip("openai", reason="needs the package openai")
    client = openai.OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0, timeout=60)
    asked: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "rain falls"}
    whole = client.audio.speech.create(**asked, response_format="wav")
    with wave.open(io.BytesIO(whole.content)) as file:
        assert (file.getframerate(), file.getnframes()) == (8000, 5 * 8000)
    kind = client.audio.speech.create(**asked).response.headers["content-type"]
    assert kind == "audio/mpeg"
    streamed = {"response_format": "pcm", "stream_format": "audio"}
    with client.audio.speech.with_streaming_response.create(**asked, **streamed) as answer:
        pieces = list(answer.iter_bytes())
    assert len(pieces) > 1 and sum(map(len, pieces)) == 5 * 16_000
    assert [model.id for model in client.models.list()] == ["tokens"]
    with pytest.raises(openai.BadRequestError, match="text 0 is empty") as raised:
        client.audio.speech.create(**asked | {"input": " "})
    assert raised.value.param == "input"


def test_ffmpeg_reads_a_stream_and_its_length(live: Live, models: dict[str, Generator]) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    asked = {"input": "rain", "audio_length": 2.5, "seed": 3, "stream_format": "audio"}
    command = ["ffmpeg", "-nostdin", "-headers", "Content-Type: application/json\r\n", "-post_data"]
    command += [json.dumps(asked).encode().hex(), "-i", f"{live.url}/v1/audio/generate", "-f", "s16le", "-"]
    run = subprocess.run(command, capture_output=True, timeout=60)
    assert b"Duration: 00:00:02.50" in run.stderr, run.stderr.decode()
    assert len(run.stdout) == 2.5 * 16_000
    blocks = models["tokens"].stream("rain", 2.5, seed=3, chunk_s=1.0)  # type: ignore[attr-defined]
    assert run.stdout == b"".join(map(audio.pcm16, blocks))


def test_64_clients_at_once_get_the_sounds_that_they_have_alone(
    live: Live, models: dict[str, Generator]
) -> None:
    texts = ("rain", "a dog", "a clock ticks")

    async def ask(client: httpx.AsyncClient, number: int) -> bytes:
        asked = {"input": texts[number % 3], "audio_length": 0.2, "seed": number % 4}
        asked |= {"response_format": "pcm"} | ({"stream_format": "audio"} if number % 2 else {})
        answer = await client.post(f"{live.url}/v1/audio/generate", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.content

    async def all_at_once() -> list[bytes]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=100) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(64)))

    expected = {(text, seed): alone(models["tokens"], text, 0.2, seed) for text in texts for seed in range(4)}
    for number, got in enumerate(asyncio.run(all_at_once())):
        assert got == expected[texts[number % 3], number % 4], number
    assert live.worker.joined is not None and live.worker.joined.average() > 1.5
