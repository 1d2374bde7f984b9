"""Which sounds a model makes: the classes of a comparison's clips one by one, and the kinds of the built-in corpus.

    python tools/which_sounds.py classes evaluation/compare lm_tiny esc10/manifest.jsonl
    python tools/which_sounds.py kinds lm_tiny --out audiogen/weights/lm_tiny/sounds.json

`classes` counts, by label, the clips that `evaluate compare` kept and tagger_tiny takes for what was asked for.
`kinds` asks for three takes of each kind alone, by captions of clips that were not trained on, and counts those that
are recognised; the real clips beside them. `python -m audiogen.info` shows what --out keeps.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from audiogen import audio
from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED
from audiogen.data.manifest import read_manifest
from audiogen.data.synth.scene import KINDS, compose
from audiogen.errors import run_command
from audiogen.evaluate.order import FIRST_CLIP, THRESHOLD, frame_probabilities
from audiogen.files import writing
from audiogen.generators.load import load
from audiogen.models.own import load_tagger

TAKES = 3  # of each kind


@torch.no_grad()
def classes(comparison: Path, model: str, manifest: Path) -> None:
    """Recognised clips by label, and what the others are taken for."""
    tagger = load_tagger("tagger_tiny")
    group = tagger.group("esc10")
    names = [label.partition("/")[2] for label in tagger.labels[group]]
    label_of = {Path(clip.path).name: str(clip.fields["label"]) for clip in read_manifest(manifest)}
    right, total, wrong = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for codec_row in sorted((comparison / "clips" / model).glob("[0-9]*_codec.json")):
        wanted = label_of[Path(writing.read_json(codec_row)["clip"]).name]
        for path in sorted(codec_row.parent.glob(codec_row.name.replace("codec.json", "[0-9]*.wav"))):
            sound, _ = audio.load(path, tagger.sample_rate, 1)
            guess = names[int(tagger(sound).logits[0, group].argmax())]
            total[wanted] += 1
            right[wanted] += guess == wanted
            wrong[wanted, guess] += guess != wanted
    for name in names:
        taken = ", ".join(f"{guess} {n}" for (label, guess), n in wrong.most_common() if label == name and n)
        print(f"{name}: {right[name]} of {total[name]}{f' (else {taken})' if taken else ''}")


@torch.no_grad()
def kinds(model: str, out: Path | None) -> None:
    """How many takes of each kind are recognised when it is asked for alone."""
    generator, tagger = load(model), load_tagger("tagger_tiny")
    group = tagger.group("synth")
    names = [label.partition("/")[2] for label in tagger.labels[group]]
    clips_of: dict[str, list[int]] = {}
    number = FIRST_CLIP
    while len(clips_of) < len(KINDS) or min(map(len, clips_of.values())) < TAKES:
        scene = compose(SYNTH_SEED, number, 5.0)
        if scene.form == "one":
            clips_of.setdefault(scene.events[0].kind, []).append(number)
        number += 1
    counted: dict[str, dict[str, int]] = {"real": {}, model: {}}
    for kind, numbers in sorted(clips_of.items()):
        clips = numbers[:TAKES]
        captions = [synth.captions(SYNTH_SEED, clip, 5.0)[0] for clip in clips]
        made = generator.generate(captions, 5.0, seed=1)
        real = [synth.render(SYNTH_SEED, clip, 16000, 5.0).audio for clip in clips]
        for what, sounds, rate in (("real", real, 16000), (model, list(made), generator.sample_rate)):
            found = [frame_probabilities(tagger, sound, rate).max(0)[names.index(kind)] for sound in sounds]
            counted[what][kind] = sum(bool(probability >= THRESHOLD) for probability in found)
    for what, counts in counted.items():
        always = sorted(kind for kind, count in counts.items() if count == TAKES)
        print(
            f"{what}: {sum(counts.values()) / TAKES / len(counts):.0%} of the takes are recognised; of {len(counts)} "
            f"kinds {sum(count > TAKES / 2 for count in counts.values())} more often than not, {len(always)} "
            f"always: {', '.join(always)}"
        )
    if out is not None:
        writing.write_json(out, {"judge": "tagger_tiny", "takes": TAKES, "recognised": counted[model]})


def main(argv: Sequence[str] | None = None) -> int:
    """Print one of the two lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    of_classes = commands.add_parser("classes")
    of_classes.add_argument("comparison", type=Path)
    of_classes.add_argument("model")
    of_classes.add_argument("manifest", type=Path)
    of_kinds = commands.add_parser("kinds")
    of_kinds.add_argument("model")
    of_kinds.add_argument("--out", type=Path, help="a JSON file for the counts")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.what == "classes":
        classes(arguments.comparison, arguments.model, arguments.manifest)
    else:
        kinds(arguments.model, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
