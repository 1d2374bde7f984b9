"""The clips of a comparison: which real ones, by which captions, and generated ones kept so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from audiogen import audio
from audiogen.data.manifest import Clip, group_of, held_out
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files.checkpoint import write_json


class Prompt(NamedTuple):
    """A text to generate from, and the real clip that it describes. number: its place in the choice."""

    number: int
    text: str
    clip: Clip

    @property
    def label(self) -> str | None:
        """The class of the clip, if the manifest says one."""
        label = self.clip.fields.get("label")
        return None if label is None else str(label)


def choose(clips: Sequence[Clip], num_clips: int | None = None) -> list[Prompt]:
    """`num_clips` of the clips that have a caption (all for None), each with one of its wordings.

    Where clips have labels, one of each label in turn. The choice is always the same, whatever the clips' order and
    wherever they lie, and the first N of a longer one are the shorter one.
    """
    told = [clip for clip in clips if clip.captions]
    if not told:
        raise InputError(f"none of the {len(clips)} clips has a caption to generate from")
    if num_clips is not None and not 1 <= num_clips <= len(told):
        raise InputError(
            f"--num-clips is {num_clips}, but {len(told)} of the chosen clips have a caption; give 1 to {len(told)} "
            "(more --seeds make more sounds of each)"
        )
    by_label: dict[str, list[Clip]] = {}
    for clip in sorted(told, key=lambda clip: (seed_for("evaluate", _place(clip)), clip.place)):
        by_label.setdefault(str(clip.fields.get("label", "")), []).append(clip)
    turns = [(turn, label, clip) for label in by_label for turn, clip in enumerate(by_label[label])]
    turns.sort(key=lambda entry: entry[:2])
    chosen = [clip for _, _, clip in turns[:num_clips]]
    return [Prompt(number, wording(clip), clip) for number, clip in enumerate(chosen)]


def wording(clip: Clip) -> str:
    """One of a clip's captions, always the same one."""
    return clip.captions[seed_for("wording", _place(clip)) % len(clip.captions)]


def _place(clip: Clip) -> str:
    """Tells a clip from others by its last two names, so that it does not matter where the corpus lies."""
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
        held = held_out([group_of(prompt.clip) for prompt in prompts], 0.5)
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


def is_kept(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier run finished this sound with these settings."""
    try:
        return path.is_file() and json.loads(_beside(path).read_text(encoding="utf-8")) == settings
    except (OSError, ValueError):
        return False


def keep(path: Path, sound: Tensor, sample_rate: int, settings: Mapping[str, Any]) -> None:
    """Write a sound [C, N] as WAV and, beside it, what it was made with; a crash in between leaves it unfinished."""
    if not sound.isfinite().all():
        raise InputError(f"the sound for {path} holds samples that are not finite (NaN or infinity)")
    _beside(path).unlink(missing_ok=True)  # of a sound made otherwise
    audio.save(path, audio.below_full_scale(sound), sample_rate)
    write_json(_beside(path), settings)


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def consecutive(numbers: Iterable[int], size: int) -> list[list[int]]:
    """Runs of consecutive numbers, at most `size` long: [0, 1, 2, 5] by 2 is [[0, 1], [2], [5]]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < size:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
