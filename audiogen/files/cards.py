"""Model cards: the README.md of a model directory, as the Hugging Face hub shows it.

Its first lines, between two of `---`, are YAML for programs: the licence, tags, what the model is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from audiogen.files import writing
from audiogen.files.hub import CARD

UNSTATED = "not stated in its files"
SHOWN = ("init_from", "autoencoder", "codec", "text_from", "seed")  # settings of a recipe that a card repeats
TEXT = """\
---
library_name: audiogen
pipeline_tag: text-to-audio
tags: {tags}
{licence}---
<!-- Before you publish: complete the lines above (`license:`, `datasets:`) and the last two parts. -->

# {name}

{about}

```python
import audiogen

model = audiogen.load("{name}")  # or the path of this directory, or its hub id
sound = model.generate(["a dog barks"], duration_s=5.0)[0]  # [C, N]
```

## How it was made

{made}

## Data and licence

Not stated by whoever trained it.

## Intended use and limits

Not stated by whoever trained it. It makes sounds like those that it was trained on, from descriptions like theirs.
"""


def front_matter(directory: Path) -> dict[str, Any]:
    """The lines for programs of a directory's card; empty where it has none, or none that can be read."""
    path = directory / CARD
    try:
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", path.read_text(encoding="utf-8"), re.DOTALL)
        contents = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return contents if isinstance(contents, dict) else {}


def licence(directory: Path) -> str:
    """The licence that a directory's card states."""
    contents = front_matter(directory)
    name = contents.get("license_name") if contents.get("license") == "other" else contents.get("license")
    return ", ".join(map(str, name)) if isinstance(name, list) else str(name or UNSTATED)


def write(
    directory: Path,
    family: str,
    about: Mapping[str, str],
    info: Mapping[str, Any],
    origin: tuple[str, str] = ("", UNSTATED),
) -> None:
    """A card of a trained model, unless the directory has one.

    about: facts in words. info: as it was recorded. origin: name and licence of the files that it was opened from.
    """
    if (directory / CARD).exists():
        return
    recipe = info.get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    data = recipe.get("data")
    sources = data.get("train") if isinstance(data, Mapping) else None
    opened, licence_of = origin
    facts: dict[str, Any] = {"opened from": opened, "its licence": licence_of if opened else ""}
    facts |= {"data.train": sources} | {key: recipe.get(key) for key in SHOWN}
    facts |= {key: value for key, value in info.items() if not isinstance(value, (Mapping, list))}
    made = [f"- `{key}`: {_short(value)}" for key, value in facts.items() if value not in (None, "", [])]
    text = TEXT.format(
        licence="" if licence_of == UNSTATED else f"license: {json.dumps(licence_of)}\n",
        tags=f"[audiogen, {family.lower().replace(' ', '-')}]",
        name=directory.resolve().name,
        about="\n".join(f"- {key}: {value}" for key, value in {"family": family, **about}.items()),
        made="\n".join(made) or "Its files do not say.",
    )
    writing.write_bytes_atomic(directory / CARD, text.encode())


def _short(value: Any) -> str:
    text = " ".join((f"{value:.4g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
