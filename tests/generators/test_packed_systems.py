"""Latent systems in bfloat16 and int8 on a CPU: near float32, for every shape, and saved as they were loaded."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen.diffusion import products
from audiogen.diffusion.lora import load_adapters
from audiogen.errors import InputError
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Sampling
from audiogen.onednn import has_int8_products
from audiogen.packed import Linear, Packable, can_pack
from tests.diffusion.tiny_systems import CAPTIONS, RECIPES
from tests.generators.test_latent_generator import make
from tools import bench_latent

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="oneDNN has no bfloat16 here")
needs_int8 = pytest.mark.skipif(not has_int8_products(), reason="products of bytes are not exact here")


def sound_of(generator: LatentGenerator, duration_s: float = 0.2) -> Tensor:
    return generator.generate(CAPTIONS[:1], duration_s, seed=3, sampling=Sampling(steps=3))


def packed_layers(module: torch.nn.Module) -> int:
    return sum(layer.packed is not None for layer in module.modules() if isinstance(layer, Packable))


@needs_bfloat16
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_near_float32_and_saves_what_was_loaded(name: str, tmp_path: Path) -> None:
    exact, rounded = (LatentGenerator(make(name), "cpu", dtype) for dtype in ("float32", "bfloat16"))
    durations = (0.2, 0.35)  # weights are packed for one shape, then for another
    made = [sound_of(rounded, duration) for duration in durations]
    assert packed_layers(rounded.system.denoiser) > 10 and packed_layers(rounded.system.autoencoder) > 5
    assert not packed_layers(exact.system.denoiser)
    for duration, sound in zip(durations, made, strict=True):
        expected = sound_of(exact, duration)
        assert not torch.equal(sound, expected)
        assert (sound - expected).norm() < 0.1 * expected.norm()
    again = tmp_path / "again"
    rounded.save_pretrained(again)  # what was loaded, and no copy in bfloat16
    assert torch.equal(sound_of(LatentGenerator.from_pretrained(again, "cpu")), sound_of(exact))
    load_adapters(rounded.system.denoiser, [])  # they change weights, so copies are made anew
    assert not packed_layers(rounded.system.denoiser)
    sound = torch.randn(1, exact.channels, 4000) / 10
    found, expected = rounded.reconstruct(sound), exact.reconstruct(sound)
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()


@needs_int8
@pytest.mark.parametrize("has_bfloat16", [False, True])
@pytest.mark.parametrize("name", ["stable_audio_3", "audioldm"])
def test_linear_layers_in_int8(name: str, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_faster_in_bfloat16", lambda device: has_bfloat16)
    exact, rounded = (LatentGenerator(make(name), "cpu", dtype) for dtype in ("float32", "int8"))
    made, expected = sound_of(rounded), sound_of(exact)
    assert not torch.equal(made, expected) and (made - expected).norm() < 0.1 * expected.norm()
    for layer in rounded.system.denoiser.modules():
        if isinstance(layer, Packable):
            kept = layer.packed.dtype if layer.packed is not None else None
            rest = torch.bfloat16 if has_bfloat16 else None
            assert kept == (torch.int8 if isinstance(layer, Linear) else rest), layer
    pair = rounded.generate(CAPTIONS[:2], [0.35, 0.2], seed=[3, 4], sampling=Sampling(steps=3))
    alone = rounded.generate(CAPTIONS[1:2], 0.2, seed=[4], sampling=Sampling(steps=3))
    assert torch.equal(pair[1:, :, : alone.shape[-1]], alone)
    assert rounded.identity() != exact.identity()


def test_int8_is_refused_where_products_of_bytes_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"for CPUs .*the device is cuda; choose bfloat16"):
        products.choose_dtypes("int8", torch.device("cuda"))
    monkeypatch.setattr(products, "has_int8_products", lambda: False)
    with pytest.raises(InputError, match=r"VNNI or AMX\), and this is none; choose bfloat16 or float32"):
        products.choose_dtypes("int8", CPU)


@needs_bfloat16
def test_the_benchmark_compares_like_with_like(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    system, kind = bench_latent.random_system("stable_audio_tiny")
    latents, given = bench_latent.random_inputs(system.denoiser, system.autoencoder, 0.3)
    results = []
    with torch.inference_mode():
        for model in bench_latent.candidates(system, kind, bench_latent.MODELS[: 4 + has_int8_products()]):
            step = model.step(torch.cat([latents, latents]), given).float()
            results.append((model.name, step, model.decode(latents)))
    _, *expected = results[0]
    for name, *found in results[1:]:
        for made, wanted in zip(found, expected, strict=True):
            assert (made - wanted).norm() < (1e-4 if name.endswith("float32") else 0.1) * wanted.norm(), name
    bench_latent.main("--recipes stable_audio_tiny --seconds 0.3 --rounds 1".split())
    rows = re.findall(r"^(\S+)((?: +[\d.]+){4})$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == list(bench_latent.DEFAULT)
    assert rows[0][1].split()[1] == rows[0][1].split()[3] == "1.00"
