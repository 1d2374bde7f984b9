"""Lists of clips: JSONL and CSV manifests, folders of sounds, selection and the held-out share.

A JSONL line is `{"audio": path, "captions": [..] or "caption": "..", "start": s, "duration": s, anything
else}`; a CSV has the columns audio and caption, and optionally start, duration and others. Paths are relative
to the manifest's folder.
"""

import glob
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from audiogen import audio
from audiogen.config import short
from audiogen.data.rows import Row, read_rows, seconds
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError, plain_text
from audiogen.files import remote
from audiogen.files.writing import write_bytes_atomic

SOUND_SUFFIXES = frozenset(
    """.aac .aif .aifc .aiff .au .caf .flac .m4a .mp2 .mp3 .mp4 .oga .ogg .opus .rf64 .snd .w64 .wav .wave .webm
    .wma""".split()
)


LEAST_HELD_OUT = 4  # one clip's loss says little about a model; that of four is the least to choose one by
ClipPart = tuple[str, float, float | None]  # path, start_s, duration_s


@dataclass(frozen=True)
class Clip:
    """A sound file or a part of one.

    path: of the file, as it can be opened. captions: wordings of the same content, none for a clip without
    text. start_s, duration_s: the part; None is up to the end. fields: what else the manifest says (label,
    fold, source).
    """

    path: str
    captions: tuple[str, ...] = ()
    start_s: float = 0.0
    duration_s: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> ClipPart:
        """Different for every two clips."""
        return (self.path, self.start_s, self.duration_s)

    @property
    def key(self) -> str:
        """The clip's name in messages: its path, and where it begins if that is not the file's beginning."""
        return self.path if self.start_s == 0 else f"{self.path}@{self.start_s:g}s"


# -------------------------------------------------------------------------------------------------- manifests


def read_manifest(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> list[Clip]:
    """Read a .jsonl or .csv manifest. Raises InputError with the first bad line's number and the count of others.

    folder: what its paths are relative to, where that is not its own; it may be a URL, as its paths may be.

    Bad are lines that are broken, name a file that is not there or repeat an earlier clip. In a
    CSV, rows of one clip with different captions are its wordings, as in AudioCaps.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"{path}: a manifest ends in .jsonl or .csv")
    clips: dict[ClipPart, Clip] = {}
    lines: dict[ClipPart, int] = {}
    problems: list[tuple[int, str]] = []
    for number, row in read_rows(path, ["audio"]):
        try:
            clip = clip_of(row, path.parent if folder is None else folder)
            earlier = clips.get(clip.place)
            if earlier:
                if path.suffix.lower() != ".csv" or set(clip.captions) <= set(earlier.captions):
                    raise InputError(f"repeats the clip of line {lines[clip.place]}; remove one of them")
                clip = replace(earlier, captions=earlier.captions + clip.captions)
            elif is_missing(clip):
                raise InputError(f"names {clip.path}, which is not a file")
            clips[clip.place] = clip
            lines.setdefault(clip.place, number)
        except InputError as error:
            problems.append((number, str(error)))
    require_good(path, problems)
    if not clips:
        raise InputError(f"{path}: the manifest lists no clips")
    return list(clips.values())


def require_good(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """InputError with the first bad line of a manifest, by number and what is wrong, and the count of others."""
    if problems:
        number, what = min(problems)
        others = f" ({len(problems) - 1} more lines are bad)" if len(problems) > 1 else ""
        raise InputError(f"{path} line {number}: {what}{others}")


def clip_of(row: Row, folder: str | os.PathLike[str]) -> Clip:
    """One manifest row as a Clip; InputError for what is wrong with it."""
    if isinstance(row, InputError):
        raise row
    name = row.get("audio", row.get("path"))
    if not isinstance(name, str) or not name:
        raise InputError("has no key audio that names a file")
    captions = _wordings(row.get("captions", row.get("caption")))
    start = seconds(row, "start", zero=True)
    duration = seconds(row, "duration")
    standard = ("audio", "path", "caption", "captions", "start", "duration")
    fields = {key: value for key, value in row.items() if key not in standard}
    return Clip(_find(folder, name), captions, start or 0.0, duration, fields)


def is_missing(clip: Clip) -> bool:
    """Whether its file is not there; of one at a URL that shows when it is opened."""
    return not remote.is_remote(clip.path) and not os.path.isfile(clip.path)


def _find(folder: str | os.PathLike[str], name: str) -> str:
    """The path of a file by its name, which macOS may have written with other code points for accented letters.

    macOS gives out names decomposed (e and an accent, NFD), most other systems as they were typed (one letter, NFC).
    """
    if "\0" in name:
        raise InputError(f"names {name[:60]!r}, which no file can be called")
    if remote.is_remote(folder) or remote.is_remote(name):
        return remote.joined(str(folder), name)
    path = os.path.join(folder, name)
    if not name.isascii() and not os.path.exists(path):
        others = (os.path.join(folder, unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))
        return next(filter(os.path.exists, others), path)
    return path


def _wordings(given: Any) -> tuple[str, ...]:
    """The captions that differ of a text, a list of texts, or None."""
    captions = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"has captions {short(given)}, expected a text or a list of texts")
    return tuple(dict.fromkeys(plain_text(text.strip(), "the caption") for text in captions if text.strip()))


def write_manifest(path: str | os.PathLike[str], clips: Iterable[Clip]) -> Path:
    """Write a JSONL manifest whose paths are relative to its folder; the file appears whole or not at all."""
    path = Path(path)
    lines = []
    for clip in clips:
        name = Path(os.path.relpath(clip.path, path.parent)).as_posix()
        part = {"start": clip.start_s or None, "duration": clip.duration_s}
        row = {"audio": name, "captions": clip.captions}
        row |= {key: value for key, value in part.items() if value is not None} | clip.fields
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_bytes_atomic(path, "".join(lines).encode())
    return path


# ------------------------------------------------------------------------------------- selection and hold-out


def select(clips: Sequence[Clip], where: Mapping[str, Sequence[Any]]) -> list[Clip]:
    """The clips whose fields have one of the allowed values, as in `{"fold": [1, 2, 3]}`; "3" matches 3."""
    chosen = list(clips)
    for name, allowed in where.items():
        values = {str(clip.fields[name]) for clip in clips if name in clip.fields}
        wanted = {str(value) for value in allowed}
        require_values(name, wanted, values, {key for clip in clips for key in clip.fields})
        chosen = [clip for clip in chosen if str(clip.fields.get(name)) in wanted]
    if not chosen:
        raise InputError(f"where: no clip fulfils all of {dict(where)}")
    return chosen


def require_values(name: str, wanted: Iterable[str], values: AbstractSet[str], fields: Iterable[str]) -> None:
    """InputError where no clip has the field `name`, or not one of the wanted values; fields: that the manifest has."""
    if not values:
        listed = ", ".join(sorted(fields)) or "none"
        raise InputError(f"where.{name}: no clip has this field; the manifest has {listed}")
    if absent := sorted(set(wanted) - values):
        some = ", ".join(sorted(values)[:20])
        raise InputError(f"where.{name}: no clip has the value {absent[0]!r}; there are {some}")


def group_of(clip: Clip) -> str:
    """The group that stays on one side of a split: the recording (`fields["source"]`), else the file.

    A file is its last two names, so that the split does not depend on where the corpus is stored.
    """
    source = clip.fields.get("source")
    return str(source) if source else unicodedata.normalize("NFC", "/".join(Path(clip.path).parts[-2:]))


def order_of(group: str) -> int:
    """A group's place in the order in which groups are held out, of 63 bits."""
    return seed_for("holdout", group)


def held_out(orders: Sequence[int] | NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which entries are held out: those of the first groups, by `order_of`, until `share` of the entries is reached.

    Of few entries a larger share: 4 of them, or a quarter. A group that is more than twice as large as what is wanted
    stays on the other side, unless all are. Always the same for the same groups, whatever their order; at least one
    group if share > 0 and there are two, and never all. orders [n] -> [n].
    """
    total = len(orders)
    if not total or share <= 0:
        return np.zeros(total, bool)
    _, group, sizes = np.unique(np.asarray(orders, np.int64), return_inverse=True, return_counts=True)
    wanted = max(share * total, min(LEAST_HELD_OUT, total / 4))
    most = min(2 * wanted, total - 1)
    chosen = np.zeros(len(sizes), bool)
    count = 0
    for number, size in enumerate(sizes.tolist()):
        if count < wanted and count + size <= most:
            chosen[number] = True
            count += size
    if not count and len(sizes) > 1:
        chosen[np.argmin(sizes)] = True
    return chosen[group]


# ---------------------------------------------------------------------------------------------------- folders


def sound_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Every file below the folder with the suffix of a sound, hidden ones left out, in order of name."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder")
    names = glob.iglob("**/*", root_dir=folder, recursive=True)  # without hidden ones; follows links
    paths = (Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in SOUND_SUFFIXES)
    if not (found := sorted(path for path in paths if path.is_file())):
        raise InputError(f"{folder}: no sound files in it; sounds end in {' '.join(sorted(SOUND_SUFFIXES))}")
    return found


def check_name(path: Path) -> None:
    """InputError for a path that no manifest and no shard can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: its name is not UTF-8; rename it") from None


def scan_folder(
    folder: str | os.PathLike[str], decode: bool = True, progress: Callable[[], object] = lambda: None
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """List a folder's sounds -> (clips with captions and true lengths, bad files as (path, reason)).

    decode reads every file to its end, so damage shows now; otherwise only headers are read. progress is
    called after each file. Captions come from a sidecar `.txt` (one wording a line) or `.json`, else from
    folder and file names.
    """

    def look(path: Path) -> Clip | tuple[str, str]:
        try:
            check_name(path)
            header = audio.info(path)
            frames = header.num_frames
            if decode:
                frames = sum(block.shape[-1] for block in audio.stream(path))
            captions, fields = find_captions(path, Path(folder))
            return Clip(str(path), captions, 0.0, frames / header.sample_rate, fields)
        except InputError as error:
            return str(path), str(error).removeprefix(f"{path}: ")

    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoders release the interpreter lock
        for result in pool.map(look, sound_files(folder)):
            progress()
            found.append(result)
    return [clip for clip in found if isinstance(clip, Clip)], [x for x in found if isinstance(x, tuple)]


def scan(folder: str, out: Path, overwrite: bool) -> None:
    """Write the manifest `out` of the readable sounds of a folder; name the others."""
    if out.suffix != ".jsonl":
        raise InputError(f"--out is {out}; a manifest that scan writes ends in .jsonl")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it, or another name with -o")
    with tqdm(total=len(sound_files(folder)), unit="file", disable=None) as bar:
        clips, bad = scan_folder(folder, progress=bar.update)
    for path, reason in bad:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    if not clips:
        raise InputError(f"{folder}: none of its {len(bad)} sound files can be read; nothing was written")
    write_manifest(out, clips)
    hours = sum(clip.duration_s or 0.0 for clip in clips) / 3600
    silent = sum(not clip.captions for clip in clips)
    of_names = sum(bool(clip.captions) and not any(map(Path.is_file, sidecars(clip.path))) for clip in clips)
    made = f", {of_names} captions made from file names" if of_names else ""
    print(
        f"{out}: {len(clips)} clips, {hours:.2f} h; {len(bad)} bad files, {silent} clips without a caption{made}"
    )


def sidecars(path: str | Path) -> tuple[Path, Path]:
    """Where the captions of a sound file may stand: the .txt and the .json beside it."""
    return Path(path).with_suffix(".txt"), Path(path).with_suffix(".json")


def find_captions(path: Path, root: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions of a sound file, and the other fields of its `.json` sidecar.

    A `.json` holds a text, a list of texts, or an object with captions, caption, description or text.
    """
    text_file, json_file = sidecars(path)
    try:
        if json_file.is_file():
            content, fields = json.loads(json_file.read_text(encoding="utf-8-sig")), {}
            if isinstance(content, dict):
                keys = ("captions", "caption", "description", "text")
                key = next((key for key in keys if content.get(key)), None)
                left_out = (key, "audio", "path", "start", "duration")
                fields = {name: value for name, value in content.items() if name not in left_out}
                content = content[key] if key else []
            if content is None:
                raise InputError("holds no caption")
            return _wordings(content), fields
        if text_file.is_file():
            return _wordings(text_file.read_text(encoding="utf-8-sig").splitlines()), {}
    except InputError as error:
        raise InputError(f"its sidecar {json_file.name} {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"its sidecar cannot be read ({error})") from error
    return _wordings(caption_from_names(path.relative_to(root))), {}


# Names of folders and files that do not describe a sound.
PLAIN_WORDS = frozenset(
    """audio audios clip clips data dataset dsc file files img rec recording sample samples sound sounds take test
    train track untitled valid voc wav wavs zoom""".split()
)


def caption_from_names(path: Path) -> str:
    """Words of the folder, then of the file: `dog_bark/small-puppy_03.wav -> "dog bark, small puppy"`; maybe ""."""
    words = _words(path.stem)
    folder = _words(path.parent.name)
    words = [] if set(words) <= set(folder) else words
    folder = [] if set(folder) <= set(words) else folder
    return ", ".join(" ".join(part) for part in (folder, words) if part)


def _words(name: str) -> list[str]:
    """The words of a name: split at punctuation and CamelCase, without numbers, codes and single letters."""
    tokens = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name)
    kept = [token.lower() for token in tokens if token.isalpha() and (len(token) > 1 or token.lower() == "a")]
    return kept if any(len(token) > 2 and token not in PLAIN_WORDS for token in kept) else []
