"""Manifests, sounds and token shards at URLs: of a file system in memory, and of a web server of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch

from audiogen import audio
from audiogen.data import lines
from audiogen.data.dataset import DataConfig, SourceConfig, open_data, read_source
from audiogen.data.encoded import open_codes
from audiogen.data.manifest import Clip, write_manifest
from audiogen.data.shards import CodeClip, ShardWriter, TokenSpec, is_shard_directory
from audiogen.errors import InputError
from audiogen.files import remote


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four sounds with a manifest, and token shards of two clips below it."""
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path / "cache"))
    folder, random = tmp_path / "corpus", torch.Generator().manual_seed(0)
    clips = []
    for number in range(4):
        path = audio.save(folder / f"wav/{number}.wav", 0.1 * torch.randn(1, 4000, generator=random), 8000)
        clips.append(Clip(str(path), (f"sound {number}",), fields={"fold": number % 2}))
    write_manifest(folder / "manifest.jsonl", clips)
    writer = ShardWriter(folder / "shards", TokenSpec("tiny", "abc", 8000, 1, 80, 2, 16))
    for number in range(2):
        codes = torch.randint(16, (2, 50), generator=random)
        writer.write([CodeClip(f"{number}.wav", codes, 4000, (f"sound {number}",))])
    remote.fetch.cache_clear()
    return folder


@pytest.fixture
def in_memory(corpus: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(str(corpus), "/corpus", recursive=True)
    yield "memory://corpus"
    system.rm("/corpus", recursive=True)


@pytest.fixture
def served(corpus: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="fsspec opens https:// URLs with aiohttp")
    handler = partial(SimpleHTTPRequestHandler, directory=str(corpus))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["in_memory", "served"])
@pytest.mark.parametrize("large", [False, True])
def test_sounds_at_a_url_are_those_of_the_folder(
    kind: str, large: bool, corpus: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = request.getfixturevalue(kind)
    monkeypatch.setattr(lines, "LARGE_BYTES", 1 if large else 10**9)
    for given in (url, f"{url}/manifest.jsonl"):
        found = open_data(
            DataConfig((SourceConfig(given, where={"fold": 1}),), segment_s=0.3, holdout=0.0), 8000
        ).train
        assert [clip.path for clip in found.clips] == [f"{url}/wav/{number}.wav" for number in (1, 3)]
        own = open_data(
            DataConfig((SourceConfig(str(corpus), where={"fold": 1}),), segment_s=0.3, holdout=0.0), 8000
        ).train
        for index in range(2):
            assert torch.equal(found.item(index, 0, 0).data, own.item(index, 0, 0).data)
            assert found.item(index, 0, 0).caption == f"sound {2 * index + 1}"


@pytest.mark.parametrize("kind", ["in_memory", "served"])
def test_token_shards_at_a_url_are_those_of_the_folder(
    kind: str, corpus: Path, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue(kind)}/shards"
    assert is_shard_directory(url) and not is_shard_directory(url.removesuffix("shards") + "wav")
    found, own = (
        open_codes(DataConfig((SourceConfig(place),), holdout=0.0)).train
        for place in (url, str(corpus / "shards"))
    )
    assert len(found) == len(own) == 2
    assert all(torch.equal(found.item(index, 0, 0).data, own.item(index, 0, 0).data) for index in range(2))


def test_a_copy_serves_until_the_file_changes(in_memory: str) -> None:
    system, url = fsspec.filesystem("memory"), f"{in_memory}/manifest.jsonl"
    copy = remote.fetch(url)
    before = copy.stat().st_ino
    remote.fetch.cache_clear()  # as another process
    assert remote.fetch(url).stat().st_ino == before
    system.pipe("/corpus/manifest.jsonl", b'{"audio": "wav/0.wav"}\n')
    assert remote.fetch(url).stat().st_ino == before  # within a process it stays
    remote.fetch.cache_clear()
    assert len(read_source(SourceConfig(url))) == 1


def test_what_cannot_be_had_is_one_line(in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, line in {
        f"{in_memory}/none.jsonl": "none.jsonl: no such file",
        f"{in_memory}/wav": "wav/manifest.jsonl: no such file",
        "nosuch://x/a.jsonl": r"nosuch:// cannot be opened .*pip install '\.\[remote\]' in the checkout",
        "http://127.0.0.1:9/a.jsonl": "http://127.0.0.1:9/a.jsonl.*(cannot be fetched|cannot be opened|no such file)",
    }.items():
        with pytest.raises(InputError, match=line) as raised:
            read_source(SourceConfig(url))
        assert "\n" not in str(raised.value)
    system = fsspec.filesystem("memory")
    system.pipe("/corpus/manifest.jsonl", b'{"audio": "wav/9.wav"}\n')
    data = open_data(DataConfig((SourceConfig(f"{in_memory}/manifest.jsonl"),), segment_s=0.1), 8000).train
    with pytest.raises(InputError, match=r"memory://corpus/wav/9.wav: no such file"):
        data.item(0, 0, 0)
    monkeypatch.setattr(
        type(system), "get_file", lambda self, path, to, **given: Path(to).write_bytes(b"half")
    )
    with pytest.raises(InputError, match=r"0.wav: 4 of \d+ bytes came; run the same command again"):
        remote.fetch(f"{in_memory}/wav/0.wav")
    assert not list(Path(remote.cache_directory()).rglob("0.wav*"))
