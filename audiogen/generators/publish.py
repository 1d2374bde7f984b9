"""What both families of generators share: the model card, the way to the hub, where their sounds come from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from audiogen.files import cards, hub
from audiogen.models.digest import digest
from audiogen.models.find import Found
from audiogen.provenance import Provenance, shown_name


class Published:
    """A generator that can be saved: `write_card` after its files are written, `push_to_hub` to publish them.

    source, opened: the files that `load` opened, and the options of `audiogen.generate` that open them so.
    """

    family: str
    sample_rate: int
    channels: int
    latent_rate: str
    guidance: float
    info: dict[str, Any]
    _sha256: str = ""
    origin: tuple[str, str] = ("", cards.UNSTATED)  # name and licence of the files that `load` opened

    source: Found | None = None
    opened: Mapping[str, Any] = MappingProxyType({})

    def provenance(self, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> Provenance:
        """Where a sound of this model comes from, for its file. settings, inputs: as in `Provenance`."""
        if self.source is None:
            return Provenance("a model without files", "", settings, inputs or {}, torch.__version__)
        if not self._sha256:
            self._sha256 = digest(self.source)
        given = {name: value for name, value in {**self.opened, **settings}.items() if value is not None}
        return Provenance(shown_name(self.source.name), self._sha256, given, inputs or {}, torch.__version__)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a model directory."""
        raise NotImplementedError

    def write_card(self, directory: Path, more: Mapping[str, str]) -> None:
        """Its README.md, unless there is one. more: facts in words, by what they are of."""
        sound = f"{self.sample_rate} Hz, {self.channels} channel{'s' * (self.channels > 1)}"
        about = {"sound": sound, "generates": self.latent_rate, "guidance": f"{self.guidance:g}"}
        cards.write(directory, self.family, about | dict(more), self.info, self.origin)

    def push_to_hub(self, repo: str, private: bool = False, token: str | None = None) -> str:
        """Save it and upload the directory to the Hugging Face hub -> the address of the commit.

        repo: "org/name", which is made where it is missing. private: of a new one. token: None is that of `hf auth
        login` or HF_TOKEN. A card that the repository has is kept. InputError for what the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, repo.rpartition("/")[2])
            self.save_pretrained(directory)
            return hub.push(repo, directory, private, token)
