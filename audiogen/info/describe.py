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
from audiogen.files.hub import CARD
from audiogen.generators import load as generators
from audiogen.generators.facts import facts
from audiogen.models import listing
from audiogen.models.find import CODEC, OWN, Found, bundled, look

SOUNDS = "sounds.json"  # beside the weights: what `tools/which_sounds.py kinds MODEL --out FILE` found
USUALLY = 2 / 3  # share of the takes from which on a kind counts as one that the model makes


def run(names: Sequence[str], card: bool = False, words: bool = False) -> list[dict[str, str]]:
    """Describe models, the bundled generators where none is named. card, words: print those as well."""
    described = []
    for number, name in enumerate(names or bundled(generators.GENERATES)):
        if number:
            print()
        described.append(describe(name, words))
        for key, value in described[-1].items():
            print(f"{key}: {value}")
        path = Path(described[-1]["directory"], CARD)
        if card:
            print(f"\n{path.read_text(encoding='utf-8')}" if path.is_file() else "It has no model card.")
    return described


def describe(name: str, words: bool = False) -> dict[str, str]:
    """A generator: its sounds, its parts and sizes, the options it takes; its weights are not read.

    words: with those that it was trained with. Of a hub id that is not in the cache, what its settings say, which alone
    are downloaded.
    """
    found, whole = look(name)
    if found.kind == CODEC:
        raise InputError(f"{name} is a codec; python -m audiogen.codec info {name} describes it")
    generators.check_generates(found)
    listed = listing.describe(found)
    lines = {"model": found.name}
    if (found.path / SOUNDS).is_file():
        lines |= sounds(found.path / SOUNDS)
    lines |= {"directory": str(found.path), "family": listed.family}
    if not whole:
        rate = "not in its settings" if listed.sample_rate is None else f"{listed.sample_rate} Hz"
        lines |= {"sound": rate, "licence": listed.licence}
        return lines | {"on disk": "settings alone; the first command that opens it downloads the weights"}
    about = facts(found)
    longest = "any length" if math.isinf(about.max_duration_s) else f"up to {about.max_duration_s:g} s"
    lines |= {
        "family": about.family,
        "sizes": about.sizes,
        "sound": f"{about.sample_rate} Hz, {about.channels} channel{'s' * (about.channels > 1)}, {longest}",
        "generates": about.latent_rate,
        "defaults": about.defaults,
        "own options": " ".join(f"--{option.replace('_', '-')}" for option in about.options),
        "licence": listed.licence,
        "on disk": f"{listed.size / 1e6:,.1f} MB, layout of {found.layout}",
    }
    lines |= {key: str(value) for key, value in trained(found).items()}
    if about.vocabulary is not None and about.vocabulary.words:
        shown = " ".join(sorted(about.vocabulary.words)) if words else "--words lists them"
        lines["words"] = f"{len(about.vocabulary.words)}: {shown}"
    return lines


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
