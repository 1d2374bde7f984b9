"""Every setting of every published format, changed in turn: another system, a refusal, or it is harmless."""

import copy
import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen.diffusion.autoencoders import WaveformAutoencoder, WaveformAutoencoderConfig
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.pickles import read_pickle
from audiogen.models.released import read_released
from audiogen.models.settings import read_settings, table
from audiogen.models.systems import SystemParts, compare_settings, without_weights

# For each format its files of settings, and what changes nothing in each.
FILES: dict[str, dict[str, list[str]]] = {
    "audioldm": {"config.yaml": table("audioldm.harmless")},
    "audioldm2": {"config.yaml": table("audioldm.harmless")},
    "lafma": {
        "exp_config_lfm.json": table("lafma.harmless"),
        "hifigan_16k_64bins.json": table("hifigan.harmless"),
    },
    "stable_audio": {"model_config.json": table("stable_audio.harmless")},
    "tango": {
        "main_config.json": table("tango.harmless"),
        "vae_config.json": table("tango.harmless_vae"),
        "vocoder_config.json": table("hifigan.harmless"),
        "scheduler_config.json": table("diffusers.harmless_scheduler"),
        "diffusion_model_config.json": table("diffusers.harmless"),
    },
    "tangoflux": {"config.json": table("tango.harmless")},
}

NUMBER = torch.ones(1)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of all values that are no mappings; a list of mappings is entered."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def changes(value: Any) -> list[Any]:
    """Other values of the same type; of a list, one value changed or left out."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value * 2 + 1]
    if isinstance(value, str):
        return [f"{value}x"]
    if isinstance(value, list) and value:
        return [[*changes(value[0])[:1], *value[1:]], *([value[:-1]] if value[1:] else [])]
    return [7] if value is None else [[7]]


def changed(contents: Any, path: tuple[Any, ...], value: Any) -> Any:
    contents = copy.deepcopy(contents)
    owner = contents
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return contents


def result(parts: SystemParts) -> tuple[Any, ...]:
    """All that decides about a sound, but for the weights."""
    return parts.config, parts.name, parts.process, parts.sampling, parts.window_s


def folder_of(shared: Path, name: str, tmp_path: Path) -> Path:
    """A release whose settings may be written, with enough of its weights for its settings to be read."""
    folder, source = tmp_path / name, shared / "fixtures" / f"{name}_tiny"
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors" and path.stem != "expected":
            (folder / path.name).symlink_to(path)
        elif path.suffix in (".ckpt", ".pth", ".bin"):
            torch.save(numbers(read_pickle(path)), folder / path.name)
    for file in FILES[name]:
        shutil.copy(source / file, folder / file)
        (folder / file).chmod(0o644)
    if name == "tangoflux":
        small = WaveformAutoencoder(WaveformAutoencoderConfig(width=4, multiples=(1, 2), strides=(4, 2)))
        checkpoint.write_tensors(folder / "vae.safetensors", small.vae.state_dict())
    return folder


def numbers(contents: Any) -> Any:
    """A pickle's contents with one number, which is stored once, in place of every tensor."""
    if isinstance(contents, dict):
        return {key: numbers(value) for key, value in contents.items()}
    return NUMBER if isinstance(contents, torch.Tensor) else contents


def accepted(folder: Path, made: dict[str, LatentSystem] | None = None) -> tuple[Any, ...] | None:
    """What the settings mean; None where they are refused, in one line.

    made: keeps networks by their configuration, so that settings of one configuration are compared with the same.
    """
    try:
        parts = read_released(folder)
        if any(component.settings for component in parts.components):
            key = repr(parts.config)
            made = {} if made is None else made
            if key in made:
                compare_settings(parts, made[key])
            else:
                made[key] = without_weights(parts)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return None
    return result(parts)


def check_every_setting(folder: Path, files: dict[str, list[str]]) -> None:
    """Each setting, changed, is refused or means another system; all harmless ones, changed at once, the same."""
    made: dict[str, LatentSystem] = {}
    expected = accepted(folder, made)
    assert expected is not None
    for file, harmless in files.items():
        path = folder / file
        text = path.read_text()
        contents = together = read_settings(path).contents
        for key, value in leaves(contents):
            if is_harmless(key, harmless):
                together = changed(together, key, changes(value)[0])
                continue
            for other in changes(value):
                path.write_text(json.dumps(changed(contents, key, other)))
                assert accepted(folder, made) != expected, f"{file}: {key} = {other!r} is ignored"
        path.write_text(json.dumps(together))
        assert accepted(folder, made) == expected, f"{file}: a harmless setting is none"
        path.write_text(text)


def is_harmless(key: tuple[Any, ...], harmless: list[str]) -> bool:
    return any(fnmatchcase(".".join(map(str, key)), item) for item in harmless)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_setting_of_the_authors_files_is_never_ignored(name: str, shared: Path, tmp_path: Path) -> None:
    check_every_setting(folder_of(shared, name, tmp_path), FILES[name])


ODD = (0, -1, 10**9, 10**30, 1e400, "x", "", [], {}, [[]], [0], [-1], ["x"], [None], None, True)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_value_of_another_kind_or_size_is_one_line(name: str, shared: Path, tmp_path: Path) -> None:
    """Each setting in turn has one of the odd values: nothing but an InputError may come of it, at once."""
    folder, count = folder_of(shared, name, tmp_path), 0
    for file, harmless in FILES[name].items():
        path = folder / file
        contents = read_settings(path).contents
        for key, _ in leaves(contents):
            if is_harmless(key, harmless):
                continue
            count += 5  # a step that shares no divisor with the number of odd values: all have their turn
            path.write_text(json.dumps(changed(contents, key, ODD[count % len(ODD)])))
            accepted(folder)
        path.write_text(json.dumps(contents))


def test_a_condition_beside_those_of_gpt2_is_not_taken_for_one_of_them(shared: Path, tmp_path: Path) -> None:
    """Below GPT-2's own conditions crossattn_audiomae_pooled is a target of training; beside it, another system."""
    folder = folder_of(shared, "audioldm2", tmp_path)
    path = folder / "config.yaml"
    place = ("model", "params", "cond_stage_config", "crossattn_audiomae_pooled")
    other = {
        "target": "x.AudioMAEConditionCTPoolRand",
        "cond_stage_key": "all",
        "conditioning_key": "crossattn",
    }
    path.write_text(json.dumps(changed(read_settings(path).contents, place, other)))
    with pytest.raises(InputError, match="crossattn_audiomae_pooled"):
        read_released(folder)
