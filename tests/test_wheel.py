"""The wheel is the product: built, unpacked far from the checkout, it has its recipes and its models."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from audiogen.config import recipe_names
from audiogen.models.find import bundled as bundled_names

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install` fills it, from a wheel built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_module_and_every_data_file_is_inside(site: Path) -> None:
    package = {path.relative_to(ROOT) for path in (ROOT / "audiogen").rglob("*") if path.is_file()}
    expected = {str(path) for path in package if "__pycache__" not in path.parts}
    expected |= {f"audiogen/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    found = {str(path.relative_to(site)) for path in (site / "audiogen").rglob("*") if path.is_file()}
    assert found == expected
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"audiogen"}  # no tests, no tools


def test_metadata_carries_both_licences(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").is_file()
    assert (info / "licenses" / "audiogen" / "weights" / "ATTRIBUTION.md").is_file()
    assert "License-Expression: MIT" in (info / "METADATA").read_text()


def test_recipes_and_models_are_found_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    code = (
        "import json, audiogen.models.find as find, audiogen.config as config;"
        "print(json.dumps([config.__file__, config.recipe_names(), find.bundled(),"
        " str(find.find('lm_tiny').path), config.load_recipe('lm_tiny') is not None]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    module, recipes, bundled, model, loaded = json.loads(run.stdout)
    assert Path(module).is_relative_to(site)
    assert Path(model).is_relative_to(site)
    assert recipes == recipe_names()
    assert bundled == bundled_names()
    assert loaded
