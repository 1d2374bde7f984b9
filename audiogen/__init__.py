"""audiogen: text to audio with codec language models. Start reading at `interfaces.py`."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AudioGen", "__version__"]

if TYPE_CHECKING:
    from audiogen.generators.load import AudioGen


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m audiogen.<verb> --help` answers without importing torch.
    if name == "AudioGen":
        from audiogen.generators.load import AudioGen

        return AudioGen
    raise AttributeError(f"module 'audiogen' has no attribute {name!r}")
