"""Level, interruption and the endless WAV file of a sound that is still being made."""

import io
import signal
from collections.abc import Iterator

import pytest
import soundfile
import torch
from torch import Tensor

from audiogen.generate import live as streaming


def test_a_loud_block_is_turned_down_without_a_step_and_what_follows_too() -> None:
    blocks = [0.5 * torch.ones(2, 100), torch.linspace(0.5, 2.0, 100).expand(2, -1), 0.5 * torch.ones(2, 100)]
    made = list(streaming.below_full_scale(blocks))
    assert torch.equal(made[0], blocks[0])
    joined = torch.cat(made, -1)
    assert joined.abs().max() <= 1.0 and joined[:, :200].diff().abs().max() < 0.02
    assert torch.allclose(made[2], 0.5 * blocks[2])
    early = torch.zeros(1, 100)
    early[0, 3] = 4.0  # no time to fade
    (made_early,) = streaming.below_full_scale([early])
    assert torch.allclose(made_early, early / 4)
    assert list(streaming.below_full_scale([torch.zeros(1, 5)]))[0].shape == (1, 5)


def test_an_interruption_ends_the_sound_after_its_first_piece_and_not_before() -> None:
    def blocks(*interrupted: int) -> Iterator[Tensor]:
        for number in range(5):
            for _ in range(interrupted.count(number)):
                signal.raise_signal(signal.SIGINT)
            yield torch.zeros(1, 3)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        assert len(list(streaming.until_interrupted(blocks(2)))) == 3  # the piece that was being made comes
        assert len(list(streaming.until_interrupted(blocks()))) == 5
        for at_once in ((0,), (2, 2)):
            with pytest.raises(KeyboardInterrupt):
                list(streaming.until_interrupted(blocks(*at_once)))
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_wav_file_is_read_by_others() -> None:
    sound = torch.stack([torch.linspace(-1.2, 1, 50), torch.zeros(50)])
    file = io.BytesIO()
    streaming.write_wav(file, sound.split(7, dim=-1), 22050)
    file.seek(0)
    read, rate = soundfile.read(file)
    assert rate == 22050 and read.shape == (50, 2)
    torch.testing.assert_close(torch.from_numpy(read).T.float(), sound.clamp(-1, 1), atol=2**-14, rtol=0)


def test_the_clock_counts_sound_and_the_time_to_the_first_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(streaming.time, "monotonic", lambda: next(times))
    clock = streaming.Clock(100)
    assert len(list(clock.watch([torch.zeros(1, 50), torch.zeros(1, 150)]))) == 2
    assert (clock.first_s, clock.spent_s, clock.sound_s) == (0.5, 2.0, 2.0)
