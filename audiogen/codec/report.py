"""What a command over many clips prints: progress on a terminal, what could not be read, and the speed at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audiogen.codec.transcode import Clip, Part, UnreadableError
from audiogen.errors import InputError

WAITING = 4  # clips that may wait to be saved


@dataclass
class Counts:
    """What became of the clips so far; duration_s is that of those that are done. reasons: by key of the others."""

    bar: Any
    num_done: int = 0
    duration_s: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        return len(self.reasons)

    def each(
        self, clips: Iterable[Clip[Part] | UnreadableError], save: Callable[[Clip[Part]], object]
    ) -> dict[str, str]:
        """Save every clip; one that cannot be read is named, and the others go on -> reasons by key of those.

        Another thread saves, one clip after another, while the next ones are converted. A long clip is saved here: its
        parts are converted while they are written.
        """
        reasons = {}
        saving: deque[tuple[Clip[Part], Future[object]]] = deque()

        def finish() -> None:
            clip, saved = saving.popleft()
            saved.result()
            self._done(clip)

        with ThreadPoolExecutor(1) as writer:
            for clip in clips:
                try:
                    if isinstance(clip, UnreadableError):
                        raise clip
                    if clip.is_long:
                        save(clip)
                        self._done(clip)
                    else:
                        saving.append((clip, writer.submit(save, clip)))
                except UnreadableError as error:
                    reasons[clip.key] = str(error)
                    tqdm.write(f"skipped: {' '.join(str(error).split())}", file=sys.stderr)
                    self.bar.update()
                while len(saving) > WAITING or (saving and saving[0][1].done()):
                    finish()
            while saving:
                finish()
        self.reasons |= reasons
        return reasons

    def _done(self, clip: Clip[Part]) -> None:
        self.num_done += 1
        self.duration_s += clip.header.duration_s
        self.bar.update()


@contextmanager
def report(
    verb: str, num_clips: int, give: Callable[[Mapping[str, Any]], None], out: str, kept: int = 0
) -> Iterator[Counts]:
    """A context around the work; leaving it prints one line, and raises InputError if a clip could not be read.

    verb: "encoded" or "decoded". num_clips: to work on. give: takes the result for `--json`, also where a clip failed.
    out: where the results go. kept: how many more an earlier run had finished.
    """
    began = time.perf_counter()
    # disable None: a bar on terminals only
    with tqdm(total=num_clips, unit="clip", desc=verb, disable=None, leave=False) as bar:
        counts = Counts(bar)
        yield counts
    wall_s = time.perf_counter() - began
    were_there = f", {kept} were there already" if kept else ""
    done_s = counts.duration_s
    speed = f", {done_s / wall_s:.1f} seconds of audio a second" if counts.num_done else ""
    print(f"{verb} {counts.num_done} clips ({done_s:.1f} s) in {wall_s:.1f} s{speed}{were_there}")
    result = {"out": out, verb: counts.num_done, "kept": kept, "failed": counts.reasons}
    give(result | {"sound_s": round(done_s, 3), "spent_s": round(wall_s, 3)})
    if counts.num_failed:
        raise InputError(f"{counts.num_failed} of {num_clips} clips could not be {verb}: named above")


def choose_targets(
    out: Path, names: Sequence[Path], formats: Mapping[str, str], format: str | None, kind: str
) -> list[Path]:
    """The path that each clip's name has below the folder `out`, or `out` itself where that names a file.

    The format's suffix takes the place of the name's own, `a.ogg` -> `a.agtok`; where several clips would share that,
    all of them keep their own before it: `a.ogg.agtok`, `a.opus.agtok`.

    formats: the suffix of each format, the default one first; `kind` says what the files are. InputError where options
    contradict.
    """
    named = out.suffix.lower() if out.suffix.lower() in formats.values() and not out.is_dir() else None
    suffix = formats[format] if format else named or next(iter(formats.values()))
    if not named:
        targets = [name.with_suffix(suffix) for name in names]
        while True:  # again, as a name that is kept may be one that another clip has: a.ogg and a.ogg.wav
            count, before = Counter(targets), targets
            kept = [name.with_name(f"{name.name}{suffix}") for name in names]
            targets = [long if count[short] > 1 else short for short, long in zip(before, kept, strict=True)]
            if targets == before:
                return [out / target for target in targets]
    if len(names) > 1:
        raise InputError(f"--out {out} names one {kind}, for {len(names)} clips: give a folder")
    if named != suffix:
        raise InputError(f"--out {out} ends in {named}, --format is {format}: make them agree")
    return [out]


def check_distinct(targets: Sequence[Path | str], sources: Sequence[str]) -> None:
    """Before any work: no two inputs may end in one output."""
    owner: dict[Path | str, str] = {}
    for target, source in zip(targets, sources, strict=True):
        if target in owner:
            raise InputError(
                f"{owner[target]} and {source} would both become {target}: encode them into two folders"
            )
        owner[target] = source
