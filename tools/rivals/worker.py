"""One engine in a process of its own, for `tools/bench_rivals.py`: `python tools/rivals/worker.py SETTING`.

SETTING is a `Setting` as JSON; tools/ is in PYTHONPATH. Lines of JSON go out: first what was made, or `failed` with the
reason; then, for every line that comes in, the seconds of each piece of work. What libraries print goes to standard
error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_generate
import numpy as np
import torch

from rivals import language

DISTRIBUTIONS = {"llama": "llama-cpp-python", "ours": "torch", "packed": "torch"}  # where the name is another
Work = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Setting:
    """task: lm or codec. engine: one of ENGINES there. size: frames of a clip, or seconds. folder: converted models."""

    task: str
    engine: str
    dtype: str
    shape: str
    batch: int
    threads: int
    size: float
    folder: str


def main() -> None:
    """Make the engine of the setting, then time its work as often as a line is read."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setting = Setting(**json.loads(sys.argv[1]))
    torch.set_num_threads(setting.threads)
    try:
        with torch.inference_mode():
            work, facts = make(setting)
            for run in work.values():
                run()
    except Exception as error:  # whatever another package raises is why it is left out
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        print(json.dumps({"failed": reason[:200]}), file=out, flush=True)
        return
    distribution = DISTRIBUTIONS.get(setting.engine, setting.engine)
    facts["version"] = importlib.metadata.version(distribution)
    print(json.dumps(facts), file=out, flush=True)
    with torch.inference_mode():
        for _ in sys.stdin:
            print(json.dumps({name: seconds(run) for name, run in work.items()}), file=out, flush=True)


def seconds(run: Callable[[], Any]) -> dict[str, float]:
    """Of one run: elapsed, and of processors."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    run()
    return {"elapsed": time.perf_counter() - begin, "cpu": time.process_time() - begin_cpu}


def make(setting: Setting) -> tuple[Work, dict[str, Any]]:
    """What is timed, and facts about it."""
    torch.manual_seed(0)
    folder = Path(setting.folder) / setting.shape
    folder.mkdir(parents=True, exist_ok=True)
    if setting.task == "codec":
        from rivals import codecs  # with transformers, which takes seconds

        return codecs.make(
            setting.engine, setting.dtype, setting.shape, setting.batch, setting.size, setting.threads, folder
        )
    return language_work(setting, folder)


def language_work(setting: Setting, folder: Path) -> tuple[Work, dict[str, Any]]:
    """A clip, and how far its last logits are from those of the PyTorch module, relative to their spread."""
    num_frames = round(setting.size)
    lm = bench_generate.TokenLM(bench_generate.SHAPES[setting.shape]).eval().requires_grad_(False)
    text, steps = bench_generate.inputs(lm, num_frames, setting.batch)
    engine, dtype, rows, threads = setting.engine, setting.dtype, 2 * setting.batch, setting.threads
    if engine == "llama":
        clip = language.llama(lm.config, rows, num_frames, dtype, threads, folder)
    elif engine == "ctranslate2":
        clip = language.ctranslate2(lm.config, rows, text.mask.shape[1], dtype, threads, folder)
    elif engine in ("onnxruntime", "openvino"):
        clip = getattr(language, engine)(lm, text, steps, dtype, threads, folder)
    else:
        torch.manual_seed(1)
        kind = "native" if engine == "ours" else engine
        [candidate] = bench_generate.candidates(lm, [f"{kind}-{dtype}"], num_frames, setting.batch)
        torch.manual_seed(1)
        text, steps = bench_generate.inputs(lm, num_frames, setting.batch)  # those that it took

        def clip(frames: int) -> np.ndarray:
            for position in range(frames):
                logits: Any = candidate.step(position)
            return logits.float().numpy().reshape(rows, -1)

    few = min(num_frames, 9)
    found = clip(few)
    facts: dict[str, Any] = {}
    if found is not None:
        cache = lm.new_cache(text, rows, few)
        wanted = lm.logits(lm.features(steps[..., :few], cache=cache)[:, -1:]).flatten(1).numpy()
        facts["error"] = float(np.sqrt(np.square(found - wanted).mean() / wanted.var()))
    return {"clip": lambda: clip(num_frames)}, facts


if __name__ == "__main__":
    main()
