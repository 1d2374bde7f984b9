"""audiogen: text to audio with codec language models. Start reading at `interfaces.py`.

model = audiogen.load("lm_tiny")             # any generator: a bundled name, a directory or a hub id
codec = audiogen.load_codec("codec_tiny")    # any codec, by the same kinds of names
"""

import importlib
from typing import TYPE_CHECKING, Any

from audiogen.version import __version__ as __version__

__all__ = ["AudioGen", "__version__", "load", "load_codec"]

if TYPE_CHECKING:
    from audiogen.generators.load import AudioGen, load
    from audiogen.models.build import load_codec

_HOMES = {
    "AudioGen": "audiogen.generators.load",
    "load": "audiogen.generators.load",
    "load_codec": "audiogen.models.build",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m audiogen.<verb> --help` answers without importing torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'audiogen' has no attribute {name!r}")
