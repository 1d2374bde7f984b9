"""`python -m audiogen.serve`: generators behind HTTP, many clients at once."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from audiogen import command
from audiogen.errors import InputError, heavy_imports, run_command

KEY = "AUDIOGEN_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODELS = ("lm_tiny", "lafma_tiny")
COMMON = "--model --host --port --api-key --max-queue --max-duration --max-batch --device --threads --no-page".split()
EXAMPLES = ("", "--model runs/mine --port 9000", "--host 0.0.0.0 --api-key SECRET --no-page")
STOP_S = 30.0  # for the sounds that run when the server stops


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "serve",
        "Sounds over HTTP: a page at /, and an API that OpenAI's and ElevenLabs' clients speak at /docs.",
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="a model, as of audiogen.generate --model; may be repeated (default: lm_tiny and lafma_tiny)",
    )
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    add(
        "--api-key",
        default=os.environ.get(KEY),
        metavar="KEY",
        help=f"that clients must send (default: ${KEY})",
    )
    add(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="sounds that may wait for a model (default: 64)",
    )
    add("--max-own", type=int, metavar="N", help="of one client that may wait (default: as --max-queue)")
    add("--max-duration", type=float, default=60.0, metavar="S", help="seconds of a sound (default: 60)")
    add(
        "--max-batch",
        type=int,
        default=16,
        metavar="N",
        help="sounds that a model makes at once (default: 16)",
    )
    add(
        "--batch-wait-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="how long a batch of a latent-diffusion model waits for more (default: 0)",
    )
    add("--device", default="auto", help="where to compute (default: auto)")
    add("--dtype", default="auto", help="that the models compute in, as of audiogen.generate (default: auto)")
    add("--threads", type=int, metavar="N", help="that compute on the CPU (default: PyTorch's choice)")
    add("--root-path", default="", metavar="PATH", help="under which a proxy shows the server")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="whose pages may call; may be repeated",
    )
    add("--no-page", dest="page", action="store_false", help="the API alone, without the page at /")
    command.add_help(parser, COMMON, EXAMPLES)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    args = make_parser().parse_args(argv)
    args.model = args.model or list(MODELS)
    for name, least in (("max_queue", 1), ("max_own", 1), ("max_batch", 1), ("threads", 1), ("port", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; allowed: {least} and more")
    if not 0 < args.max_duration <= 3600:
        raise InputError(f"--max-duration is {args.max_duration:g}; allowed: above 0, up to 3600 s")
    if not 0 <= args.batch_wait_ms <= 1000:
        raise InputError(f"--batch-wait-ms is {args.batch_wait_ms:g}; allowed: 0 to 1000")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Open the models, then serve until a signal comes."""
    args = parse(argv)
    with heavy_imports():
        try:
            import uvicorn

            from audiogen.serve.api import Limits, create_app

            if args.page:
                from audiogen.serve.page.build import mount
        except ImportError as error:
            raise InputError(
                f"the server needs {error.name}: pip install '.[serve]' in the checkout"
            ) from None
        from audiogen.serve.engine import Worker
        from audiogen.serve.models import open_workers
    if args.host not in LOOPBACK and args.api_key is None:
        print(f"warning: {args.host} is open to others, and there is no --api-key", file=sys.stderr)
    workers: dict[str, Worker] = open_workers(args)
    limits = Limits(args.max_duration, api_key=args.api_key, cors_origins=tuple(args.cors_origin))
    app = create_app(workers, limits)
    pages = mount(app, app.state.api, args.root_path) if args.page else None
    config = uvicorn.Config(
        app, args.host, args.port, log_level="warning", root_path=args.root_path, access_log=False,
        timeout_graceful_shutdown=int(STOP_S),
    )  # fmt: skip

    class Server(uvicorn.Server):
        """Open pages would keep it from ending."""

        def handle_exit(self, *given: Any) -> None:
            super().handle_exit(*given)
            if pages is not None:
                pages.set()

    server = Server(config)
    try:
        listener = config.bind_socket()
    except SystemExit:  # uvicorn has said why, at a level that is not shown
        raise InputError(
            f"--port {args.port} of {args.host} cannot be listened at: is another server there? choose another"
        ) from None
    listener.listen(config.backlog)  # before the address is printed: who reads it may connect at once
    host, port = listener.getsockname()[:2]
    print(f"http://{host}:{port}{args.root_path}{'' if args.page else '/docs'}", flush=True)
    began = time.monotonic()
    try:
        server.run(sockets=[listener])
    finally:
        for worker in workers.values():
            worker.stop(max(1.0, STOP_S - (time.monotonic() - began)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
