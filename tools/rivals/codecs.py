"""A codec in other engines: transformers, the encodec package, onnxruntime and OpenVINO.

`audiogen` and `tiny` are SEANet codecs of `tools/bench_codec.py`, `dac` is Descript's at 16 kHz, `mimi` is that of
transformers at 24 kHz, which this package has not got. All have random weights, which are the same for all but encodec.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_codec import SHAPES, Candidate, own_model, random_codec, transformers_model
from torch import Tensor, nn

from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.model import Codec
from audiogen.errors import InputError

PIECE_S = 10.0  # the longest sound that an engine gets in one call


class Encode(nn.Module):
    """Audio [B, C, N] -> codes [B, K, T], to be converted."""

    def __init__(self, codec: Any):
        super().__init__()
        self.codec = codec

    def forward(self, audio: Tensor) -> Tensor:
        latents = self.codec.encoder(audio)
        if isinstance(self.codec, DacCodec):
            return self.codec.quantizer(latents, self.codec.num_codebooks)[1]
        return self.codec.quantizer.encode(latents, self.codec.num_codebooks)


class Decode(nn.Module):
    """Codes [B, K, T] -> audio [B, C, N], to be converted."""

    def __init__(self, codec: Any):
        super().__init__()
        self.codec = codec

    def forward(self, codes: Tensor) -> Tensor:
        if isinstance(self.codec, DacCodec):
            return self.codec.decoder(self.codec.quantizer.from_codes(codes)[0])
        return self.codec.decoder(self.codec.quantizer.decode(codes))


def make(
    engine: str, dtype: str, shape: str, batch: int, duration_s: float, threads: int, folder: Path
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """encode and decode as work; error is the share of codes that are not those of PyTorch in float32."""
    codec: Any = None
    if shape == "mimi":
        if engine != "transformers":
            raise InputError("mimi is measured by transformers alone")
        model, rate, channels = mimi(dtype), 24000, 1
    else:
        codec = DacCodec(DacSizes()) if shape == "dac" else random_codec(SHAPES[shape])
        rate, channels = codec.sample_rate, codec.channels
    piece_s = min(duration_s, PIECE_S)
    audio = torch.randn(batch, channels, round(piece_s * rate)) / 10
    if codec is not None:
        model = open_engine(engine, dtype, codec, audio, threads, folder)
    codes, times = model.encode(audio), round(duration_s / piece_s)

    def repeat(run: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
        return lambda: [run(x) for _ in range(times)][-1]

    facts = {}
    if codec is not None and engine != "encodec":
        facts["error"] = float((codes != codec.encode(audio)).float().mean())
    return {"encode": repeat(model.encode, audio), "decode": repeat(model.decode, codes)}, facts


def open_engine(engine: str, dtype: str, codec: Any, audio: Tensor, threads: int, folder: Path) -> Candidate:
    """One engine with a codec."""
    number_type = getattr(torch, dtype)
    if engine == "ours":
        if isinstance(codec, DacCodec):
            codec.freeze(number_type)
            return Candidate(engine, codec.encode, codec.decode)
        return own_model(codec, f"packed-{dtype}")
    if engine == "transformers":
        return (
            dac(codec, number_type) if isinstance(codec, DacCodec) else transformers_model(codec, number_type)
        )
    if engine == "encodec":
        return encodec(codec, dtype)
    with torch.inference_mode(False), torch.no_grad():
        convert = onnxruntime if engine == "onnxruntime" else openvino
        encode = convert(Encode(codec).eval(), audio, dtype, threads, folder / f"encode-{list(audio.shape)}")
        codes = codec.encode(audio)
        decode = convert(Decode(codec).eval(), codes, dtype, threads, folder / f"decode-{list(codes.shape)}")
    return Candidate(engine, encode, decode)


def mimi(dtype: str) -> Candidate:
    """MimiModel in its default sizes, which are the released ones."""
    from transformers import MimiConfig, MimiModel

    model = MimiModel(MimiConfig()).eval().to(getattr(torch, dtype))

    def encode(audio: Tensor) -> Tensor:
        return model.encode(audio.to(getattr(torch, dtype)), return_dict=True).audio_codes

    return Candidate("transformers", encode, lambda codes: model.decode(codes, return_dict=True).audio_values)


def dac(codec: DacCodec, dtype: torch.dtype) -> Candidate:
    """DacModel, with the weights of the codec."""
    from transformers import DacConfig, DacModel

    sizes = vars(codec.config)
    model = DacModel(DacConfig(**sizes)).eval()
    model.load_state_dict(codec.state_dict())
    model.to(dtype)

    def encode(audio: Tensor) -> Tensor:
        return model.encode(audio.to(dtype), return_dict=True).audio_codes

    return Candidate(
        "transformers", encode, lambda codes: model.decode(audio_codes=codes, return_dict=True).audio_values
    )


def encodec(codec: Any, dtype: str) -> Candidate:
    """The encodec package's model in the codec's sizes, with random weights of its own."""
    if not isinstance(codec, Codec) or dtype != "float32":
        raise InputError("the encodec package has SEANet codecs in float32")
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # imported, and not needed for this
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    config, shape = codec.config, codec.config.seanet
    sizes: dict[str, Any] = {
        "channels": config.channels,
        "dimension": config.latent_dim,
        "n_filters": shape.num_filters,
    }
    sizes |= {"ratios": list(shape.ratios), "causal": shape.causal, "lstm": shape.lstm}
    quantizer = ResidualVectorQuantizer(config.latent_dim, config.num_codebooks, config.codebook_size)
    kilobits = config.num_codebooks * (config.codebook_size - 1).bit_length() * codec.frame_rate / 1000
    model = EncodecModel(
        SEANetEncoder(**sizes),
        SEANetDecoder(**sizes),
        quantizer,
        [kilobits],
        config.sample_rate,
        config.channels,
    ).eval()
    model.set_target_bandwidth(kilobits)
    return Candidate(
        "encodec", lambda audio: model.encode(audio)[0][0], lambda codes: model.decode([(codes, None)])
    )


def onnxruntime(
    module: nn.Module, example: Tensor, dtype: str, threads: int, path: Path
) -> Callable[[Tensor], Tensor]:
    """An export by torch.onnx for sounds of this length."""
    import onnxruntime as engine

    if dtype != "float32":
        raise InputError(f"its CPU kernels have no {dtype}")
    path = path.with_suffix(".onnx")
    if not path.exists():
        torch.onnx.export(module, (example,), path, input_names=["x"], output_names=["y"], dynamo=False)
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def openvino(
    module: nn.Module, example: Tensor, dtype: str, threads: int, path: Path
) -> Callable[[Tensor], Tensor]:
    """Converted for sounds of this length; bfloat16 is a hint."""
    import openvino as engine

    path = path.with_suffix(".xml")
    if not path.exists():
        model = engine.convert_model(module, example_input=example, input=[list(example.shape)])
        engine.save_model(model, path, compress_to_fp16=False)
    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
    }
    request = engine.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(next(iter(request.infer({0: x.numpy()}).values())).copy())
