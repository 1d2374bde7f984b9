"""Damaged and odd settings of our own files: what opens them gives an object or one line, soon and in little memory.

Each case is one file in which one value, somewhere, is removed or replaced. Some 300 cases run in the suite; 2,000 in a
minute with

    python -m pytest tests/models/test_odd_settings.py --hypothesis-profile=thorough
"""

from __future__ import annotations

import copy
import json
import resource
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from audiogen.adapters import Adapter
from audiogen.data.manifest import read_manifest
from audiogen.data.shards import CodeClip, ShardReader, ShardWriter, TokenSpec, write_shard
from audiogen.data.shards import read_rows as shard_rows
from audiogen.diffusion import lora as latent_lora
from audiogen.diffusion.denoisers import denoiser
from audiogen.errors import InputError, opening
from audiogen.files import checkpoint
from audiogen.files.tensors import match
from audiogen.generators.load import AudioGen
from audiogen.lm import lora
from audiogen.models.build import load_codec, read_lm
from audiogen.models.find import find
from audiogen.models.own import load_tagger, save_tagger
from audiogen.models.released import read_released
from audiogen.models.systems import without_weights
from audiogen.tagger.model import Tagger, TaggerConfig
from audiogen.train.run import open_recipe
from tests.diffusion.tiny_systems import tiny

CPU_S, BYTES = 5, 2 * 2**30  # what a case may take
HUGE = (2**18, 10**9, -(10**9), 2**63, 10**30, 1e308, float("inf"), float("nan"))
OTHERS: tuple[Any, ...] = (0, -1, 0.5, "", "x", "\ud800", "a\0b", "../..", [], {}, None, True, False, *HUGE)


class Subject(NamedTuple):
    """A file of settings and what opens it. dump, parse: its contents to text and back."""

    path: Path
    open: Callable[[], object]
    parse: Callable[[str], Any] = json.loads
    dump: Callable[[Any], str] = json.dumps


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, mappings and lists included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def replacements(value: Any) -> st.SearchStrategy[Any]:
    """What a value is replaced by: another kind, a near one, a huge one, itself in lists or mappings."""
    near: list[Any] = [[value], {"x": value}, [value] * 300, str(value), {}, deep(value)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near += [-value, value + 1, value * 1000, float(value)]
    if isinstance(value, list) and value:
        near += [value[:-1], value * 2, value[::-1], [None, *value]]
    return (
        st.sampled_from(near) | st.sampled_from(OTHERS) | st.integers() | st.floats() | st.text(max_size=20)
    )


def deep(value: Any) -> Any:
    for _ in range(200):
        value = [value]
    return value


@st.composite
def odd(draw: st.DrawFn, contents: Any) -> Any:
    """Contents with one value removed, replaced or doubled under another key."""
    contents = copy.deepcopy(contents)
    *parents, last = draw(st.sampled_from(list(places(contents))))
    owner = contents
    for key in parents:
        owner = owner[key]
    change = draw(st.sampled_from(["remove", "replace", "replace", "replace", "rename"]))
    if change == "replace":
        owner[last] = draw(replacements(owner[last]))
    elif change == "rename" and isinstance(owner, dict):
        owner[draw(st.sampled_from([f"{last}x", "", "kind"]))] = owner.pop(last)
    else:
        del owner[last]
    return contents


class TooLong(BaseException):
    """No `Exception`, so that no code that is tried can catch it."""


@contextmanager
def limits() -> Iterator[None]:
    """Ends what is inside after `CPU_S` of processor time; it gets `BYTES` of address space beyond what is in use."""

    def stop(*_: object) -> None:
        raise TooLong(f"more than {CPU_S} s of processor time")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.signal(signal.SIGPROF, handler)


def check(subject: Subject) -> None:
    """What opens the file gives an object, or an error of one line, which is not one of too little memory."""
    try:
        with limits():
            subject.open()
    except TooLong as error:  # which would end the whole run of tests
        raise AssertionError(str(error)) from error
    except InputError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 800, str(error)
        cause: BaseException | None = error
        while cause := cause.__context__:  # also behind `from None`
            assert not isinstance(cause, MemoryError) and "alloc" not in str(cause), str(cause)


@pytest.mark.parametrize("take", [lambda: bytearray(2 * BYTES), lambda: torch.zeros(BYTES), lambda: spin()])
def test_too_much_memory_or_time_is_noticed_also_where_it_is_caught(
    take: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.CPU_S", 0.1)

    def opened() -> None:
        with opening("it", "give another"):
            take()

    with pytest.raises(AssertionError):
        check(Subject(Path(), opened))


def spin() -> None:
    while True:
        pass


# --------------------------------------------------------------------------------------------- our files


def copied(source: Path, folder: Path) -> Path:
    return shutil.copytree(source, folder, copy_function=shutil.copy)


def language_model(source: Path, folder: Path, file: str) -> Subject:
    copied(source, folder)

    def read() -> None:
        parts = read_lm(find(folder))
        _ = parts.tensors
        if file.startswith("text"):
            parts.open_text("cpu")

    return Subject(folder / file, read)


def latent_system(source: Path, folder: Path, file: str) -> Subject:
    """A system is made once for each configuration; its weights, mapped once, are compared and not copied."""
    copied(source, folder)
    made = set()
    mapped = cache(load_file)

    def read() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "load_file", lambda path: dict(mapped(path)))
            parts = read_released(folder)
        if repr(parts.config) not in made:
            system = without_weights(parts)
            made.add(repr(parts.config))
            for part in parts.components:
                own = system.get_submodule(part.part).state_dict()
                match(own, part.tensors, part.source, part.where, part.ignore)

    return Subject(folder / file, read)


def shards(folder: Path) -> Subject:
    spec = TokenSpec("tiny", "ab" * 8, 8000, 1, 80, 3, 11)
    clips = [
        CodeClip(f"a/{n}.wav", torch.full((3, 5 + n), n), 400, ("a dog", "a dog barks")) for n in range(3)
    ]
    ShardWriter(folder, spec).write(clips, {"b.wav": "it is damaged"})

    def read() -> None:
        reader = ShardReader(folder)
        for index in range(len(reader)):
            reader.codes(index)
        ShardWriter(folder, spec)

    return Subject(folder / "index.json", read)


def rows(folder: Path) -> Subject:
    """The rows of a shard's clips, which lie in its header."""
    read, path = shards(folder).open, folder / "shard-00000.safetensors"
    codes = load_file(path)
    index = json.loads((folder / "index.json").read_text())
    (folder / "rows.json").write_text(json.dumps(shard_rows(path)))

    def open_() -> None:
        with suppress(UnicodeEncodeError):  # which no shard can hold
            write_shard(path, codes, json.loads((folder / "rows.json").read_text()))
        index["shards"][0]["crc32"] = zlib.crc32(path.read_bytes())
        (folder / "index.json").write_text(json.dumps(index))
        read()

    return Subject(folder / "rows.json", open_)


def state(folder: Path) -> Subject:
    checkpoint.save_state(folder, {"step": 3, "optim": {0: {"m": torch.ones(2)}}, "rng": [1, (2.5, None)]})
    (folder / checkpoint.CHECKSUMS).unlink()  # which would refuse every case
    return Subject(folder / "state.json", lambda: checkpoint.load_state(folder))


def adapter(source: Path, folder: Path) -> Subject:
    lm = AudioGen.from_pretrained(source, "cpu", "float32", packed=False).lm
    config = lora.LoraConfig(rank=2)
    plain = copy.deepcopy(lm)
    lora.add(lm, config)
    lora.save_adapter(folder, lm, config, "tiny")
    return Subject(folder / "config.json", lambda: lora.load_adapters(plain, [Adapter(folder)]))


def latent_adapter(folder: Path) -> Subject:
    network, config = denoiser(tiny("stable_audio").denoiser), latent_lora.LatentLoraConfig(rank=2)
    plain = copy.deepcopy(network)
    latent_lora.add(network, config)
    latent_lora.save_adapter(folder, network, config, "tiny")
    return Subject(folder / "config.json", lambda: latent_lora.load_adapters(plain, [Adapter(folder)]))


def tagger(folder: Path) -> Subject:
    save_tagger(
        folder,
        Tagger(
            TaggerConfig(groups={"kind": ("dog", "rain")}, widths=(4, 4), time_pools=(2, 2), n_mels=8, dim=4)
        ),
    )
    return Subject(folder / "config.json", lambda: load_tagger(folder))


def manifest(folder: Path) -> Subject:
    folder.mkdir()
    (folder / "a.wav").touch()
    row = {"audio": "a.wav", "captions": ["a dog", "barks"], "start": 1.5, "duration": 2.0, "fold": 1}
    path = folder / "m.jsonl"
    return Subject(write(path, json.dumps(row)), lambda: read_manifest(path))


def recipe(folder: Path, name: str) -> Subject:
    folder.mkdir()
    text = (Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text()
    path = folder / "recipe.yaml"
    return Subject(write(path, text), lambda: open_recipe(str(path)), yaml.safe_load, dump_yaml)


def dump_yaml(value: Any) -> str:
    try:
        return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))  # ten times as fast
    except UnicodeEncodeError:  # of surrogates
        return yaml.safe_dump(value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


LM_FILES = ("config.json", "text/config.json")
LATENT_FILES = ("system.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
                "vae/config.json", "text/config.json")  # fmt: skip
RECIPES = ("lm_tiny", "codec_tiny", "waveform_autoencoder_tiny", "tagger_tiny", "audioldm2_tiny", "clap_tiny")
SUBJECTS = [
    *(f"lm {file}" for file in LM_FILES),
    *(f"latent {file}" for file in LATENT_FILES),
    *(f"recipe {name}" for name in RECIPES),
    *("codec", "shards", "rows", "state", "adapter", "latent_adapter", "tagger", "manifest"),
]
SIZED = ("lm config.json", "lm text/config.json", "codec", "tagger")


@pytest.fixture
def subject(request: pytest.FixtureRequest, tiny_model: Path, tiny_latent: Path, tmp_path: Path) -> Subject:
    """What a test names by one of `SUBJECTS`."""
    kind, _, file = request.param.partition(" ")
    folder = tmp_path / "it"
    makers: dict[str, Callable[[], Subject]] = {
        "lm": lambda: language_model(tiny_model, folder, file),
        "latent": lambda: latent_system(tiny_latent, folder, file),
        "recipe": lambda: recipe(folder, file),
        "codec": lambda: Subject(
            copied(tiny_model / "codec", folder) / "config.json", lambda: load_codec(folder)
        ),
        "shards": lambda: shards(folder),
        "rows": lambda: rows(folder),
        "state": lambda: state(folder),
        "adapter": lambda: adapter(tiny_model, folder),
        "latent_adapter": lambda: latent_adapter(folder),
        "tagger": lambda: tagger(folder),
        "manifest": lambda: manifest(folder),
    }
    made = makers[kind]()
    made.open()
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
def test_an_odd_value_anywhere_is_one_line_or_an_object(subject: Subject) -> None:
    @given(odd(subject.parse(subject.path.read_text())))
    def cases(changed: Any) -> None:
        subject.path.write_text(subject.dump(changed), encoding="utf-8", errors="surrogatepass")
        check(subject)

    cases()


@pytest.mark.parametrize("subject", SIZED, indirect=True)
def test_a_huge_number_in_every_place_is_one_line_or_an_object(subject: Subject) -> None:
    contents = subject.parse(subject.path.read_text())
    for *parents, last in places(contents):
        changed = copy.deepcopy(contents)
        owner = changed
        for key in parents:
            owner = owner[key]
        if type(owner[last]) in (int, float):
            for value in (1000 * owner[last], 10**6, 10**9):
                owner[last] = value
                subject.path.write_text(subject.dump(changed))
                check(subject)


def test_damaged_bytes_of_a_vocabulary_or_a_file_of_settings_are_one_line_or_an_object(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model, tmp_path / "it")
    files = [folder / "text" / "vocabulary.model", folder / "config.json", folder / "text" / "config.json"]
    whole = {path: path.read_bytes() for path in files}

    @given(st.sampled_from(files), st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 8))
    def cases(path: Path, place: int, put: bytes, removed: int) -> None:
        data = whole[path]
        place %= len(data)
        path.write_bytes(data[:place] + put + data[place + removed :])
        check(Subject(path, lambda: read_lm(find(folder)).open_text("cpu")))
        path.write_bytes(data)

    cases()
