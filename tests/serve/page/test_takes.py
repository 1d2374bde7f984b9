"""The page's sounds without a browser: their files, parts of them, and what makes place for what."""

import asyncio
from pathlib import Path

import torch

from audiogen import audio
from audiogen.serve.engine import Order
from audiogen.serve.page.session import Session, Vote, stem
from audiogen.serve.page.takes import Take, Takes, part
from audiogen.serve.watched import Watched
from tests.serve.conftest import Start


def test_parts_as_players_ask_for_them() -> None:
    data = bytes(range(100))
    for asked, status, body in (
        (None, 200, data), ("bytes=0-", 206, data), ("bytes=10-19", 206, data[10:20]), ("bytes=90-500", 206, data[90:]),
        ("bytes=100-", 200, data), ("bytes=-5", 200, data), ("bytes=5-x", 200, data), ("lines=1", 200, data),
    ):  # fmt: skip
        answer = part(data, "audio/wav", asked)
        assert (answer.status_code, answer.body) == (status, body), asked
    assert part(data, "audio/wav", "bytes=10-19").headers["content-range"] == "bytes 10-19/100"


def test_the_oldest_that_are_over_make_place() -> None:
    takes = Takes(most_bytes=8 * 1000)
    old, running, new = (Take(name, "", name, 16_000) for name in ("old", "running", "new"))
    takes.add(old).hold(torch.zeros(1, 1500))
    takes.add(running).blocks.append(torch.zeros(1, 1500))
    takes.add(new).hold(torch.zeros(1, 1500))
    assert old not in takes and not old.blocks and running in takes and new in takes
    takes.remove(new)
    assert new not in takes and new.sound is None


def test_a_sound_is_mp3_while_it_is_made(start: Start, tmp_path: Path) -> None:
    async def run() -> tuple[list[bytes], Take]:
        worker = start("tokens")
        order = Order("rain", 3.0, 1, is_streamed=True)
        watched = Watched(order)
        take = Take("rain", "", "rain", worker.generator.sample_rate).follow(worker, watched)
        worker.submit(watched.job)
        return [piece async for piece in take.mp3()], take

    pieces, take = asyncio.run(run())
    assert len(pieces) >= 3 and take.is_over and take.sound is not None  # blocks of 1 and 2 s, and the end
    (tmp_path / "a.mp3").write_bytes(b"".join(pieces))
    decoded, rate = audio.load(tmp_path / "a.mp3")
    assert rate == take.sample_rate and take.sound.shape[1] <= decoded.shape[1] < take.sound.shape[1] + 4000
    assert take.card()["plays"] and take.card()["state"] == "done" and take.card()["error"] is None


def test_counts_of_choices_are_escaped() -> None:
    session = Session()
    assert session.table() == ""
    for chosen in ("<b>", "other", "<b>"):
        session.votes.append(Vote('a "dog", barks', 1, 5.0, True, ("<b>", "other"), chosen))
    table = session.table()
    assert "<td>&lt;b&gt;</td><td>2 of 3</td>" in table and "<td>other</td><td>1 of 3</td>" in table


def test_names_of_files() -> None:
    assert stem("A dog: barks/../loud!", 7) == "a-dog-barks-loud-7"
    assert stem(None, 1) == "sound-1" and stem("...", 2) == "sound-2" and len(stem("word " * 99, 3)) < 50
