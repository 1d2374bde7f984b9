"""Recipes: flat YAML and `a.b=value` overrides, turned into frozen dataclasses.

A recipe is complete: every value a run uses can be read in it. The dataclasses are the truth about what keys
exist and of what type they are; a key or value that does not fit is an `InputError` naming the key, what was
got, what is expected and, for a mistyped word, the nearest match.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiogen.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers a field may hold: `heads: Annotated[int, Range(1)]`. `above`, `below`: that end is excluded."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is inside; NaN never is."""
        inside = self.low <= value <= self.high
        return inside and not (self.above and value == self.low or self.below and value == self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.low == -math.inf:
            return f"{'below' if self.below else 'at most'} {self.high:g}"
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


LARGEST = (1 << 63) - 1  # of an integer: tensors hold no larger ones, and floats none beyond 1e308

# The ranges that many fields have.
Positive = Annotated[int, Range(1)]
NotNegative = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NotNegativeFloat = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]


def check_ranges(config: Any, where: str = "") -> None:
    """Call in a dataclass's `__post_init__`: InputError names the first field outside of its `Range` or `Literal`.

    where: the key under which such a dataclass stands in a recipe.
    """
    for name, hint in field_types(config.__class__).items():
        _check_range(_join(where, name), getattr(config, name), hint)


@cache
def field_types(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, ranges included."""
    return get_type_hints(cls, include_extras=True)


@cache
def _plain_types(cls: Any) -> dict[str, Any]:
    """As `field_types`, without ranges."""
    return get_type_hints(cls)


def _check_range(name: str, value: Any, hint: Any) -> None:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated and isinstance(value, (int, float)):
        for limit in args[1:]:
            if isinstance(limit, Range) and not limit.holds(value):
                raise InputError(f"{name} is {short(value)}; it must be {limit}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise InputError(f"{name} is {short(value)}; it must be {LARGEST} at most")
    elif origin is Literal and isinstance(value, str) and value not in args:
        raise InputError(f"{name} is {short(value)}; it must be {' or '.join(map(str, args))}")
    elif origin in (Union, types.UnionType):
        for member in args:
            _check_range(name, value, member)
    elif origin is tuple and isinstance(value, tuple):
        for index, (item, member) in enumerate(zip(value, _members(args, value), strict=True)):
            _check_range(f"{name}[{index}]", item, member)


def _members(args: tuple[Any, ...], value: Sequence[Any]) -> tuple[Any, ...]:
    """The types of a tuple's members: `int, ...` is as many as the value has."""
    return args[:1] * len(value) if args[1:] == (Ellipsis,) else args


@cache
def read_table(path: Path) -> Any:
    """A YAML file of the package as plain data, by libyaml where it is there: ten times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 (both loaders are safe ones)


def recipe_folder() -> Path:
    """The folder of the built-in recipes: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names that `load_recipe` takes, sorted."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a recipe by name (`lm_tiny`) or path (`my/recipe.yaml`) and apply `a.b=value` overrides in order.

    Values are YAML (`fit.steps=1e4`, `data.train=[a.jsonl,b.jsonl]`). Unknown keys are found by `build`,
    since a recipe file may leave keys at their defaults.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = recipe_folder() / f"{name_or_path}.yaml"
        if not path.is_file():
            raise InputError(
                f"recipe {name_or_path!r} does not exist; {did_you_mean(name_or_path, recipe_names())} "
                "A recipe of your own is named by its path, ending in .yaml"
            )
    try:
        recipe = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"recipe file {path} does not exist") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"recipe file {path} cannot be read as YAML: {reason}") from None
    if not isinstance(recipe, DictConfig):
        raise InputError(f"recipe file {path} holds no `key: value` mapping")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or key != key.strip():
            raise InputError(f"override {override!r} is not of the form key=value, as in fit.steps=1000")
        try:
            value = OmegaConf.from_dotlist([f"value={text}"])["value"]
            OmegaConf.update(recipe, key, value, merge=False, force_add=True)  # in place of what was there
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"override {short(override)} cannot be applied: {reason}") from None
    return recipe


def plain(recipe: DictConfig) -> dict[str, Any]:
    """A recipe as plain dicts and lists, with its `${...}` interpolations resolved."""
    try:
        node = OmegaConf.to_container(recipe, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(f"recipe cannot be resolved: {' '.join(str(error).split())[:200]}") from None
    return {str(key): value for key, value in dict(node).items()}  # type: ignore[arg-type]


def build(cls: type[T], node: Mapping[str, Any] | DictConfig, where: str = "") -> T:
    """Make the dataclass `cls` from a mapping, its nested dataclasses, tuples and dicts included.

    `where` is the key under which `node` stands, for messages. Values that already have their type pass.
    """
    if isinstance(node, DictConfig):
        node = plain(node)
    if not isinstance(node, Mapping):
        raise InputError(
            f"{where or 'recipe'}: got {short(node)}, expected a mapping with keys {_names(cls)}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in node:
        if key not in fields:
            nested = [path for path in _paths(cls) if path.rpartition(".")[2] == key]
            hint = f"did you mean {_join(where, nested[0])}?" if nested else did_you_mean(str(key), fields)
            raise InputError(f"unknown key {_join(where, key)}; {hint}")
    hints = _plain_types(cls)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        if name in node:
            values[name] = _convert(node[name], hints[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            what = _describe(hints[name])
            raise InputError(f"{_join(where, name)} is missing and has no default (a {what})")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as the dicts, lists and strings that JSON and YAML hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        path: value
        for key, item in node.items()
        for path, value in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def to_yaml(value: Any) -> str:
    """A config as YAML text, in the order of its fields."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(value)))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`did you mean 'steps'?` if something is near, and else the list of what is allowed."""
    options = sorted(options)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(options) or 'nothing'}."


def short(value: Any) -> str:
    """A value for a message, on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of more than 4300 digits, or lists in lists in lists
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or an `InputError` naming the key `where`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, where)
    if origin is Literal:
        if value in args and any(type(value) is type(arg) for arg in args):
            return value
        raise InputError(f"{where}: got {short(value)}; {did_you_mean(str(value), map(str, args))}")
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: got {short(value)}, expected a list, as in [1, 2]")
        members = _members(args, value)
        if len(value) != len(members):
            raise InputError(f"{where}: got {len(value)} values, expected {len(members)}")
        pairs = enumerate(zip(value, members, strict=True))
        return tuple(_convert(item, member, f"{where}[{index}]") for index, (item, member) in pairs)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            _convert(key, args[0], f"{where} (key)"): _convert(item, args[1], _join(where, key))
            for key, item in value.items()
        }
    is_flag = isinstance(value, bool)  # which is an int to Python
    if hint is float and isinstance(value, (int, float)) and not is_flag:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5 is a float in YAML, and a fine number of steps
    if isinstance(hint, type) and isinstance(value, hint) and not (is_flag and hint is int):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    raise InputError(f"{where}: got {short(value)}, expected a {_describe(hint)}")


def _convert_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if type(value) in members:
        return value
    members = tuple(member for member in members if member is not type(None))
    if len(members) == 1:
        return _convert(value, members[0], where)
    for member in members:
        try:
            return _convert(value, member, where)
        except InputError:
            continue
    raise InputError(f"{where}: got {short(value)}, expected a {' or '.join(map(_describe, members))}")


def _describe(hint: Any) -> str:
    """A type in a user's words."""
    words = {int: "whole number", float: "number", bool: "true or false", str: "string", Path: "path"}
    if hint in words:
        return words[hint]
    if dataclasses.is_dataclass(hint):
        return f"mapping with keys {_names(hint)}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else _describe(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return {tuple: "list", dict: "mapping"}.get(get_origin(hint) or hint, str(hint))


def _names(cls: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls))


def _paths(hint: Any) -> list[str]:
    """Dotted paths of all keys of a dataclass and of those in it (for `steps` meant as `fit.steps`)."""
    if not dataclasses.is_dataclass(hint):
        return [path for member in get_args(hint) for path in _paths(member)]
    fields = _plain_types(hint).items()  # type: ignore[arg-type]
    return [path for name, inner in fields for path in (name, *(_join(name, key) for key in _paths(inner)))]


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
