"""What every test shares: one thread, no network, and the recordings beside the checkout where present."""

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before torch is imported, and inherited by the commands that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# Cases of a property: the same ones in every run of the suite; `--hypothesis-profile=thorough` draws more, and others.
PROFILE: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
PROFILE["phases"] = (Phase.explicit, Phase.generate)  # cases are small as they are drawn
settings.register_profile("suite", max_examples=14, derandomize=True, **PROFILE)
settings.register_profile("thorough", max_examples=90, **PROFILE)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Recordings, fixtures and specifications beside the checkout; tests that need them skip without."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not part of the repository")
    return folder


def _is_local(host: Any) -> bool:
    return host in (None, "", "localhost", "::1", "0.0.0.0", "::") or str(host).startswith("127.")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Reaching anything but this machine fails at once: nothing in the suite may depend on a download."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        # A tuple is (host, port, ...); a Unix socket's address is a path.
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise OSError(f"a test tried to connect to {address}; tests must not use the network")
        connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise OSError(f"a test tried to look up {host}; tests must not use the network")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True, scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the native kernels are built, once for all workers, and not in the user's cache."""
    run = tmp_path_factory.getbasetemp()
    folder = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "builds"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOGEN_CACHE", str(folder))
        yield folder


@pytest.fixture
def odd_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[float]]:
    """odd_machine() makes the wall clock jump by hours, forward and back, and each fsync slow -> the times of those."""

    def start() -> list[float]:
        clock, fsync, jumps, slow = time.time, os.fsync, itertools.cycle((0, 7200, -7200, 86400)), []

        def slow_fsync(descriptor: int) -> None:
            slow.append(time.monotonic())
            time.sleep(0.02)
            fsync(descriptor)

        monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
        monkeypatch.setattr(os, "fsync", slow_fsync)
        return slow

    return start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, builds: Path) -> Path:
    """The model directory of a language model, its text encoder and codec, all tiny and random: 8 kHz, 100 Hz."""
    import torch  # after the environment above is set

    from audiogen.codec.model import Codec, CodecConfig
    from audiogen.codec.seanet import SeanetConfig
    from audiogen.generators.load import AudioGen
    from audiogen.lm.model import LMConfig, TokenLM
    from audiogen.native import library
    from audiogen.text.t5 import T5Conditioner, TextConfig
    from audiogen.text.vocabulary import train_vocabulary

    library.library()  # built now, and not while a test looks at what is printed
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seanet = SeanetConfig(ratios=(5, 4, 4), num_filters=4, lstm=0)
        codec = Codec(
            CodecConfig(8000, 1, "seanet", seanet, latent_dim=6, num_codebooks=3, codebook_size=11)
        ).eval()
        vocabulary = train_vocabulary(
            ["a dog barks twice", "rain falls on a tin roof", "a clock ticks, then a bell"], 40
        )
        text = T5Conditioner(TextConfig(width=24, dim=16, num_layers=1, num_heads=2), vocabulary).eval()
        lm = TokenLM(LMConfig(num_codebooks=3, codebook_size=11, dim=24, num_layers=2, num_heads=4)).eval()
        lm.heads.weight.data.mul_(4.0)  # sure enough of itself for the settings to matter, and the text, too
        text.output_proj.weight.data.mul_(10.0)
    folder = tmp_path_factory.mktemp("tiny_model")
    AudioGen(lm, text, codec, max_frames=40, info={"steps": 0}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a latent-diffusion system as training leaves it: LAFMA's kind, tiny and random, 16 kHz."""
    import torch

    from audiogen.diffusion.systems import LatentSystem
    from audiogen.models.diffusers import save_diffusers
    from audiogen.text.vocabulary import train_vocabulary
    from tests.diffusion.tiny_systems import CAPTIONS, tiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = LatentSystem(tiny("lafma"), train_vocabulary(CAPTIONS, 40)).eval()
    for weight in system.autoencoder.vocoder.parameters():
        weight.data.mul_(4.0)  # it would be all but silent
    folder = tmp_path_factory.mktemp("tiny_latent")
    save_diffusers(folder, system, "lafma", {}, encoders=False)
    return folder
