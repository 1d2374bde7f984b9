"""The licence check of `make audit`: which packages it looks at, and what it lets pass."""

import pytest

from tools.licenses import PROPRIETARY, allowed, needed


def test_the_dependencies_of_dependencies_are_among_them_and_say_a_licence() -> None:
    packages = needed("audiogen")
    assert {"audiogen", "torch", "numpy", "jinja2"} <= packages.keys()  # the last is torch's
    assert "pytest" not in packages  # an extra's
    # NVIDIA's are let pass by name, and some of them say nothing.
    assert all(text for name, text in packages.items() if not name.startswith(PROPRIETARY))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a", "BSD-3-Clause", True),
        ("a", "LGPL-2.1-or-later", True),
        ("a", "GPL-3.0-only", False),
        ("a", "GNU Affero General Public License v3", False),
        ("a", "", False),
        ("nvidia-cublas", "Other/Proprietary License", True),
    ],
)
def test_what_passes(name: str, text: str, expected: bool) -> None:
    assert allowed(name, text) is expected
