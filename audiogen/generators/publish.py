"""What both families of generators share when they are saved: the model card, and the way to the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiogen.files import cards, hub


class Published:
    """A generator that can be saved: `write_card` after its files are written, `push_to_hub` to publish them."""

    family: str
    sample_rate: int
    channels: int
    latent_rate: str
    guidance: float
    info: dict[str, Any]
    origin: tuple[str, str] = ("", cards.UNSTATED)  # name and licence of the files that `load` opened

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
