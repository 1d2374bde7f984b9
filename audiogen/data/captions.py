"""Captions of a data set: which mean the same, which is drawn, and wrong ones to validate with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Captioned(Protocol):
    """A data set whose clips have any number of wordings each."""

    def __len__(self) -> int: ...

    def captions(self, index: int) -> Sequence[str]: ...


def wordings(dataset: Captioned | None) -> list[Sequence[str]]:
    """All captions of each clip."""
    return [dataset.captions(index) for index in range(len(dataset))] if dataset else []


def choose(captions: Sequence[str], chance: float) -> str | None:
    """The caption that a number in [0, 1) stands for; None of none."""
    return captions[int(chance * len(captions))] if captions else None


def meanings(clips: Iterable[Sequence[str]]) -> dict[str, str]:
    """Each caption -> one representative of all that may mean the same: captions of one clip do, also in chains.

    "A dog barks" and "Dog barking" word one clip, so neither is a wrong caption for a clip with the other.
    """
    parent: dict[str, str] = {}

    def root(caption: str) -> str:
        while parent.setdefault(caption, caption) != caption:
            caption = parent[caption]
        return caption

    for captions in clips:
        for caption in captions:
            parent[root(caption)] = root(captions[0])
    return {caption: root(caption) for caption in parent}


def shuffle_captions(captions: Sequence[str | None], meaning: Mapping[str, str]) -> list[str | None] | None:
    """For each row the caption of another row with another meaning: the first from half the list away on.

    Deterministic. A row without a caption stays without; None if no two captions differ in meaning.
    """
    shuffled: list[str | None] = []
    for row, caption in enumerate(captions):
        if caption is None:
            shuffled.append(None)
            continue
        start = row + len(captions) // 2
        others = (captions[(start + shift) % len(captions)] for shift in range(len(captions)))
        own = meaning.get(caption, caption)
        other = next((text for text in others if text is not None and meaning.get(text, text) != own), None)
        if other is None:
            return None
        shuffled.append(other)
    return shuffled
