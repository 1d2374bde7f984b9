"""The server's app by Ray Serve, which starts replicas as the load asks for. Needs `pip install 'ray[serve]'`.

    serve run launch.ray_serve:app model=lm_tiny,lafma_tiny threads=2 max_replicas=4

Arguments are the options of `python -m audiogen.serve` with underscores; those of the listener, the page and the proxy
have no meaning here. min_replicas, max_replicas: between which Ray chooses, by the orders under way in each. cpus: that
Ray reserves for a replica. A job (`/v1/audio/jobs`) lives in the replica that took it, so jobs need max_replicas=1.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve

from audiogen.errors import InputError
from audiogen.serve.__main__ import parse
from audiogen.serve.api import Limits, create_app
from audiogen.serve.models import open_workers

OURS = {"min_replicas": "1", "max_replicas": "2", "cpus": "1"}
ELSEWHERE = ("host", "port", "root_path", "no_page")  # the proxy's matters


def options(args: dict[str, str]) -> list[str]:
    """The command line of `audiogen.serve` that the arguments mean."""
    line = []
    for name, value in args.items():
        if name in ELSEWHERE:
            raise InputError(f"{name} is not for Ray Serve, whose proxy listens; drop it")
        for one in value.split(",") if name in ("model", "cors_origin") else [value]:
            line += [f"--{name.replace('_', '-')}", one]
    return line


def app(args: dict[str, str]) -> Any:
    """What `serve run` starts."""
    own = OURS | {name: value for name, value in args.items() if name in OURS}
    given = parse(options({name: value for name, value in args.items() if name not in OURS}))

    def create() -> FastAPI:
        """In each replica: its own models."""
        limits = Limits(given.max_duration, api_key=given.api_key, cors_origins=tuple(given.cors_origin))
        return create_app(open_workers(given), limits)

    at_once = given.max_batch * len(given.model)
    deployment = serve.deployment(
        serve.ingress(create)(),
        name="audiogen",
        # a new replica when the rows of those that run are taken; what waits, waits in the replica's own queue
        autoscaling_config={
            "min_replicas": int(own["min_replicas"]),
            "max_replicas": int(own["max_replicas"]),
            "target_ongoing_requests": at_once,
        },
        max_ongoing_requests=at_once + given.max_queue * len(given.model),
        graceful_shutdown_timeout_s=35.0,
        ray_actor_options={"num_cpus": float(own["cpus"])},
    )
    return deployment.bind()
