"""What lies in the package beside its code."""

from pathlib import Path

import audiogen


def test_the_bundled_weights_take_at_most_60_mb() -> None:
    folder = Path(audiogen.__file__).parent / "weights"
    assert 0 < sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 60e6
