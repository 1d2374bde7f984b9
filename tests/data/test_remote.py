"""Manifests, sounds and token shards at URLs: of a file system in memory, a web server and an S3 server."""

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
from audiogen.codec.__main__ import main
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
    handler = partial(SimpleHTTPRequestHandler, directory=str(corpus.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/corpus"
        server.shutdown()


@pytest.fixture
def in_s3(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    moto = pytest.importorskip(
        "moto.server", reason="an S3 server: pip install 'moto[s3]' flask flask-cors s3fs"
    )
    s3fs = pytest.importorskip("s3fs", reason="fsspec opens s3:// URLs with s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://{}:{}".format(*server.get_host_and_port()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("sounds")
    system.put(str(corpus), "sounds/corpus", recursive=True)
    yield "s3://sounds/corpus"
    system.rm("sounds", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.parametrize("kind", ["in_memory", "served", "in_s3"])
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


@pytest.mark.parametrize("kind", ["in_memory", "served", "in_s3"])
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


@pytest.mark.parametrize("kind", ["in_memory", "served", "in_s3"])
def test_sounds_at_a_url_are_encoded_as_those_of_the_folder(
    kind: str, corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, out = request.getfixturevalue(kind), tmp_path / "out"
    for given, name in (
        (str(corpus / "manifest.jsonl"), "own"),
        (f"{url}/manifest.jsonl", "listed"),
        (url, "folder"),
    ):
        assert main(["encode", given, "-o", str(out / name), "--shards", "3", "--device", "cpu"]) == 0
        assert main(["encode", given, "-o", str(out / f"{name}_files"), "--device", "cpu"]) == 0
    assert main(["encode", f"{url}/wav/2.wav", "-o", str(out / "one.agtok")]) == 0
    own = files_of(out / "own")
    assert len(own) == 3 and files_of(out / "listed") == files_of(out / "folder") == own
    files = files_of(out / "own_files")
    assert list(files) == [f"wav/{number}.agtok" for number in range(4)]
    assert files_of(out / "listed_files") == files_of(out / "folder_files") == files
    assert len((out / "one.agtok").read_bytes()) > 100
    with pytest.raises(InputError, match="1 of 1 clips could not be encoded"):
        main(["encode", f"{url}/none.wav", "-o", str(out / "none")])
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        main(["encode", f"{url}/none.jsonl", "-o", str(out / "none")])


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each file by its path below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


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
