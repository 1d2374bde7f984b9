"""A corpus encoded by a Ray cluster, each part of it where there is room. Needs `pip install ray`.

    python launch/ray_encode.py --parts 16 sounds/ -o tokens/ --shards 1000

--parts N: into how many parts the corpus is divided. --cpus, --gpus: that Ray reserves for a part. Everything else is
for `python -m audiogen.codec encode`. Sounds and the output folder are on a disk of all machines. A part whose machine
is lost begins again on another, without the shards that it had finished; at the end the parts become one folder.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import ray

from audiogen.codec import parts
from audiogen.errors import InputError, run_command

TRIES = 3  # of a part whose machine is lost


def encode(line: Sequence[str], threads: int) -> str:
    """Run a part's command, on whichever machine -> its last words if it failed, or nothing."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(
        [sys.executable, "-m", "audiogen.codec", "encode", *line],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1] if run.returncode else ""


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the line for `codec encode`."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Encode a corpus by a Ray cluster.")
    parser.add_argument("--parts", type=int, required=True, help="into how many the corpus is divided")
    parser.add_argument("--cpus", type=int, default=1, help="reserved for a part (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="reserved for a part (default: none)")
    parser.add_argument(
        "-o", "--out", required=True, help="the folder of the shards, on a disk of all machines"
    )
    given, rest = parser.parse_known_args(argv)
    if given.parts < 1:
        raise InputError(f"--parts is {given.parts}; give 1 or more")
    for option in ("--part", "--workers"):
        if option in rest or any(word.startswith(f"{option}=") for word in rest):
            raise InputError(f"{option} is given to each part by Ray; drop it")
    return given, [*rest, "--out", os.path.abspath(given.out)]


def main(argv: Sequence[str] | None = None) -> int:
    """Encode all parts, then merge them."""
    given, line = parse(argv)
    ray.init(
        ignore_reinit_error=True, log_to_driver=False
    )  # the cluster of RAY_ADDRESS, or one of this machine
    task = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_retries=TRIES)(encode)
    waiting: dict[Any, int] = {
        task.remote([*line, "--part", f"{number}/{given.parts}"], given.cpus): number
        for number in range(1, given.parts + 1)
    }
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        number = waiting.pop(done)
        if failure := ray.get(done):
            raise InputError(f"part {number} of {given.parts}: {failure.removeprefix('error: ')}")
        print(f"part {number} of {given.parts} is done, {len(waiting)} are not", file=sys.stderr, flush=True)
    clips, unreadable = parts.merge(given.out)
    for reason in unreadable.values():
        print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)
    print(f"{given.out}: {clips} clips in shards; {len(unreadable)} could not be encoded")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
