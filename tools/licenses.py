"""The licences of audiogen's dependencies, by what the installed packages say: `python tools/licenses.py`.

Exits with 1 where one is not permissive, or says nothing. Packages are those that audiogen needs, with what they need.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

# Words of licences that allow use and redistribution in any program.
PERMISSIVE = ("MIT", "BSD", "Apache", "ISC", "PSF", "Python Software Foundation", "HPND", "Zlib", "Unlicense", "0BSD",
              "CNRI", "matplotlib")  # fmt: skip
# Weaker copyleft of packages that are used unchanged, as libraries: their own sources stay open, ours are not touched.
LIBRARIES = ("MPL", "Mozilla", "LGPL", "Lesser General Public")
PROPRIETARY = ("nvidia-", "cuda-")  # the CUDA libraries of a GPU's PyTorch, under NVIDIA's own terms


def needed(name: str) -> dict[str, str]:
    """The installed packages that a package needs, directly or not -> their licences by name."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue  # an extra, or of another platform
        found[name] = licence(package)
        requirements = map(Requirement, metadata.requires(name) or [])
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def licence(package: metadata.PackageMetadata) -> str:
    """A package's licence: its SPDX expression, its classifiers, or the first line of its licence field."""
    classifiers = [text for text in package.get_all("Classifier") or [] if text.startswith("License ::")]
    names = ", ".join(text.rpartition(" :: ")[2] for text in classifiers)
    fields = package.json  # the names in lower case
    stated = str(fields.get("license", "")).strip().splitlines()[:1]
    return str(fields.get("license_expression") or names or "".join(stated)[:60])


def allowed(name: str, text: str) -> bool:
    """Whether a licence is one of the kinds above."""
    words = (*PERMISSIVE, *LIBRARIES)
    return name.startswith(PROPRIETARY) or any(re.search(rf"\b{word}", text, re.I) for word in words)


def main() -> int:
    """Print each package with its licence -> 1 where one is not allowed."""
    packages = needed("audiogen")
    refused = [name for name, text in packages.items() if not allowed(name, text)]
    for name, text in sorted(packages.items()):
        print(f"{'NOT ALLOWED  ' if name in refused else ''}{name}: {text or 'says nothing'}")
    print(f"{len(packages)} packages, {len(refused)} of them not allowed")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
