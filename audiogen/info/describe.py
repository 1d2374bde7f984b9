"""The lines that `python -m audiogen.info` prints."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.files.checkpoint import read_config
from audiogen.generators import load as generators
from audiogen.generators.token import AudioGen
from audiogen.models.find import CODEC, OWN, Found, bundled, find
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary

SOUNDS = "sounds.json"  # beside the weights: what `tools/which_sounds.py kinds MODEL --out FILE` found
USUALLY = 2 / 3  # share of the takes from which on a kind counts as one that the model makes


def run(names: Sequence[str]) -> None:
    """Describe models, the bundled ones where none is named."""
    for number, name in enumerate(names or [name for name in bundled() if is_generator(name)]):
        if number:
            print()
        for key, value in describe(name).items():
            print(f"{key}: {value}")


def is_generator(name: str) -> bool:
    """Whether a bundled model makes sounds from text."""
    return find(name).kind in generators.GENERATES


def describe(name: str) -> dict[str, str]:
    """A generator: its parts and sizes, its words, its sounds."""
    found = find(name)
    if found.kind == CODEC:
        raise InputError(f"{name} is a codec; python -m audiogen.codec info {name} describes it")
    model = generators.load(found, "cpu")
    longest = "any length" if math.isinf(model.max_duration_s) else f"up to {model.max_duration_s:g} s"
    lines = {
        "model": found.name,
        "directory": str(found.path),
        "family": f"{model.family}, {model.num_parameters / 1e6:.1f} M parameters with text encoder and codec",
        "sound": f"{model.sample_rate} Hz, {model.channels} channel{'s' * (model.channels > 1)}, {longest}",
        "generates": model.latent_rate,
        "guidance": f"{model.guidance:g}",
    }
    lines |= {key: str(value) for key, value in trained(found).items()}
    if (vocabulary := vocabulary_of(model)) is not None and vocabulary.words:
        lines["words"] = f"{len(vocabulary.words)}: {' '.join(sorted(vocabulary.words))}"
    if (found.path / SOUNDS).is_file():
        lines |= sounds(found.path / SOUNDS)
    return lines


def vocabulary_of(model: Any) -> Vocabulary | None:
    """That of an embedded text encoder; None for pretrained ones, whose words come from elsewhere."""
    text = model.conditioner if isinstance(model, AudioGen) else model.system.conditioner.text
    if text is None or not text.config.embedded:
        return None
    tokenizer = (text if isinstance(text, T5Conditioner) else text.embedded).tokenizer
    return tokenizer if isinstance(tokenizer, Vocabulary) else None


def trained(found: Found) -> dict[str, Any]:
    """What the files record of training: steps and validation."""
    if found.layout == OWN and (found.path / "config.json").is_file():
        record = read_config(found.path)["info"]
    elif (found.path / "info.json").is_file():
        record = writing.read_json(found.path / "info.json")
    else:
        return {}
    return {
        key: f"{value:.4g}" if isinstance(value, float) else value
        for key, value in record.items()
        if not isinstance(value, (dict, list)) and not re.search(r"_q\d+$", key)  # by codebook
    }


def sounds(path: Path) -> dict[str, str]:
    """The kinds that it makes whenever asked, or usually, and those that it does not."""
    content = writing.read_json(path)
    takes, found = content["takes"], content["recognised"]
    usual = sorted(kind for kind, number in found.items() if number >= USUALLY * takes)
    others = sorted(set(found) - set(usual))
    return {
        "makes": f"{len(usual)} of {len(found)} kinds, by {content['judge']}: {', '.join(usual)}",
        "seldom makes": ", ".join(others) or "none",
    }
