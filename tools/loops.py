"""How large the jump at the seam of a loop is, beside the jumps elsewhere in the same sound.

    python tools/loops.py --model lm_tiny --prompts 100
    python tools/loops.py --model lafma_tiny --prompts 100
    python tools/loops.py --model lm_tiny --single --candidates 1       seams by the waveform alone

Each sound, made with --loop and without, is repeated three times. At its second seam and every 10 ms elsewhere four
jumps are measured: of the level (20 ms on either side, dB), of the spectrum (mean difference of 32 log-mel bands of 32
ms, dB), of the waveform (a click: the largest second difference within 4 samples, beside that of the 20 ms around) and
of the periodicity (by how much less the sound is predicted from its own past, lags of 2 to 20 ms, than 20 ms before).
The rank of the seam is the share of the other places whose jump is smaller: 0.5 on average, and above 0.95 for 0.05 of
the sounds, where a seam is like any other place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED
from audiogen.errors import run_command
from audiogen.evaluate.order import FIRST_CLIP
from audiogen.generators import loops
from audiogen.generators.load import load
from audiogen.interfaces import Sampling
from audiogen.spectrogram import mel_filterbank
from audiogen.text.order import events

JUMPS = ("level", "spectrum", "click", "periodicity")
STEP_S, AROUND_S = 0.01, 0.05  # from place to place; those so near to a seam are left out
QUIET = 1e-3  # -60 dBFS: what is below counts as silence


def jumps(sound: Tensor, places: Tensor, rate: int) -> Tensor:
    """Of mono sound [N] at places [n], in samples and at least 60 ms from its ends -> [n, 4], as JUMPS."""
    width, window = round(0.02 * rate), round(0.032 * rate)

    def parts(offset: int, length: int) -> Tensor:  # [n, length]
        return sound[places[:, None] + torch.arange(offset, offset + length)]

    def level(x: Tensor) -> Tensor:  # [n, length] -> dB
        return 10 * (x.square().mean(1) + QUIET**2).log10()

    filters = mel_filterbank(rate, window, 32)

    def bands(x: Tensor) -> Tensor:  # [n, length] -> dB [n, 32]
        spectrum = torch.fft.rfft(x * torch.hann_window(window)).abs() * (4.0 / window)
        return 20 * (spectrum @ filters + QUIET).log10()

    bend = torch.zeros_like(sound)
    bend[1:-1] = (sound[2:] - 2 * sound[1:-1] + sound[:-2]).abs()
    near = bend[places[:, None] + torch.arange(-4, 4)].amax(1)
    usual = bend[places[:, None] + torch.arange(-width, width)].square().mean(1).sqrt() + QUIET
    lags = torch.arange(round(0.002 * rate), width)

    def periodicity(
        at: Tensor,
    ) -> Tensor:  # [n] -> the best correlation of 20 ms with what is some lag before
        now = sound[at[:, None] + torch.arange(width)]
        past = sound[at[:, None, None] + torch.arange(width) - lags[:, None]]  # [n, lags, width]
        norms = now.norm(dim=1)[:, None] * past.norm(dim=2) + width * QUIET**2
        return ((past @ now[:, :, None])[..., 0] / norms).amax(1)

    return torch.stack(
        [
            (level(parts(0, width)) - level(parts(-width, width))).abs(),
            (bands(parts(0, window)) - bands(parts(-window, window))).abs().mean(1),
            near / usual,
            (periodicity(places - width) - periodicity(places)).clamp(min=0),
        ],
        1,
    )


def ranks(loop: Tensor, rate: int) -> Tensor:
    """Of the seam of a loop [C, N] that is repeated, [4] as JUMPS: the share of other places with smaller jumps."""
    length = loop.shape[-1]
    sound, step, around = loop.mean(0).repeat(3), round(STEP_S * rate), round(AROUND_S * rate)
    found = jumps(sound, torch.arange(length, 2 * length - around, step)[:, None].flatten(), rate)
    seam, others = found[0], found[1 + around // step :]
    return ((others < seam).float() + 0.5 * (others == seam).float()).mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="tools/loops.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="lafma_tiny")
    parser.add_argument("--prompts", type=int, default=100, help="captions of the built-in corpus")
    parser.add_argument("--duration", type=float, default=4.0)
    parser.add_argument("--single", action="store_true", help="captions of one event alone")
    parser.add_argument(
        "--candidates", type=int, help="seams that a language model chooses from by likelihood"
    )
    args = parser.parse_args(argv)
    model = load(args.model)
    loops.CANDIDATES = args.candidates or loops.CANDIDATES
    numbers = range(FIRST_CLIP, FIRST_CLIP + (1 + args.single) * args.prompts)
    texts = [synth.captions(SYNTH_SEED, number, 5.0)[0] for number in numbers]
    texts = [text for text in texts if not args.single or len(events(text)) == 1][: args.prompts]
    print(
        f"{args.model}, {len(texts)} prompts of {args.duration:g} s: mean rank of the seam, share above 0.95"
    )
    for is_loop in (False, True):
        made = [
            model.generate([text], args.duration, seed=number, sampling=Sampling(loop=is_loop))[0]
            for number, text in enumerate(texts)
        ]
        found = torch.stack([ranks(sound, model.sample_rate) for sound in made])
        each = [
            f"{name} {rank:.2f} {share:.2f}"
            for name, rank, share in zip(JUMPS, found.mean(0), (found > 0.95).float().mean(0), strict=True)
        ]
        print("with --loop" if is_loop else "without    ", *each, sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
