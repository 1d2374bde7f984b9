"""Processes of a group on this machine, with the environment that torchrun gives them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_processes(work: Callable[[int], Any], world: int = 2, machines: int = 1) -> tuple[list[Any], Any]:
    """Run `work(rank)` in forked processes, of so many machines -> they, and a queue of (rank, answer)."""
    context, port = get_context("fork"), free_port()
    answers = context.Queue()

    def start(rank: int) -> None:
        local = world // machines
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank % local)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(local), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            answers.put((rank, work(rank)))
        except Exception as error:  # for the parent to raise
            answers.put((rank, error))

    processes = [context.Process(target=start, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes, answers


def in_processes(work: Callable[[int], Any], world: int = 2, machines: int = 1) -> list[Any]:
    """Run `work(rank)` in so many processes -> what they return; an exception of one is raised."""
    processes, answers = start_processes(work, world, machines)
    found = {}
    for _ in processes:
        rank, answer = answers.get(timeout=120)
        if isinstance(answer, Exception):
            for process in processes:
                process.kill()
            raise answer
        found[rank] = answer
    for process in processes:
        process.join()
    return [found[rank] for rank in range(world)]
