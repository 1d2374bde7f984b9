"""How a server does with many clients at once, against the same requests one after another.

python tools/bench_serve.py [--model lm_tiny] [--clients 1,4,16,64] [--seconds 60] [--duration 5] [--threads 2]

Starts `python -m audiogen.serve`, lets so many clients ask for sounds without a pause for so many seconds, and prints
for each number of clients: seconds of sound a second, its ratio to one client's, the first byte and the whole sound
(median and 99th percentile), the server's memory before and after, and how many answers were not, byte for byte, what
one client alone gets. Status 1 where one was not.
"""

import argparse
import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

TEXTS = ("a dog barks", "rain falls", "waves break on the shore", "a clock ticks")
SEEDS = 4  # of each text: so many different sounds are asked for


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Many clients at once on a server of one model.")
    parser.add_argument("--model", default="lm_tiny")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of clients")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of a sound")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args(argv)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so great a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def memory_mb(process: subprocess.Popen[str]) -> float:
    """Resident memory of the server (Linux)."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmRSS"))


async def ask(client: httpx.AsyncClient, number: int, duration_s: float) -> tuple[Any, float, float, str]:
    """One streamed sound -> (which, seconds to the first byte, to the last, digest)."""
    which = TEXTS[number % len(TEXTS)], number // len(TEXTS) % SEEDS
    given = {"input": which[0], "seed": which[1], "audio_length": duration_s}
    began, first_s, digest = time.monotonic(), 0.0, hashlib.sha256()
    form = {"response_format": "pcm", "stream_format": "audio"}
    async with client.stream("POST", "/v1/audio/generate", json=given | form) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_bytes():
            first_s = first_s or time.monotonic() - began
            digest.update(piece)
    return which, first_s, time.monotonic() - began, digest.hexdigest()


async def load(
    address: str, clients: int, seconds: float, duration_s: float
) -> list[tuple[Any, float, float, str]]:
    """Answers to so many clients, each of whom asks again at once, for so long."""
    results: list[tuple[Any, float, float, str]] = []
    latest = time.monotonic() + seconds
    numbers = iter(range(10**9))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits) as client:

        async def one() -> None:
            while time.monotonic() < latest:
                results.append(await ask(client, next(numbers), duration_s))

        await asyncio.gather(*(one() for _ in range(clients)))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table -> 1 where an answer was wrong."""
    args = parse(argv)
    command = [
        sys.executable,
        "-m",
        "audiogen.serve",
        "--model",
        args.model,
        "--port",
        "0",
        "--dtype",
        args.dtype,
    ]
    most = max(int(count) for count in args.clients.split(","))
    command += ["--threads", str(args.threads), "--max-queue", str(most)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removesuffix("/docs")
        # Each sound alone, with nobody beside it.
        alone = asyncio.run(alone_sounds(address, args.duration))
        print("| clients | sounds | s of sound a s | ratio | first byte | whole | MB before, after | wrong |")
        print("|---|---|---|---|---|---|---|---|")
        base, wrong = 0.0, 0
        for count in map(int, args.clients.split(",")):
            before, began = memory_mb(process), time.monotonic()
            results = asyncio.run(load(address, count, args.seconds, args.duration))
            speed = len(results) * args.duration / (time.monotonic() - began)
            base = base or speed
            bad = sum(digest != alone[which] for which, _, _, digest in results)
            wrong += bad
            first, whole = [result[1] for result in results], [result[2] for result in results]
            times = " | ".join(
                f"{percentile(values, 0.5):.2f} {percentile(values, 0.99):.2f}" for values in (first, whole)
            )
            print(
                f"| {count} | {len(results)} | {speed:.2f} | {speed / base:.2f} | {times} | "
                f"{before:.0f}, {memory_mb(process):.0f} | {bad} |",
                flush=True,
            )
    finally:
        process.terminate()
        process.wait(60)
    return min(wrong, 1)


async def alone_sounds(address: str, duration_s: float) -> dict[Any, str]:
    """The digest of each sound that will be asked for."""
    async with httpx.AsyncClient(base_url=address, timeout=None) as client:
        answers = [await ask(client, number, duration_s) for number in range(len(TEXTS) * SEEDS)]
    return {which: digest for which, _, _, digest in answers}


if __name__ == "__main__":
    sys.exit(main())
