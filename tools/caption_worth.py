"""What a caption is worth to a language model: cross-entropy of real clips with the right caption, a wrong one, none.

    python tools/caption_worth.py esc10/manifest.jsonl lm_tiny

On fold 4 of ESC-10, in nats a code (mean over codebooks), with 95 % bootstrap intervals of the differences over clips;
and how often the right caption is the likeliest of the ten classes' captions.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen import audio
from audiogen.data.manifest import read_manifest, select
from audiogen.errors import run_command
from audiogen.generators.load import AudioGen
from audiogen.lm.model import teacher_forcing, token_loss


@torch.no_grad()
def cross_entropy(model: AudioGen, codes: Tensor, captions: Sequence[str | None]) -> Tensor:
    """Codes [B, K, T] with a caption each -> nats a code [B], the mean over codebooks."""
    means = []
    for row, caption in enumerate(captions):
        inputs, targets, mask = teacher_forcing(model.lm, codes[row : row + 1])
        means.append(token_loss(model.lm(inputs, model.conditioner([caption])), targets, mask)[0])
    return torch.stack(means)


def interval(differences: Tensor) -> str:
    """Mean of [n] with its 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(differences), (10000, len(differences)), generator=generator)
    low, high = differences[picks].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{differences.mean():.4f} [{low:.4f}, {high:.4f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures of one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest")
    parser.add_argument("model")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    model = AudioGen.from_pretrained(arguments.model, device="cpu")
    clips = select(read_manifest(arguments.manifest), {"fold": (4,), "license": ("CC0", "CC-BY")})
    labels = sorted({clip.fields["label"] for clip in clips})
    wording = {clip.fields["label"]: clip.captions[0] for clip in clips}
    codes = []
    for clip in clips:
        wave, _ = audio.load(clip.path, model.sample_rate, model.channels)
        codes.append(model.codec.encode(wave[None, :, : model.max_frames * model.codec.hop_length]))
    own = torch.tensor([labels.index(clip.fields["label"]) for clip in clips])
    for duration_s in (0.5, 1.0, 2.0, 5.0):
        frames = round(duration_s * model.frame_rate)
        rows = [row for row, part in enumerate(codes) if part.shape[2] >= frames]
        tokens = torch.cat([codes[row][..., :frames] for row in rows])  # [B, K, T]
        each = torch.stack(
            [cross_entropy(model, tokens, [wording[label]] * len(rows)) for label in labels], 1
        )
        right = each.gather(1, own[rows, None])[:, 0]
        wrong = (each.sum(1) - right) / (len(labels) - 1)  # the mean over all nine wrong captions
        none = cross_entropy(model, tokens, [None] * len(rows))
        print(f"first {duration_s:g} s of {len(rows)} clips, nats a code:")
        print(f"  right {right.mean():.3f}, wrong {wrong.mean():.3f}, none {none.mean():.3f}")
        print(f"  wrong - right {interval(wrong - right)}; none - right {interval(none - right)} (95 %)")
        hits = (each.argmin(1) == own[rows]).float().mean()
        print(f"  the right caption is the likeliest of {len(labels)} for {hits:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
