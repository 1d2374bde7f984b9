"""What long sounds of a language model cost: processor time against that of 5 s, the least of several runs in turn.

OMP_NUM_THREADS=1 python tools/bench_long.py --model lm_tiny --dtype int8 --seconds 10 20 60
"""

import argparse
import time
from collections.abc import Sequence

import torch

from audiogen.errors import run_command
from audiogen.generators.token import AudioGen

SHORT_S = 5.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lm_tiny")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 20.0, 60.0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = AudioGen.from_pretrained(args.model, dtype=args.dtype)
    model.generate(["rain falls"], SHORT_S)
    least: dict[float, float] = {}
    for seed in range(args.rounds):
        for duration_s in (SHORT_S, *args.seconds):
            began = time.process_time()
            model.generate(["rain falls"], duration_s, seed=seed)
            least[duration_s] = min(least.get(duration_s, float("inf")), time.process_time() - began)
    for duration_s, taken in least.items():
        print(f"{duration_s:6.1f} s: {taken:6.2f} s of processor time, {taken / least[SHORT_S]:5.2f} x 5 s")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
