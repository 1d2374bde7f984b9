"""Pictures of docs/ that need more than the bundled models: ONNX graphs, a pipeline, a marked file, trained runs.

python -m audiogen.convert lm_tiny --to onnx -o onnx_model
python tools/pictures.py onnx onnx_model                   docs/released-models.md: PyTorch beside onnxruntime
python -m audiogen.convert lafma_tiny --to diffusers -o lafma_diffusers
python tools/pictures.py pipeline lafma_diffusers          docs/released-models.md: the same system here and there
python tools/pictures.py provenance                        docs/provenance.md: the parts of a generated WAV file
python tools/pictures.py learnt OUT.png "TITLE" RUN        a run's model beside clips of the built-in corpus
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import runpy
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch
from figures import FIGURES, RATE, ROOT, Panel, draw, make, save
from matplotlib.figure import Figure
from torch import Tensor

import audiogen
from audiogen import audio
from audiogen.data.synth.corpus import render
from audiogen.diffusion.sample import Noise, sample
from audiogen.errors import InputError, run_command
from audiogen.files import writing
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.token import AudioGen
from audiogen.models.latent_pipeline import LatentPipeline
from audiogen.spectrogram import LEVELS_DB, log_mel

TEXT = "a dog barks"
CORPUS_SEED = 7  # of clips that no recipe trains on: theirs is 0
LONGEST = 30  # letters of a caption above a picture
WHITE_DB = 0.1  # the difference that is white
SECONDS = 5.0
TO_DB = 20 / float(torch.log(torch.tensor(10.0)))


class TorchSession:
    """What examples/onnx_generate.py takes for an onnxruntime session, with PyTorch in its place.

    The decoder keeps keys and values itself, so the arrays for them that go round are empty.
    """

    def __init__(self, model: AudioGen, text: str, graph: Path):
        self.kind, self.model, self.empty = Path(graph).stem, model, np.zeros((1, 1, 1, 0, 1), np.float32)
        if self.kind == "step":
            frames = model.max_frames + model.lm.config.num_codebooks
            self.cache = model.decoder.new_cache(model.conditioner([text, None]), 2, frames)

    @torch.no_grad()
    def run(self, _: None, feeds: dict[str, Any]) -> list[Any]:
        """The outputs of the graph for these inputs, as numpy arrays."""
        if self.kind == "text":
            return [self.empty, self.empty]
        if self.kind == "decoder":
            return [self.model.codec.decode(torch.from_numpy(feeds["codes"])).numpy()]
        logits = self.model.decoder.step(torch.from_numpy(feeds["steps"]), self.cache)
        return [logits.float().numpy(), self.empty, self.empty]


def by_example(folder: Path, text: str, sessions: Any = None) -> Tensor:
    """The sound [C, N] that examples/onnx_generate.py makes; sessions: in place of onnxruntime's."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made, "out.wav")
        words = ["onnx_generate.py", str(folder), text, str(out)]
        stand_in = {} if sessions is None else {"onnxruntime": SimpleNamespace(InferenceSession=sessions)}
        with mock.patch.object(sys, "argv", words), mock.patch.dict(sys.modules, stand_in):
            runpy.run_path(str(ROOT / "examples/onnx_generate.py"))
        samples, _ = soundfile.read(out, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy())


def onnx(folder: Path) -> None:
    """One program, one seed: its spectrogram by PyTorch, by onnxruntime, and the difference of both in dB."""
    if not (folder / "onnx.json").is_file():
        raise InputError(
            f"{folder} has no onnx.json: python -m audiogen.convert lm_tiny --to onnx -o {folder}"
        )
    model = audiogen.load("lm_tiny", "cpu", "float32", packed=False)
    assert isinstance(model, AudioGen)
    sounds = [
        by_example(folder, TEXT, lambda graph: TorchSession(model, TEXT, graph)),
        by_example(folder, TEXT),
    ]
    beside("onnx.png", f"PyTorch: {TEXT}", "onnxruntime, the same draws", sounds)


@torch.no_grad()
def pipeline(folder: Path) -> None:
    """One noise, one text: lafma_tiny's spectrogram here and by diffusers, and the difference of both in dB."""
    if not (folder / "pipeline.py").is_file():
        raise InputError(
            f"{folder} has no pipeline.py: python -m audiogen.convert lafma_tiny --to diffusers -o {folder}"
        )
    model = audiogen.load("lafma_tiny", "cpu", "float32")
    assert isinstance(model, LatentGenerator)
    system, sampling = model.system, model.sampling()
    shape = system.autoencoder.latent_shape(SECONDS)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    given, away = system.conditioner.guided([TEXT], torch.tensor([SECONDS]))
    start = Noise(shape, range(1), start=noise)
    latents = sample(system.denoiser, model.process, sampling, given, start, negative=away)
    ours = system.autoencoder.decode(latents)[0]
    pipe = opened(folder)
    theirs = pipe([TEXT], SECONDS, sampling.steps, sampling.guidance, latents=noise, output_type="pt").audios
    sounds = [ours, theirs]
    end = min(each.shape[-1] for each in sounds)
    sounds = [each.reshape(1, -1)[:, :end] for each in sounds]
    beside("pipeline.png", f"here: {TEXT}", "diffusers' pipeline, the same noise", sounds)


def opened(folder: Path) -> LatentPipeline:
    """The pipeline of a folder from its components, by this package's copy of its code: none is run from there."""
    given: dict[str, Any] = {}
    index = writing.read_json(folder / "model_index.json")
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not isinstance(value, list):  # a setting
            given[name] = value
        elif value[0] is not None:
            module = "audiogen.models.latent_pipeline" if value[0] == "pipeline" else value[0]
            given[name] = getattr(importlib.import_module(module), value[1]).from_pretrained(
                str(folder / name)
            )
    return LatentPipeline(**given)


def beside(name: str, first: str, second: str, sounds: Sequence[Tensor]) -> None:
    """Spectrograms of two sounds [1, N] under their titles, and their difference, white from WHITE_DB on."""
    mels = [log_mel(sound[None], RATE)[0, 0] * TO_DB for sound in sounds]  # [M, T] dB
    difference = (mels[1] - mels[0]).abs()
    figure = Figure(figsize=(9.0, 1.9), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    titles = (first, second, f"|difference|, 0 to {WHITE_DB:g} dB")
    for axis, title, shown in zip(axes, titles, (*mels, difference), strict=True):
        low, high = (0.0, WHITE_DB) if shown is difference else LEVELS_DB
        end = sounds[0].shape[-1] / RATE
        axis.imshow(
            shown.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, end, 0, 1)
        )  # fmt: skip
        axis.set_yticks([])
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_xlabel("time (s)", fontsize=7)
        axis.tick_params(labelsize=7)
    samples = (sounds[1] - sounds[0]).norm() / sounds[0].norm()
    spread = f"{difference.median():.2g} dB in the median and {difference.max():.2g} at most"
    print(f"samples differ by {20 * torch.log10(samples):.0f} dB of the sound, mel levels by {spread}")
    save(figure, FIGURES / name)


def chunks(data: bytes) -> list[tuple[str, int, str]]:
    """Of a WAV file: name, bytes and the beginning of the text of each chunk; of a LIST each of its own chunks."""
    found, at, end = [], 12, len(data)
    while at + 8 <= end:
        name, size = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        if name == b"LIST":
            at += 12  # into it: the name of its kind follows the size
            continue
        text = "" if name in (b"data", b"fmt ") else data[at + 8 : at + 8 + size].decode(errors="replace")
        found.append((name.decode(), size, " ".join(text.replace("\0", " ").split())))
        at += 8 + size + size % 2
    return found


def provenance() -> None:
    """The parts of a WAV file that `generate` writes, in their order, and what stands in them."""
    model = audiogen.load("lm_tiny", "cpu")
    settings = {"text": TEXT, "duration": 2.0, "seed": 0}
    sound = make("lm_tiny", TEXT, duration_s=2.0)
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, "bark.wav")
        audio.save(path, sound, model.sample_rate, tags=model.provenance(settings).tags())
        parts = chunks(path.read_bytes())
    figure = Figure(figsize=(9.0, 0.26 * len(parts) + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(len(parts), -1))
    for x, title in ((0, "part"), (0.07, "bytes"), (0.15, "begins")):
        axis.text(x, -0.5, title, fontsize=8, weight="bold", va="center")
    for row, (name, size, text) in enumerate(parts):
        is_sound = name in ("data", "fmt ")
        axis.axhspan(row, row + 1, color="0.93" if is_sound else "#dce9f7", zorder=0)
        said = {"data": "the samples, as without a record", "fmt ": "sample rate, channels, number type"}.get(
            name, text
        )
        axis.text(0, row + 0.5, name, fontsize=8, family="monospace", va="center")
        axis.text(0.14, row + 0.5, f"{size:,}", fontsize=8, family="monospace", va="center", ha="right")
        axis.text(
            0.15, row + 0.5, said[:118], fontsize=6.5, family="monospace", va="center", parse_math=False
        )
    save(figure, FIGURES / "provenance.png")


def learnt(path: Path, title: str, run: Path, count: int = 4) -> None:
    """Clips of the built-in corpus of a seed that no recipe has; below what the run's model makes of their captions."""
    clips = (render(CORPUS_SEED, index) for index in itertools.count())
    chosen = list(itertools.islice((clip for clip in clips if len(clip.captions[0]) <= LONGEST), count))
    texts = [clip.captions[0] for clip in chosen]
    real: list[Panel] = [(f"corpus: {text}", clip.audio) for text, clip in zip(texts, chosen, strict=True)]
    mine: list[Panel] = [(title, make(str(run), text)) for text in texts]
    draw(path, [real, mine], 2.6, 1.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("onnx").add_argument("folder", type=Path, help="made by convert lm_tiny --to onnx")
    verbs.add_parser("pipeline").add_argument(
        "folder", type=Path, help="made by convert lafma_tiny --to diffusers"
    )
    verbs.add_parser("provenance")
    drawn = verbs.add_parser("learnt")
    drawn.add_argument("out", type=Path)
    drawn.add_argument("title")
    drawn.add_argument("run", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "onnx":
        onnx(args.folder)
    elif args.verb == "pipeline":
        pipeline(args.folder)
    elif args.verb == "provenance":
        provenance()
    else:
        learnt(args.out, args.title, args.run)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
