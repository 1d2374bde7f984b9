"""A sound longer than what the model was trained on, as several sequences that overlap."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """Frames [begin, end) seen as one sequence, of which [begin, given) are there already."""

    begin: int
    given: int
    end: int


def default_stride(max_frames: int) -> int:
    """Frames that each further window adds: a fifth, as audiocraft's AudioGen."""
    return max(1, max_frames // 5)


def plan_windows(given: int, num_frames: int, max_frames: int, stride: int) -> list[Window]:
    """Cover `num_frames` by sequences of at most `max_frames`, after the first each adding `stride` frames.

    A later window sees the last max_frames - stride frames before it, at positions counted from its own start.
    """
    windows = []
    while given < num_frames:
        begin = 0 if given < max_frames else given - (max_frames - stride)
        windows.append(Window(begin, given, min(begin + max_frames, num_frames)))
        given = windows[-1].end
    return windows
