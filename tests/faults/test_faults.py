"""Every command survives a file system that fails at any call; `driver.py` has what is asked of it."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("names", ["generate,stream,scan", "encode,shards,decode", "train"])
def test_a_fault_of_the_disk_is_one_line_and_loses_nothing(drive: Callable[..., None], names: str) -> None:
    """At a few of the calls; `make faults` tries all of them."""
    drive(names, "--at", "2")
