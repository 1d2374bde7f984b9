"""The loader: its order is a function of (seed, epoch, step, rank), and unreadable items are named, never replaced
by silence."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.data.dataset import AudioDataset, Variation
from audiogen.data.loader import AudioLoader, Item, collate, permutation, valid_batches
from audiogen.data.manifest import Clip
from audiogen.errors import InputError
from audiogen.interfaces import AudioBatch, Batch


class Numbers:
    """Item i is one sample: its index; the caption says with which epoch and seed it was asked for."""

    batch_type = AudioBatch
    groups = None

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def item(self, index: int, epoch: int, seed: int) -> Item:
        if index in self.broken:
            raise InputError(f"{index}.wav: damaged")
        return Item(torch.full((1, 1), float(index)), f"{epoch} {seed}", str(index), 1)


def take(loader: AudioLoader, count: int, start: int = 0) -> list[Batch]:
    batches = loader.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_an_epoch_holds_every_item_once_and_the_next_another_order() -> None:
    loader = AudioLoader(Numbers(10), batch_size=4, seed=5)
    order = keys(take(loader, 10))  # 40 places: 4 epochs, batches run across their borders
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(Counter(epoch) == Counter(map(str, range(10))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [batch.captions for batch in take(loader, 3)][2] == ["0 5", "0 5", "1 5", "1 5"]
    assert keys(take(AudioLoader(Numbers(10), 4, seed=6), 10)) != order


def test_the_order_of_all_time() -> None:
    """A change here makes every interrupted run resume elsewhere."""
    assert keys(take(AudioLoader(Numbers(7), 3, seed=1), 3)) == "3 1 4 5 6 2 0 6 3".split()


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_any_step_can_be_the_first(start: int) -> None:
    loader = AudioLoader(Numbers(10), batch_size=3)
    assert keys(take(loader, 5, start)) == keys(take(loader, start + 5))[3 * start :]


def test_ranks_share_the_steps_of_one_process() -> None:
    ranks = [take(AudioLoader(Numbers(11), 2, rank=rank, world=3), 8) for rank in range(3)]
    alone = take(AudioLoader(Numbers(11), 6), 8)
    assert keys(alone) == [key for step in zip(*ranks, strict=True) for key in keys(list(step))]


class Grouped(Numbers):
    """Items 0 to 11 are of one group, 12 to 17 of another, 18 is alone."""

    groups = torch.tensor([5] * 12 + [2] * 6 + [9])


def test_items_of_a_group_are_in_batches_of_their_own() -> None:
    loader = AudioLoader(
        Grouped(19), batch_size=4, seed=3
    )  # 3 batches of the first, 1 of the second, none of the third
    batches = [[int(key) for key in keys([batch])] for batch in take(loader, 80)]
    assert all(len({int(Grouped.groups[item]) for item in batch}) == 1 for batch in batches)
    for epoch in range(0, 80, 4):
        seen = Counter(item for batch in batches[epoch : epoch + 4] for item in batch)
        assert max(seen.values()) == 1 and sum(item < 12 for item in seen) == 12
    places = {
        next(i for i, batch in enumerate(batches[at : at + 4]) if batch[0] > 11) for at in range(0, 80, 4)
    }
    assert places == {0, 1, 2, 3}  # the batches come in any order
    assert {item for batch in batches for item in batch} == set(range(18))  # left out now, chosen then
    assert keys(take(loader, 3, 42)) == [str(item) for batch in batches[42:45] for item in batch]


def test_ranks_share_the_group_of_a_step() -> None:
    ranks = [take(AudioLoader(Grouped(19), 2, rank=rank, world=2), 8) for rank in range(2)]
    alone = take(AudioLoader(Grouped(19), 4), 8)
    assert keys(alone) == [key for step in zip(*ranks, strict=True) for key in keys(list(step))]


def test_a_batch_that_no_group_fills_is_refused() -> None:
    with pytest.raises(
        InputError, match="no 13 clips are of one length; take a smaller fit.batch_size, or group_by_"
    ):
        AudioLoader(Grouped(19), batch_size=13)


def test_repeats_are_different_items() -> None:
    """A dataset lists a repeated clip several times: each has its own crop in an epoch."""
    order = permutation(1000, 3, 0)
    assert order.sort().values.tolist() == list(range(1000))
    assert torch.equal(order, permutation(1000, 3, 0)) and not torch.equal(order, permutation(1000, 4, 0))


def sounds(folder: Path, count: int = 6) -> AudioDataset:
    clips = [
        Clip(
            str(audio.save(folder / f"{i}.flac", torch.full((1, 2000), 0.01 * (i + 1)), 8000)), (f"clip {i}",)
        )
        for i in range(count)
    ]
    return AudioDataset(
        clips,
        8000,
        segment_s=0.1,
        cache_mb=1,
        vary=Variation(mix_probability=0.5, gain_db=(-3.0, 3.0)),
    )


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = sounds(tmp_path)
    Path(dataset.clips[2].key).write_text("not a sound any more")
    state = torch.get_rng_state()
    alone, helped = AudioLoader(dataset, 4, seed=2), AudioLoader(dataset, 4, seed=2, workers=2)
    for a, b in zip(take(alone, 9, 3), take(helped, 9, 3), strict=True):
        assert a.audio is not None and b.audio is not None and torch.equal(a.audio, b.audio)
        assert (a.captions, a.keys, a.lengths.tolist()) == (b.captions, b.keys, b.lengths.tolist())
    assert alone.unreadable == helped.unreadable and alone.unreadable
    assert torch.equal(torch.get_rng_state(), state)  # the model's random numbers are not the loader's


def test_unreadable_items_give_way_to_the_next_of_the_order(caplog: pytest.LogCaptureFixture) -> None:
    whole = keys(take(AudioLoader(Numbers(10), 1), 10))
    broken = int(whole[4])
    loader = AudioLoader(Numbers(10, (broken,)), 1)
    assert keys(take(loader, 10)) == whole[:4] + [whole[5]] + whole[5:]
    assert loader.unreadable == {f"{broken}.wav: damaged": 1} and loader.unreadable.total() == 1
    take(loader, 30)
    assert loader.unreadable.total() == 4  # once an epoch from here on
    assert caplog.text.count("left out: ") == 1  # but it is named once
    assert keys(take(loader, 3, start=4)) == [whole[5], whole[5], whole[6]]  # also when resumed


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_of_nothing_readable_is_an_error(workers: int) -> None:
    loader = AudioLoader(Numbers(3, (0, 1, 2)), 2, workers=workers)
    with pytest.raises(
        InputError, match=r"100 clips in a row cannot be read; the last: \d.wav: damaged"
    ) as caught:
        take(loader, 1)
    assert "\n" not in str(caught.value)


class Deadly(Numbers):
    """The process that loads it is killed, as by the system when memory is short."""

    def item(self, index: int, epoch: int, seed: int) -> Item:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(
        InputError, match=r"ended from outside.*run the same command again, with fewer fit\.workers"
    ):
        take(AudioLoader(Deadly(3), 2, workers=1), 1)


def test_mistakes() -> None:
    for dataset, batch_size, workers in [(Numbers(0), 1, 0), (Numbers(3), 0, 0), (Numbers(3), 1, -1)]:
        with pytest.raises(InputError, match="expected at least 1, 0 and 1"):
            AudioLoader(dataset, batch_size, workers=workers)


def test_collate_pads_to_the_longest() -> None:
    batch = collate([Item(torch.ones(2, 3), "a", "x", 3), Item(torch.ones(2, 5), None, "y", 4)], AudioBatch)
    assert batch.audio.shape == (2, 2, 5)
    assert batch.audio[0].sum() == 6 and not batch.audio[0, :, 3:].any()
    assert batch.lengths.tolist() == [3, 4] and batch.captions == ["a", None] and batch.keys == ["x", "y"]


def test_validation_is_the_same_every_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = sounds(tmp_path)
    first, second = list(valid_batches(dataset, 4)), list(valid_batches(dataset, 4))
    for a, b in zip(first, second, strict=True):
        assert a.audio is not None and b.audio is not None and torch.equal(a.audio, b.audio)
        assert a.captions == b.captions
    assert [len(batch.keys) for batch in first] == [4, 2] and len(set(keys(first))) == 6
    few = list(valid_batches(dataset, 2, count=2))
    assert keys(few) == keys(first)[:4] and keys(few) != sorted(keys(few))
    rest = list(valid_batches(Numbers(5, (0, 1, 2)), 3, count=9))
    assert sorted(keys(rest)) == ["3", "4"] and "left out: 0.wav: damaged" in caplog.text


SCRIPT = """
import os, signal, sys
from audiogen.data.dataset import AudioDataset, BuiltInClip
from audiogen.data.loader import AudioLoader
if __name__ == "__main__":
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    dataset = AudioDataset([BuiltInClip(i) for i in range(4)], 8000, segment_s=0.5, cache_mb=9)
    batches = AudioLoader(dataset, 2, workers=2).batches()
    for step in range(40):
        next(batches)
        if step == 5:
            os.killpg(0, signal.SIGTERM)
    assert stopped
    print(os.getpgid(0), flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_workers_outlive_a_group_signal_but_not_their_parent(end: str) -> None:
    """A scheduler signals all processes of a job; the parent must still get batches to finish its step and save."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, end],
        cwd=root,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == (0 if end == "normal" else -signal.SIGKILL), process.stderr
    group = int(process.stdout)
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the workers are still there")
