"""Which real clips an evaluation uses, by which captions, and which it compares with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from torch import Tensor

from audiogen import audio
from audiogen.config import Range
from audiogen.data.manifest import Clip, group_of, held_out, order_of
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError

SEED_STRIDE = 1_000_000  # prompt `number` of seed s is generated with seed s * SEED_STRIDE + number,
ORDER_OFFSET = 500_000  # and an order prompt with one that much higher

Seconds = Annotated[float, Range(0, 86_400, above=True)]  # of sound or of time, up to a day


def check_distinct(option: str, values: Sequence[object]) -> None:
    """InputError where an option names something twice."""
    if len(set(values)) < len(values):
        raise InputError(f"{option} names one twice: {', '.join(map(str, values))}; name each once")


def in_words(where: Mapping[str, Sequence[object]]) -> str:
    """A selection as notes print it: "fold 1/2, license CC0"."""
    return ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in where.items()) or "all clips"


def label_of(clip: Clip) -> str | None:
    """The class of a clip, if its manifest says one."""
    label = clip.fields.get("label")
    return None if label is None else str(label)


class Prompt(NamedTuple):
    """A text to generate from, and the real clip that it describes.

    number: its place in the choice. kinds, scene: of a prompt for two events in order, the kinds of sound in that order
    and the number of its clip in the built-in corpus; such prompts are numbered by themselves.
    """

    number: int
    text: str
    clip: Clip
    kinds: tuple[str, ...] = ()
    scene: int = 0

    def seed(self, seed: int) -> int:
        """Of its sound, with a seed of the comparison."""
        return seed * SEED_STRIDE + self.number + bool(self.kinds) * ORDER_OFFSET

    def path(self, folder: Path, take: int | str) -> Path:
        """Where the sound of a seed, or what `take` says, lies."""
        return folder / f"{'order_' if self.kinds else ''}{self.number:04d}_{take}.wav"


def choose(clips: Sequence[Clip], num_clips: int | None = None) -> list[Prompt]:
    """`num_clips` of the clips that have a caption (all for None), `balanced`, each with one of its wordings."""
    captioned = [clip for clip in clips if clip.captions]
    if not captioned:
        raise InputError(f"none of the {len(clips)} clips has a caption to generate from")
    if num_clips is not None and not 1 <= num_clips <= len(captioned):
        got = f"--num-clips is {num_clips}, but {len(captioned)} of the chosen clips have a caption"
        raise InputError(f"{got}; give 1 to {len(captioned)} (more --seeds make more sounds of each)")
    return [
        Prompt(number, clip.captions[seed_for("wording", _place(clip)) % len(clip.captions)], clip)
        for number, clip in enumerate(balanced(captioned)[:num_clips])
    ]


def balanced(clips: Sequence[Clip]) -> list[Clip]:
    """The clips by chance, where they have labels one of each label in turn.

    Always in the same order, whatever the order they come in and wherever they lie.
    """
    by_label: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: (seed_for("evaluate", _place(clip)), clip.place)):
        by_label.setdefault(str(clip.fields.get("label", "")), []).append(clip)
    turns = [(turn, label, clip) for label in by_label for turn, clip in enumerate(by_label[label])]
    return [clip for _, _, clip in sorted(turns, key=lambda entry: entry[:2])]


def _place(clip: Clip) -> str:
    """A clip's name by the last two parts of its path, so that it does not matter where the corpus lies."""
    return f"{'/'.join(Path(clip.path).parts[-2:])}@{clip.start_s:g}"


def ceiling_split(reference: Sequence[Clip], prompts: Sequence[Prompt]) -> tuple[list[Clip], list[Prompt]]:
    """Real sounds that share no recording: (what stands for the reference, prompts whose clips are measured by it).

    All prompts' clips against the rest of the reference, where that is at least half of it; otherwise those of half
    of the prompts' recordings.
    """

    def without(measured: Sequence[Prompt]) -> list[Clip]:
        groups = {group_of(prompt.clip) for prompt in measured}
        return [clip for clip in reference if group_of(clip) not in groups]

    measured = list(prompts)
    if 2 * len(without(measured)) < len(reference):
        held = held_out([order_of(group_of(prompt.clip)) for prompt in prompts], 0.5)
        measured = [prompt for prompt, is_held in zip(prompts, held, strict=True) if is_held]
    return without(measured), measured


def shuffled(num: int) -> list[int]:
    """For each of num clips another one, whose caption it gets: never its own where there are two."""
    order = sorted(range(num), key=lambda number: seed_for("shuffle", number))
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[number] for number in range(num)]


def read(clip: Clip, sample_rate: int | None, channels: int | None, duration_s: float | None) -> Tensor:
    """A clip [C, N], of it at most the first duration_s."""
    limits = [limit for limit in (clip.duration_s, duration_s) if limit is not None]
    return audio.load(clip.path, sample_rate, channels, clip.start_s, min(limits, default=None))[0]
