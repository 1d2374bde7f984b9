"""Texts that change while a sound is made: by a schedule, or by `send` while it is played."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from audiogen.errors import InputError, plain_text
from audiogen.interfaces import Condition
from audiogen.text.condition import mix

CROSSFADE_S = 0.5  # of one text into the next
# From one mixture of two texts to the next. Every one begins a window of the language model, which encodes HISTORY_S
# anew. Of 20 pairs of texts tagger_tiny finds the new kind for 0.61 (0.67 where it is asked for alone) and the level
# jumps no more than elsewhere; 0.59 and 5 dB more without mixtures, 0.42 with a history of 1 s (docs/LOG.md).
STAGE_S, HISTORY_S = 0.12, 0.3


class Texts:
    """What `lm.stream` asks before every frame: the text from then on, where it changes.

    encode: a text as a condition of one row. first: that the sound begins with. schedule: seconds and texts, ascending.
    `send` may be called from any thread.
    """

    def __init__(
        self,
        encode: Callable[[str], Condition],
        first: Condition,
        frame_rate: float,
        crossfade_s: float | None = None,
        schedule: Sequence[tuple[float, str]] = (),
    ):
        self._encode, self._now, self._stage = encode, first, max(1, round(STAGE_S * frame_rate))
        fade_frames = round((CROSSFADE_S if crossfade_s is None else crossfade_s) * frame_rate)
        self._num_stages = max(1, round(fade_frames / self._stage))
        self._coming = {round(second * frame_rate): encode(text) for second, text in schedule}
        self._stages: dict[int, Condition] = {}
        self._sent: Condition | None = None
        self._change = threading.Lock()

    def send(self, text: str) -> None:
        """From the next frame on this is the text."""
        condition = self._encode(text)
        with self._change:
            self._sent = condition

    def __call__(self, frame: int) -> Condition | None:
        with self._change:
            sent, self._sent = self._sent, None
        due = [
            begin for begin in self._coming if begin <= frame
        ]  # one may be within a sound that is continued
        goals = [self._coming.pop(begin) for begin in due] + ([] if sent is None else [sent])
        goal = goals[-1] if goals else None
        if goal is not None:
            places = [(frame + number * self._stage, number + 1) for number in range(self._num_stages)]
            now = self._now
            self._stages = {place: mix(now, goal, number / self._num_stages) for place, number in places}
        found = self._stages.pop(frame, None)
        self._now = self._now if found is None else found
        return found


class SoundStream(Iterator[Tensor]):
    """Audio [C, n] piece by piece while it is generated; `send` changes its text from the next frame on.

    What was given out stays. A new text can be in the pieces after a codec's look-ahead, as long as `chunk_s` allows.
    """

    def __init__(self, blocks: Iterator[Tensor], texts: Texts | None):
        """texts: None for a sound that is made of parts, whose texts cannot change."""
        self._blocks, self._texts = blocks, texts

    def __next__(self) -> Tensor:
        return next(self._blocks)

    def send(self, text: str) -> None:
        """Go on with this text; InputError for no words, or where the sound is made of parts, in order."""
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"the text to go on with is {text!r}; give words")
        if self._texts is None:
            raise InputError(
                "the texts of a sound that is made in order cannot change; give Sampling(in_order=False)"
            )
        self._texts.send(plain_text(text, "the text to go on with"))

    def close(self) -> None:
        """No more is made."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()
