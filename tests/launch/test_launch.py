"""The container and Ray Serve, without either: what their files name is there, and starts the server's app."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import audio
from audiogen.data.shards import ShardReader
from audiogen.errors import InputError
from tests.serve.conftest import models  # noqa: F401 (skips without the extra)

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "launch/Dockerfile").read_text()


def test_what_the_dockerfile_names_is_there() -> None:
    from audiogen.serve.__main__ import LOOPBACK, parse

    copied = [name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    pyproject = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'^readme = "(.*)"', pyproject, re.M)
    needed += re.findall(r"force-include\]\n(\w+) = ", pyproject)
    assert len(needed) == 2 and set(needed) <= set(copied)  # without them no wheel is built
    for extra in re.findall(r"'\.\[(\w+)\]'", DOCKERFILE):
        assert f"\n{extra} = [" in pyproject
    entry, command = (
        json.loads(re.findall(rf"^{kind} (.*)", DOCKERFILE, re.M)[0]) for kind in ("ENTRYPOINT", "CMD")
    )
    assert entry[:3] == ["python", "-m", "audiogen.serve"]
    args = parse(entry[3:] + command)
    assert args.host not in LOOPBACK and f"EXPOSE {args.port}" in DOCKERFILE
    assert all((ROOT / "audiogen/weights" / name).is_dir() for name in args.model)
    assert f":{args.port}/health'" in DOCKERFILE and "HEALTHCHECK" in DOCKERFILE
    assert DOCKERFILE.index("USER audiogen") < DOCKERFILE.index("ENTRYPOINT")
    assert len(re.findall(r"https?://(?!127\.0\.0\.1)", DOCKERFILE)) == 0


def test_ray_serve_builds_the_app_in_each_replica(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Ray itself is replaced; its part was tried by hand (docs/serving.md)."""
    seen: dict[str, Any] = {}

    class Bound:
        def bind(self) -> str:
            return "bound"

    def deployment(ingress: Any, **settings: Any) -> Bound:
        seen.update(settings)
        return Bound()

    def ingress(create: Any) -> Any:
        seen["create"] = create
        return lambda: None

    ray = types.ModuleType("ray")
    ray.serve = types.SimpleNamespace(deployment=deployment, ingress=ingress)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    spec = importlib.util.spec_from_file_location("ray_serve", ROOT / "launch/ray_serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {
        "model": str(tiny_model),
        "dtype": "float32",
        "max_batch": "2",
        "max_queue": "3",
        "max_replicas": "4",
    }
    assert module.app(given) == "bound"
    assert seen["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2}
    assert seen["max_ongoing_requests"] == 5
    app = seen["create"]()
    assert "/v1/audio/generate" in app.openapi()["paths"]
    for worker in app.state.api.workers.values():
        worker.stop(5)
    with pytest.raises(InputError, match="port is not for Ray Serve"):
        module.app({"port": "1"})
    with pytest.raises(InputError, match="--max-batch is 0"):
        module.app({"max_batch": "0"})


class Result:
    """What a task of Ray gives, at once."""

    def __init__(self, value: str):
        self.value = value


def test_ray_encodes_the_parts_of_a_corpus_and_merges_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself is replaced by calls one after the other; it was tried by hand (docs/scaling.md)."""
    reserved: dict[str, Any] = {}

    def remote(**settings: Any) -> Any:
        reserved.update(settings)
        return lambda function: types.SimpleNamespace(remote=lambda *values: Result(function(*values)))

    ray = types.ModuleType("ray")
    ray.__dict__.update(
        init=lambda **settings: None, remote=remote, get=lambda result: result.value,
        wait=lambda tasks, num_returns: (tasks[:num_returns], tasks[num_returns:]),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    spec = importlib.util.spec_from_file_location("ray_encode", ROOT / "launch/ray_encode.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for number in range(3):
        audio.save(tmp_path / "sounds" / f"{number}.wav", torch.full((1, 8000), 0.1 * number), 16_000)
    line = [str(tmp_path / "sounds"), "--shards", "1", "-o", str(tmp_path / "tokens")]
    assert module.main(["--parts", "2", "--cpus", "3", *line]) == 0
    assert reserved == {"num_cpus": 3, "num_gpus": 0.0, "max_retries": module.TRIES}
    assert len(ShardReader(tmp_path / "tokens")) == 3
    assert "3 clips in shards; 0 could not be encoded" in capsys.readouterr().out
    for words, reason in {
        ("--parts", "0"): "--parts is 0; give 1 or more",
        ("--parts", "2", "--part", "1/2"): "--part is given to each part by Ray; drop it",
        ("--parts", "1", "--codec", "nosuch"): "part 1 of 1: .*nosuch",
    }.items():
        with pytest.raises(InputError, match=reason):
            module.main([*words, *line])
