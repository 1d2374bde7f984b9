"""A codec or a language model as ONNX graphs, which run without torch: `audiogen.convert MODEL --to onnx`.

encoder.onnx   audio [B, C, N] -> codes int64 [B, K, T]; N a multiple of hop_length
decoder.onnx   codes int64 [B, K, T] -> audio [B, C, T * hop_length]
text.onnx      ids int64 [B, L], mask bool [B, L] -> text_keys, text_values [layers, B, heads, L, D / heads]
step.onnx      steps int64 [B, K, 1], position int64 [1], keys, values [layers, B, heads, P, D / heads], text_keys,
               text_values, mask -> logits [B, K, V], new_keys, new_values [layers, B, heads, P + 1, D / heads]
onnx.json      what a program needs beside them: sizes, sample rate, delays, guidance; how far each graph is from torch

A codec has the first two, a language model all, with the vocabulary of its text encoder. Each graph is run in
onnxruntime at another size than it was made with, and refused where it differs by more than TOLERANCE.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.codec.conv import PaddedConv1d, plain_weights
from audiogen.codec.model import Codec
from audiogen.codec.spectral import FLOOR, LOUDEST, MEAN, MOMENTUM, PHASE_FRAMES, STD, normalised
from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.interfaces import Codec as AnyCodec
from audiogen.lm.model import TokenLM
from audiogen.packed import Linear
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary

OPSET = 18
TOLERANCE = 1e-4  # of the largest value that a graph gives
CODES_EQUAL = 0.999  # the share of an encoder's codes that must be: a tie may round the other way
INSTALL = "pip install '.[onnx]' in the checkout, or pip install onnx onnxscript onnxruntime"


def check_installed() -> None:
    """InputError where the packages that write and run ONNX are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}, which is not installed: {INSTALL}") from None


class _WholeConv1d(PaddedConv1d):
    """A convolution of whole frames, whose padding does not depend on their number: [B, D_in, N] -> [B, D_out, T]."""

    def forward(self, x: Tensor, state: object = None, last: bool = False) -> Tensor:
        padded = F.pad(x, (self.left, self.right), mode=self.pad_mode)
        return self.norm(
            F.conv1d(padded, self.conv.weight, self.conv.bias, self.stride, 0, self.conv.dilation)
        )


class _Encode(nn.Module):
    """Audio [B, C, N] -> codes [B, K, T]."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec = codec
        if codec.config.arch == "spectral":
            self.register_buffer("basis", _basis(codec, 4.0 / codec.config.spectral.n_fft))

    def forward(self, audio: Tensor) -> Tensor:
        codec, config = self.codec, self.codec.config
        if config.arch == "spectral":
            encoder: Any = codec.encoder
            sizes, channels = config.spectral, audio.shape[1]
            padded = F.pad(audio.flatten(0, 1)[:, None], (sizes.side, sizes.side))  # [B * C, 1, n]
            spectrum = F.conv1d(padded, self.get_buffer("basis"), stride=sizes.hop_length)  # [B * C, 2 F, T]
            real, imaginary = spectrum.chunk(2, 1)
            magnitude = torch.log((real.square() + imaginary.square()).sqrt() + FLOOR)
            x = rearrange(magnitude, "(b c) f t -> b t (c f)", c=channels)
            x = encoder.stack(normalised(x))
            latents = rearrange(x, "b (t r) d -> b (r d) t", r=sizes.frames_per_latent)
        else:
            latents = codec.encoder(audio)
        return codec.quantizer.encode(latents, codec.num_codebooks)


class _Decode(nn.Module):
    """Codes [B, K, T] -> audio [B, C, T * hop_length]; Griffin-Lim in real numbers, its transforms as convolutions."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec = codec
        if codec.config.arch == "spectral":
            sizes, decoder = codec.config.spectral, codec.decoder
            self.register_buffer("basis", _basis(codec, 1.0))
            weight = torch.full((sizes.num_bins,), 2.0 / sizes.n_fft)
            weight[0] = weight[-1] = 1.0 / sizes.n_fft  # the other bins stand for their conjugates as well
            self.register_buffer(
                "inverse", self.get_buffer("basis") * torch.cat([weight, weight])[:, None, None]
            )
            self.register_buffer("squares", torch.hann_window(sizes.n_fft).square()[None, None])
            rotation: Any = decoder.first_rotation
            self.register_buffer("first", torch.cat([rotation.real, rotation.imag], 1).T.contiguous())

    def forward(self, codes: Tensor) -> Tensor:
        codec, config = self.codec, self.codec.config
        latents = codec.quantizer.decode(codes)
        if config.arch != "spectral":
            return codec.decoder(latents)
        decoder: Any = codec.decoder
        sizes, basis, inverse = config.spectral, self.get_buffer("basis"), self.get_buffer("inverse")
        x = rearrange(latents, "b (r d) t -> b (t r) d", r=sizes.frames_per_latent)
        x = decoder.stack(x) * STD + MEAN
        x = rearrange(x, "b t (c f) -> (b c) f t", c=decoder.channels)
        magnitude = (torch.exp(x.clamp(max=LOUDEST)) - FLOOR).clamp(min=0) * (sizes.n_fft / 4.0)
        both = torch.cat([magnitude, magnitude], 1)  # [B * C, 2 F, T]
        frames = torch.arange(both.shape[-1], device=codes.device) % PHASE_FRAMES
        rotation = self.get_buffer("first")[:, frames][None]
        ones = torch.ones_like(both[:1, :1])
        weights = F.conv_transpose1d(ones, self.get_buffer("squares"), stride=sizes.hop_length).clamp(
            min=1e-3
        )

        def sound(rotation: Tensor) -> Tensor:  # [B * C, 1, n]
            return F.conv_transpose1d(rotation * both, inverse, stride=sizes.hop_length) / weights

        previous = torch.zeros_like(both)
        for _ in range(sizes.phase_iterations):
            consistent = F.conv1d(sound(rotation), basis, stride=sizes.hop_length)
            ahead = previous + (1 + MOMENTUM) * (consistent - previous)
            real, imaginary = ahead.chunk(2, 1)
            power = (real.square() + imaginary.square()).clamp(min=1e-16).rsqrt()
            rotation, previous = ahead * torch.cat([power, power], 1), consistent
        audio = sound(rotation)[:, 0, sizes.side : -sizes.side]
        return audio.unflatten(0, (-1, decoder.channels))


def _basis(codec: Codec, scale: float) -> Tensor:
    """The windowed Fourier transform of real frames as kernels [2 F, 1, n_fft]: cosines, then minus sines."""
    n_fft = codec.config.spectral.n_fft
    n = torch.arange(n_fft, dtype=torch.float64)
    angle = 2 * math.pi / n_fft * (torch.arange(n_fft // 2 + 1)[:, None] * n % n_fft)
    waves = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(n_fft, dtype=torch.float64)
    return (scale * waves).float()[:, None]


class _Text(nn.Module):
    """Token ids [B, L] and mask [B, L] -> keys and values [layers, B, heads, L, D / heads] of every layer's text."""

    def __init__(self, conditioner: T5Conditioner, lm: TokenLM):
        super().__init__()
        self.stack, self.output_proj = conditioner.text_encoder().stack, conditioner.output_proj
        self.lm = lm

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.output_proj(self.stack(ids, mask)) * mask[..., None]
        found = [block.cross_attention.project(tokens) for block in self.lm.blocks()]
        return torch.stack([keys for keys, _ in found]), torch.stack([values for _, values in found])


class _GrowingCache:
    """What `TokenLM.step` needs of a cache: P steps before, in tensors [layers, B, heads, P, D / heads]."""

    def __init__(self, position: Tensor, keys: Tensor, values: Tensor, text: list[Any], text_mask: Tensor):
        self.position, self.keys, self.values = position, list(keys.unbind()), list(values.unbind())
        self.text, self.text_mask = text, text_mask

    def check(self, num_new: int) -> None:
        """There is always room."""

    def positions(self, num_new: int) -> Tensor:
        """[1]."""
        return self.position

    def mask(self, num_new: int) -> None:
        """One step attends to all."""

    def advance(self, num_new: int) -> None:
        """The caller counts."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [B, heads, P + 1, D / heads] of a layer."""
        self.keys[layer] = torch.cat([self.keys[layer], keys], 2)
        self.values[layer] = torch.cat([self.values[layer], values], 2)
        return self.keys[layer], self.values[layer]


class _Step(nn.Module):
    """One decoding step; the shapes are those of the module's docstring."""

    def __init__(self, lm: TokenLM):
        super().__init__()
        self.lm = lm

    def forward(
        self,
        steps: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
        text_keys: Tensor,
        text_values: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        text = list(zip(text_keys.unbind(), text_values.unbind(), strict=True))
        cache: Any = _GrowingCache(position, keys, values, text, mask[:, None, None])
        logits = self.lm.step(steps, cache)
        return logits, torch.stack(cache.keys), torch.stack(cache.values)


def save_codec(directory: Path, codec: AnyCodec) -> None:
    """Write encoder, decoder and onnx.json; InputError for a codec that has no graph, or one that differs."""
    writing.write_json(directory / "onnx.json", _codec_graphs(directory, codec))


def save_lm(
    directory: Path,
    lm: TokenLM,
    conditioner: T5Conditioner,
    codec: AnyCodec,
    max_frames: int,
    guidance: float,
) -> None:
    """Write the codec's graphs, those of text and step, the vocabulary and onnx.json, which comes last."""
    config = lm.config
    if config.backbone is not None:
        raise InputError(
            "the model has a backbone of Qwen3, for which there are no graphs: give --to audiogen"
        )
    if config.pattern not in ("delay", "parallel"):
        raise InputError(
            f"the model interleaves its codebooks by {config.pattern}; graphs are for delay and parallel, where a step "
            "has one code of each"
        )
    facts = _codec_graphs(directory, codec)
    books = range(config.num_codebooks)
    delays = [*(config.delays or books)] if config.pattern == "delay" else [0 for _ in books]
    if isinstance(conditioner.tokenizer, Vocabulary):
        conditioner.tokenizer.save(directory, compress=False)  # for programs that have SentencePiece alone
    else:
        conditioner.tokenizer.save(directory)
    differences = {}
    generator = torch.Generator().manual_seed(0)
    lm = lm.float().cpu().eval()
    sizes = len(lm.layers), config.num_heads, config.dim // config.num_heads
    vocabulary = conditioner.text_encoder().stack.embed_tokens.num_embeddings

    def text(rows: int, length: int) -> tuple[Tensor, ...]:
        ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
        return ids, torch.arange(length) < torch.tensor([[length], *[[length - 2]] * (rows - 1)])

    def step(rows: int, length: int, past: int) -> tuple[Tensor, ...]:
        def normal(positions: int) -> Tensor:
            return torch.randn(sizes[0], rows, sizes[1], positions, sizes[2], generator=generator)

        steps = torch.randint(0, config.codebook_size + 1, (rows, len(books), 1), generator=generator)
        caches = normal(past), normal(past), normal(length), normal(length)
        return steps, torch.tensor([past]), *caches, text(rows, length)[1]

    rows, length = {0: "B"}, {0: "B", 1: "L"}
    for name, module, make, at, names, axes in (
        ("text", _Text(conditioner, lm), text, [(2, 7), (3, 5)], ["ids", "mask", "text_keys", "text_values"],
         [length, length]),
        ("step", _Step(lm), step, [(2, 7, 4), (3, 5, 9)],
         ["steps", "position", "keys", "values", "text_keys", "text_values", "mask", "logits", "new_keys",
          "new_values"],
         [rows, {}, {1: "B", 3: "P"}, {1: "B", 3: "P"}, {1: "B", 3: "L"}, {1: "B", 3: "L"}, length]),
    ):  # fmt: skip
        given = [make(*size) for size in at]
        differences[name] = _write(directory / f"{name}.onnx", module, given, names, axes)
    facts |= {
        "special": config.codebook_size,
        "delays": delays,
        "layers": sizes[0],
        "heads": sizes[1],
        "head_dim": sizes[2],
        "max_frames": max_frames,
        "guidance": guidance,
        "max_tokens": conditioner.config.max_tokens,
    }
    facts["difference"] |= differences
    facts["lm_codebooks"] = config.num_codebooks
    writing.write_json(directory / "onnx.json", facts)


def _codec_graphs(directory: Path, codec: AnyCodec) -> dict[str, Any]:
    """Write encoder.onnx and decoder.onnx -> what onnx.json says of the codec."""
    if not isinstance(codec, Codec) or codec.config.dual_mono or codec.config.segment_s is not None:
        raise InputError(
            f"codec {codec.name or 'given'} has no graphs: there are those of spectral codecs, and of SEANet's without "
            "segments and not coded as dual mono"
        )
    directory.mkdir(parents=True, exist_ok=True)
    plain = Codec(codec.config).eval()
    plain.load_state_dict(plain_weights(codec) if codec.config.arch == "seanet" else codec.state_dict())
    generator = torch.Generator().manual_seed(0)
    hop, books = codec.hop_length, codec.num_codebooks
    audio = [
        (0.1 * torch.randn(rows, codec.channels, frames * hop, generator=generator),)
        for rows, frames in ((2, 12), (1, 17))
    ]
    codes = [
        (torch.randint(0, codec.codebook_size, (rows, books, frames), generator=generator),)
        for rows, frames in ((2, 12), (1, 17))
    ]
    differences = {}
    for name, module, given, names, axis in (
        ("encoder", _Encode(plain), audio, ["audio", "codes"], {0: "B", 2: "N"}),
        ("decoder", _Decode(plain), codes, ["codes", "audio"], {0: "B", 2: "T"}),
    ):
        differences[name] = _write(directory / f"{name}.onnx", module, given, names, [axis])
    return {
        "opset": OPSET,
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "hop_length": hop,
        "num_codebooks": books,
        "codebook_size": codec.codebook_size,
        "difference": differences,
    }


def _write(
    path: Path,
    module: nn.Module,
    given: Sequence[tuple[Tensor, ...]],
    names: list[str],
    axes: list[dict[int, str]],
) -> float:
    """Write a graph made with the first inputs -> how far it is from torch with the second, as a share of the largest.

    names: of inputs and outputs. axes: the sizes of each input that may change. InputError above TOLERANCE.
    """
    import onnxruntime

    module = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, Linear):
            setattr(layer, "__class__", nn.Linear)  # noqa: B010 (the others call kernels that no graph has)
        elif isinstance(layer, PaddedConv1d):
            layer.__class__ = _WholeConv1d
    count = len(given[0])
    options: dict[str, Any] = {"input_names": names[:count], "output_names": names[count:]}
    if any(isinstance(layer, nn.LSTM) for layer in module.modules()):
        # torch.export unrolls an LSTM over the frames that it was made with; the tracer writes ONNX's own
        places = {name: dict(axis) for name, axis in zip(names, axes, strict=False)}
        options |= {"dynamo": False, "dynamic_axes": places}
    else:
        free = sorted({name for axis in axes for name in axis.values()})
        dims = {name: torch.export.Dim(name, min=1) for name in free}
        shapes = tuple({place: dims[name] for place, name in axis.items()} for axis in axes)
        options |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(module, given[0], str(path), opset_version=OPSET, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module(*given[1])
    feeds = {name: each.numpy() for name, each in zip(names, given[1], strict=False)}
    worst = 0.0
    for found, want in zip(
        session.run(None, feeds), expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        wanted = want.numpy()
        if wanted.dtype == np.int64:
            if (found == wanted).mean() < CODES_EQUAL:
                raise InputError(
                    f"{path.name} gives other codes in onnxruntime than in torch; it is not written"
                )
        else:
            worst = max(worst, float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-9)))
    if worst > TOLERANCE:
        raise InputError(
            f"{path.name} differs from torch by {worst:.1e} in onnxruntime; {TOLERANCE} is allowed"
        )
    return worst
