"""Configurations that other packages wrote: JSON, JSON with comments, and YAML, read key by key.

A reader asks for every key that decides about the result, with its type and range, and calls `done` at the end, which
refuses each key that was neither read nor is on the reader's list of harmless ones. So no setting is ignored silently.
Every error is one line with the file, the dotted key, the value, and what is allowed. `formats.yaml` has the keys of
each format that our configurations take as they are, and those that are harmless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiogen.config import Range, build, field_types, read_table, short, to_plain
from audiogen.errors import InputError
from audiogen.files.tensors import WIDEST, Source

T = TypeVar("T")
REQUIRED: Any = object()  # the default of a key without which a file cannot be read
SIZE = Range(1, WIDEST)
RATE = Range(1, 768_000)  # Hz
RATES = ("sample_rate", "sampling_rate")
ANY = Range()
LONGEST = 256  # values in a list
LARGEST = 1e300  # of numbers: what is near the end of float64 is no setting
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
FORMATS = Path(__file__).with_name("formats.yaml")


class Settings:
    """One mapping of a configuration. where: the file, for messages. key: where in the file the mapping stands.

    All getters take a dotted key (`model.params.timesteps`). Without a default the key must be there; a default of None
    accepts null as well.
    """

    def __init__(self, contents: Any, where: str | Path, key: str = "", used: set[str] | None = None) -> None:
        if not isinstance(contents, Mapping):
            place = f"{where}: {key}" if key else f"{where}"
            raise InputError(f"{place} is {short(contents)}; a mapping of keys to values is needed")
        self.contents = {str(name): value for name, value in contents.items()}
        self.where, self.key = where, key
        self._used: set[str] = set() if used is None else used  # full keys, shared with all sections

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not REQUIRED

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of a key, of any type."""
        value = self._find(key)
        if value is REQUIRED:
            if default is REQUIRED:
                raise InputError(
                    f"{self.where} lacks {self._full(key)}: it is not whole, or of another version"
                )
            return default
        self._used.add(self._full(key))
        return value

    def section(self, key: str, default: Any = REQUIRED) -> Settings:
        """The mapping under a key. Its keys are to be read in turn."""
        value = self._find(key)
        if value is REQUIRED or (value is None and default is not REQUIRED):
            value = self.take(key) if default is REQUIRED else default
        return Settings(value, self.where, self._full(key), self._used)

    def sections(self, key: str) -> list[Settings]:
        """A list of mappings; their keys are key.0, key.1 ..."""
        values = self._find(key)
        if not isinstance(values, list):
            raise self._error(key, self.take(key), "a list of mappings")
        return [
            Settings(value, self.where, f"{self._full(key)}.{index}", self._used)
            for index, value in enumerate(values)
        ]

    def whole(self, key: str, default: Any = REQUIRED, within: Range = SIZE) -> Any:
        """A whole number in a range."""
        return self._get(key, default, int, within)

    def wholes(self, key: str, default: Any = REQUIRED, within: Range = SIZE) -> tuple[int, ...]:
        """A list of whole numbers in a range, at least one."""
        return self._get(key, default, tuple[int, ...], within)

    def number(self, key: str, default: Any = REQUIRED, within: Range = ANY) -> Any:
        """A finite number in a range, as a float."""
        return self._get(key, default, float, within)

    def numbers(self, key: str, default: Any = REQUIRED, within: Range = ANY) -> tuple[float, ...]:
        """A list of finite numbers in a range, at least one."""
        return self._get(key, default, tuple[float, ...], within)

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """true or false."""
        return self._get(key, default, bool)

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A string that is not empty."""
        return self._get(key, default, str)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, at least one."""
        return self._get(key, REQUIRED, tuple[str, ...])

    def choice(self, key: str, allowed: Iterable[Any], default: Any = REQUIRED) -> Any:
        """One of the values that are implemented. default: the value that an absent key stands for, checked as well."""
        value, allowed = self.take(key, default), list(allowed)
        if not any(_same(value, choice) for choice in allowed):
            choices = " or ".join(map(short, allowed))
            raise InputError(
                f"{self.where}: {self._full(key)} is {short(value)}; only {choices} is implemented"
            )
        return value

    def expect(self, **wanted: Any) -> None:
        """Keys of this mapping for which one value is implemented, which is also that of an absent key."""
        for key, value in wanted.items():
            self.choice(key, [value], value)

    def build(self, cls: type[T], keys: str, **more: Any) -> T:
        """A dataclass from `values` and `more` of its fields; what it refuses names the file."""
        return build(cls, self.values(cls, table(keys)) | more, where=str(self.where))

    def values(self, cls: type, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Values for the fields of a dataclass, each by its type. keys: a table of `formats.yaml`."""
        hints = field_types(cls)
        return {field: self._typed(field, hints[field], *key) for field, key in keys.items()}

    def _typed(self, field: str, hint: Any, key: str, default: Any = REQUIRED) -> Any:
        hint, limit = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, SIZE)
        if get_origin(hint) is Literal:
            return self.choice(key, get_args(hint), default)
        whole = RATE if field in RATES else Range(limit.low, SIZE.high)
        return self._get(key, default, hint, ANY if hint in (float, bool) else whole)

    def _get(self, key: str, default: Any, hint: Any, within: Range = ANY) -> Any:
        value = self.take(key, default)
        return None if value is None and default is None else self._as(hint, key, value, within)

    def _as(self, hint: Any, key: str, value: Any, within: Range) -> Any:
        """The value as one of `TYPES` within a range, or as a tuple of what is."""
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        if get_origin(hint) is tuple:
            if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= LONGEST:
                raise self._error(key, value, f"a list of 1 to {LONGEST} values")
            item = get_args(hint)[0]
            return tuple(self._as(item, f"{key}.{index}", v, within) for index, v in enumerate(value))
        if hint is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e3 is a float in YAML
        if hint is float and type(value) is int and abs(value) < LARGEST:
            value = float(value)
        fits = type(value) is hint and value != ""
        if fits and hint in (int, float):
            fits = within.holds(value) and abs(value) < LARGEST
        if not fits:
            raise self._error(key, value, TYPES[hint] + ("" if within == ANY else f" {within}"))
        return value

    def done(self, harmless: Iterable[str] = ()) -> None:
        """Refuse the first key that was not read, here or in any section.

        harmless: dotted keys, or patterns with * (which matches dots, too), of what does not change the result.
        Null, an empty list and an empty mapping set nothing.
        """
        patterns = [self._full(pattern) for pattern in harmless]
        for key, value in _leaves(self.contents, self.key, self._used):
            if not any(fnmatchcase(key, pattern) for pattern in patterns):
                raise InputError(
                    f"{self.where}: {key} is {short(value)}, which is not implemented; without it, the sound would "
                    "be another one"
                )

    def _full(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key else key

    def _find(self, key: str) -> Any:
        value: Any = self.contents
        for part in key.split("."):
            value = value.get(part, REQUIRED) if isinstance(value, Mapping) else REQUIRED
        return value

    def _error(self, key: str, value: Any, needed: str) -> InputError:
        return InputError(f"{self.where}: {self._full(key)} is {short(value)}; it must be {needed}")


def _leaves(value: Any, key: str, used: set[str]) -> Iterator[tuple[str, Any]]:
    """(full key, value) of everything below that is not in `used`; mappings and lists of mappings are entered."""
    if key in used or value is None or value == [] or value == {}:
        return
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _leaves(item, f"{key}.{name}" if key else str(name), used)


def _same(value: Any, choice: Any) -> bool:
    """Equal, where 1 and 1.0 are one value but 1 and true are not."""
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def theirs(config: Any, keys: str) -> dict[str, Any]:
    """The fields of a configuration of ours that a table of `formats.yaml` has, under the other package's keys."""
    return {key: to_plain(getattr(config, field)) for field, (key, *_) in table(keys).items()}


def source(name: str, rules: str, num_codebooks: int = 0) -> Source:
    """Our name of a tensor -> where a file has it, by the first rule of a table that fits the whole name.

    num_codebooks: of a language model, whose release has an embedding and a head for each. A name that no rule fits
    is the file's, too.
    """
    for ours, rule in table(rules).items():
        if found := re.fullmatch(ours, name):
            names = [found.expand(part) for part in rule if isinstance(part, str)]
            names = [part.format(k) for part in names for k in range(num_codebooks if "{}" in part else 1)]
            return Source(tuple(names), *(part for part in rule if not isinstance(part, str)))
    return Source((name,))


def table(name: str) -> Any:
    """A table of `formats.yaml`: format.part."""
    package, part = name.split(".")
    return read_table(FORMATS)[package][part]


# ---------------------------------------------------------------------------------------------------- files


def read_settings(path: Path) -> Settings:
    """A .yaml file, or JSON, which may hold comments and trailing commas."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the released files are not whole; copy it again")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            return Settings(resolve(parse_yaml(text, path), "", path), path)
        return Settings(json.loads(_strict(text)), path)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a huge number
        raise InputError(f"{path} cannot be read: {_line(error)}; copy it again") from None


def parse_yaml(text: Any, where: str | Path) -> DictConfig:
    """A YAML text whose `${...}` are not resolved yet, as `xp.cfg` of audiocraft."""
    if not isinstance(text, str):
        raise InputError(f"{where} is {short(text)}; a text in YAML is needed")
    try:
        top = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as YAML: {_line(error)}; copy it again") from None
    if not isinstance(top, DictConfig):
        raise InputError(f"{where} holds no `key: value` mapping; copy it again")
    return top


def resolve(top: DictConfig, key: str, where: str | Path) -> Any:
    """The value at a dotted key ("" for all) as plain dicts and lists, its `${...}` filled in from anywhere in `top`.

    None where it lacks the key. Only what is asked for is resolved: the rest may name variables of the machine where
    the file was written.
    """
    try:
        value = OmegaConf.select(top, key) if key else top
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: {key or 'the file'} cannot be resolved: {_line(error)}") from None


def _strict(text: str) -> str:
    """JSON without comments and trailing commas; strings stay."""
    string = r'"(?:\\.|[^"\\])*"'
    text = re.sub(rf"({string})|//[^\n]*|/\*.*?\*/", lambda m: m[1] or " ", text, flags=re.S)
    return re.sub(rf"({string})|,(?=\s*[}}\]])", lambda m: m[1] or "", text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
