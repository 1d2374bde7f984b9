"""Level, time, interruption and the endless WAV file of a sound that is still being made."""

import io
import signal
from collections.abc import Iterator

import pytest
import soundfile
import torch
from torch import Tensor

from audiogen.generate import live as streaming


def test_the_level_of_what_passes_is_measured_and_said() -> None:
    for peak, down_db, remark in (
        (0.5, 0.0, ""),
        (1.0, 6.02, "  turned down by 6.0 dB"),
        (1e-4, 0.0, "  almost silent, -80 dBFS"),
        (0.0, 0.0, "  almost silent, -200 dBFS"),
    ):
        meter = streaming.Meter()
        assert len(list(meter.watch([peak * torch.ones(2, 30), peak * torch.ones(2, 5)]))) == 2
        assert meter.remark(down_db) == remark


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
