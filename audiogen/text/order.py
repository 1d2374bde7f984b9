"""Texts that say what comes after what: "a bell, then a siren"."""

from __future__ import annotations

import re

_NEXT = re.compile(r"\s*[,;.]?\s+(?:and\s+then|then|followed\s+by|before|after\s+that,?)\s+", re.IGNORECASE)
_LATER = re.compile(r"\s*,?\s+after\s+", re.IGNORECASE)
_AFTER = re.compile(r"after\s+([^,]+),\s*(.+)", re.IGNORECASE)
_FIRST = re.compile(r"first,?\s+", re.IGNORECASE)


def events(text: str) -> list[str]:
    """What a text says happens, in the order of time; the text itself where it says no order.

    Understood are "A, then B", "A and then B", "A followed by B", "A before B", "A. After that B", "first A, then B",
    "B after A" and "after A, B", the first five for any number of events.
    """
    if match := _AFTER.fullmatch(text.strip()):
        return [*events(match[1]), *events(match[2])]
    parts = [part.strip(" ,;.") for part in _NEXT.split(text)]
    parts[0] = _FIRST.sub("", parts[0], count=1) if len(parts) > 1 and _FIRST.match(parts[0]) else parts[0]
    ordered = [event for part in parts for event in reversed(_LATER.split(part))]
    return ordered if len(ordered) > 1 and all(ordered) else [text]
