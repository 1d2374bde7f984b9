"""Every command survives being killed or interrupted at any moment; `driver.py` has what is asked of it."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("names", ["stream,encode,shards", "train,codec"])
def test_a_signal_at_any_moment_loses_nothing(drive: Callable[..., None], names: str) -> None:
    """The same command afterwards makes what an undisturbed one makes, byte for byte; 20 are killed."""
    drive(names, "--signals", "4")
