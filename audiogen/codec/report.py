"""What a command over many clips prints: progress on a terminal, what could not be read, and the speed at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from audiogen.codec.transcode import Clip, Failed, Part, UnreadableError
from audiogen.errors import InputError


class Report:
    """A context around the work; leaving it prints one line, and raises InputError if a clip could not be read.

    verb: "encoded" or "decoded". num_clips: to work on. kept: how many more an earlier run had finished.
    """

    def __init__(self, verb: str, num_clips: int, kept: int = 0) -> None:
        self.verb, self.num_clips, self.kept = verb, num_clips, kept
        self.num_done = self.num_failed = 0
        self.duration_s = 0.0
        self._started = time.perf_counter()
        # disable None: a bar on terminals only
        self._bar = tqdm(total=num_clips, unit="clip", desc=verb, disable=None, leave=False)

    def each(
        self, clips: Iterable[Clip[Part] | Failed], save: Callable[[Clip[Part]], object]
    ) -> dict[str, str]:
        """Save every clip; one that cannot be read is named, and the others go on -> reasons by key of those."""
        reasons = {}
        for clip in clips:
            try:
                if isinstance(clip, Failed):
                    raise UnreadableError(clip.reason)
                save(clip)
            except UnreadableError as error:
                reasons[clip.key] = str(error)
                self.num_failed += 1
                tqdm.write(f"skipped: {' '.join(str(error).split())}", file=sys.stderr)
            else:
                self.num_done += 1
                self.duration_s += clip.header.duration_s
            self._bar.update()
        return reasons

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if error is not None:
            return
        wall_s = time.perf_counter() - self._started
        kept = f", {self.kept} were there already" if self.kept else ""
        speed = f", {self.duration_s / wall_s:.1f} seconds of audio a second" if self.num_done else ""
        print(f"{self.verb} {self.num_done} clips ({self.duration_s:.1f} s) in {wall_s:.1f} s{speed}{kept}")
        if self.num_failed:
            raise InputError(
                f"{self.num_failed} of {self.num_clips} clips could not be {self.verb}: named above"
            )


def choose_targets(
    out: Path, names: Sequence[Path], formats: Mapping[str, str], format: str | None, kind: str
) -> list[Path]:
    """The path that each clip's name has below the folder `out`, or `out` itself where that names a file.

    formats: the suffix of each format, the default one first; `kind` says what the files are. InputError where options
    contradict.
    """
    named = out.suffix.lower() if out.suffix.lower() in formats.values() and not out.is_dir() else None
    suffix = formats[format] if format else named or next(iter(formats.values()))
    if not named:
        return [out / name.with_suffix(suffix) for name in names]
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
            raise InputError(f"{owner[target]} and {source} would both become {target}: encode them apart")
        owner[target] = source
