"""A language model's decoding step in other engines: onnxruntime, OpenVINO, llama.cpp and CTranslate2.

onnxruntime and OpenVINO run `Step`, our TokenLM as a function of its cache, so with the same weights. The other two
lack our architecture, and run a random one with as many weights in its matrices: `llama` and `ctranslate2`.
Each function returns a `Clip`. Converted models stay in a folder, for the next run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.transformer import KeysValues, sinusoidal_positions

# Decodes so many frames from an empty cache -> the last logits [rows, K V]; None of a model with other weights.
Clip = Callable[[int], "np.ndarray | None"]


class Growing:
    """A cache that is given and returned: `append` joins a layer's new keys and values to the past ones."""

    def __init__(self, past: list[Tensor]):
        self.now = past  # keys and values of each layer in turn, [B, heads, S, D / heads]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        for index, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.now[index] = torch.cat([self.now[index], new], 2)
        return self.now[2 * layer], self.now[2 * layer + 1]


class Step(nn.Module):
    """One step of a TokenLM without hidden state, to be converted.

    codes int64 [B, K, 1], position int64 [1], mask bool [B, 1, 1, L], a pair of keys and values of the text for each
    layer, then the past pairs -> logits [B, K V], and the pairs with the new step. reorder: for OpenVINO, whose
    attention keeps its cache in place where rows int32 [B] come last in the arguments and a mask is there.
    """

    def __init__(self, lm: TokenLM, reorder: bool = False):
        super().__init__()
        self.lm, self.reorder = lm, reorder

    def forward(self, codes: Tensor, position: Tensor, mask: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        lm, count = self.lm, 2 * len(self.lm.layers)
        text, past, seen = pairs[:count], list(pairs[count : 2 * count]), None
        if self.reorder:
            past = [each.index_select(0, pairs[-1]) for each in past]
            seen = torch.ones(1, past[0].shape[2] + 1, dtype=torch.bool)
        cache: Any = Growing(past)
        offsets = torch.arange(lm.config.num_codebooks)[:, None] * (lm.special + 1)
        x = lm.embedding(codes + offsets).sum(1)  # [B, 1, D]
        x = x + sinusoidal_positions(position, lm.config.dim)
        for index, block in enumerate(lm.blocks()):
            x = block(x, (text[2 * index], text[2 * index + 1]), mask, cache, index, seen)
        return lm.heads(lm.out_norm(x))[:, 0], *cache.now


class Names:
    """Names and values of the arguments of `Step`, for conversion with so many past steps."""

    def __init__(self, lm: TokenLM, text: Condition, steps: Tensor, num_past: int = 7):
        config, rows = lm.config, len(steps)
        pairs = [f"{kind}{i}" for i in range(config.num_layers) for kind in ("keys", "values")]
        self.text, self.past, self.new = ([f"{when}_{p}" for p in pairs] for when in ("text", "past", "new"))
        cache = lm.new_cache(text, rows, 1)
        assert cache.text is not None and cache.text_mask is not None
        self.shape = (rows, config.num_heads, num_past, config.dim // config.num_heads)
        self.texts = [each for pair in cache.text for each in pair]
        self.mask = cache.text_mask
        past = [torch.zeros(self.shape) for _ in self.past]
        self.arguments = (steps[..., :1], torch.tensor([num_past]), self.mask, *self.texts, *past)
        self.all = ["codes", "position", "mask", *self.text, *self.past]

    def fixed(self) -> dict[str, np.ndarray]:
        """The arguments that are the same in all steps."""
        return {"mask": self.mask.numpy()} | {
            n: t.numpy() for n, t in zip(self.text, self.texts, strict=True)
        }


def onnxruntime(lm: TokenLM, text: Condition, steps: Tensor, dtype: str, threads: int, folder: Path) -> Clip:
    """An export by torch.onnx; the cache is handed from output to input; int8 is its dynamic quantisation."""
    import onnxruntime as engine
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if dtype == "bfloat16":
        raise InputError("its CPU kernels have no bfloat16")
    names = Names(lm, text, steps)
    whole, path = (folder / f"step-{len(steps)}-{kind}.onnx" for kind in ("float32", dtype))
    if not whole.exists():
        grows = (*[None] * len(names.text), *[{2: torch.export.Dim.DYNAMIC}] * len(names.past))
        program = torch.onnx.export(
            Step(lm).eval(), names.arguments, dynamo=True, verbose=False, dynamic_shapes=(None, None, None, grows),
            input_names=names.all, output_names=["logits", *names.new],
        )  # fmt: skip
        assert program is not None
        program.save(whole, external_data=True)
    if not path.exists():
        quantize_dynamic(
            whole, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding, codes = session.io_binding(), steps.numpy()
    for name, value in names.fixed().items():
        binding.bind_ortvalue_input(name, engine.OrtValue.ortvalue_from_numpy(value))

    def clip(num_frames: int) -> np.ndarray:
        empty = np.zeros((*names.shape[:2], 0, names.shape[3]), np.float32)
        past = [engine.OrtValue.ortvalue_from_numpy(empty)] * len(names.past)
        for position in range(num_frames):
            binding.bind_cpu_input("codes", np.ascontiguousarray(codes[..., position : position + 1]))
            binding.bind_cpu_input("position", np.array([position]))
            for name, value in zip(names.past, past, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in ("logits", *names.new):
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
        return logits.numpy()

    return clip


def openvino(lm: TokenLM, text: Condition, steps: Tensor, dtype: str, threads: int, folder: Path) -> Clip:
    """Converted with its cache as a state; bfloat16 is a hint, int8 is nncf's compression of weights."""
    import openvino as engine

    names = Names(lm, text, steps)
    path = folder / f"step-{len(steps)}-{'int8' if dtype == 'int8' else 'float32'}.xml"
    if not path.exists():
        model = _stateful(lm, names)
        if dtype == "int8":
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        engine.save_model(model, path, compress_to_fp16=False)
        del model
    hint = {"float32": "f32", "bfloat16": "bf16"}.get(dtype)
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"INFERENCE_PRECISION_HINT": hint} if hint else {}  # int8: its own choice
    request = engine.Core().compile_model(path, "CPU", settings).create_infer_request()
    feed, codes = names.fixed() | {"rows": np.arange(len(steps), dtype=np.int32)}, steps.numpy()

    def clip(num_frames: int) -> np.ndarray:
        request.reset_state()
        for position in range(num_frames):
            feed["codes"] = np.ascontiguousarray(codes[..., position : position + 1])
            feed["position"] = np.array([position])
            request.infer(feed, share_inputs=True)
        return np.array(request.get_tensor("logits").data)

    return clip


def _stateful(lm: TokenLM, names: Names) -> Any:
    """The model of OpenVINO whose past pairs are states, in the form that its fused attention is found in."""
    import openvino as engine
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    rows = torch.arange(names.shape[0], dtype=torch.int32)
    model = engine.convert_model(Step(lm, reorder=True).eval(), example_input=(*names.arguments, rows))
    shapes = {}
    for port, name, value in zip(model.inputs, [*names.all, "rows"], (*names.arguments, rows), strict=True):
        port.get_tensor().set_names({name})
        grows = name in names.past
        shapes[name] = engine.PartialShape(
            [-1 if grows and axis in (0, 2) else n for axis, n in enumerate(value.shape)]
        )
    for port, name in zip(model.outputs, ["logits", *names.new], strict=True):
        port.get_tensor().set_names({name})
    model.reshape(shapes)
    apply_make_stateful_transformation(model, dict(zip(names.past, names.new, strict=True)))
    empty = np.array([*names.shape[:2], 0, names.shape[3]])
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([opset13.broadcast(opset13.constant(np.float32(0)), opset13.constant(empty))])
    model.validate_nodes_and_infer_types()
    return model


def llama(config: LMConfig, rows: int, max_frames: int, dtype: str, threads: int, folder: Path) -> Clip:
    """llama.cpp with a random Llama: rows sequences of their own, one token each a step.

    Its three matrices of a layer's feed-forward have the weights of our two and those of cross-attention (10 D^2).
    """
    import gguf
    import llama_cpp as engine

    path = folder / f"llama-{dtype}.gguf"
    if not path.exists():
        kinds = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}
        _write_llama(config, path, gguf.GGMLQuantizationType[kinds[dtype]])
    engine.llama_log_set(_silent(engine), None)
    engine.llama_backend_init()
    settings = engine.llama_context_default_params()
    settings.n_seq_max, settings.n_ctx = rows, rows * (max_frames + 32)
    settings.n_threads = settings.n_threads_batch = threads
    loading = engine.llama_model_default_params()
    # Without its AMX kernels, which can end the process by an invalid configuration of tiles (its pull request 26954).
    loading.use_extra_bufts = False
    model = engine.llama_model_load_from_file(str(path).encode(), loading)
    context = engine.llama_init_from_model(model, settings)
    if not context:
        raise InputError(f"llama.cpp cannot open {path}")
    batch, vocabulary = engine.llama_batch_init(rows, 0, 1), config.num_codebooks * config.codebook_size

    def clip(num_frames: int) -> None:
        engine.llama_memory_clear(engine.llama_get_memory(context), True)
        for position in range(num_frames):
            batch.n_tokens = rows
            for row in range(rows):
                batch.token[row], batch.pos[row] = (position * 7919 + row) % vocabulary, position
                batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, row, True
            if engine.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")

    return clip


def _silent(engine: Any) -> Any:
    function = engine.llama_log_callback(lambda level, text, data: None)
    engine.audiogen_log = function  # kept alive as long as the library
    return function


def llama_width(config: LMConfig) -> int:
    """Of the feed-forward of `llama`: a multiple of 32, which its int8 packs."""
    return 32 * round((2 + 2 * config.ff_mult) * config.dim / 3 / 32)


def _write_llama(config: LMConfig, path: Path, kind: Any) -> None:
    import gguf

    width, count, vocabulary = config.dim, config.num_layers, config.num_codebooks * config.codebook_size
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(count)
    writer.add_feed_forward_length(llama_width(config))
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, *shape: int) -> None:  # a matrix [outputs, inputs], or a norm
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            return
        weight = random.standard_normal(shape, np.float32) * shape[1] ** -0.5
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd", vocabulary, width)
    for layer in range(count):
        for name in ("q", "k", "v", "output"):
            add(f"blk.{layer}.attn_{name}", width, width)
        add(f"blk.{layer}.attn_norm", width)
        add(f"blk.{layer}.ffn_norm", width)
        for name in ("gate", "up"):
            add(f"blk.{layer}.ffn_{name}", llama_width(config), width)
        add(f"blk.{layer}.ffn_down", width, llama_width(config))
    add("output_norm", width)
    add("output", vocabulary, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ctranslate2(
    config: LMConfig, rows: int, text_tokens: int, dtype: str, threads: int, folder: Path
) -> Clip:
    """CTranslate2 with a random translator: a decoder with cross-attention of our shapes, an encoder of one layer.

    It draws the likeliest token of one vocabulary with as many words as all our codebooks have codes.
    """
    import ctranslate2 as engine

    path = folder / "translator"
    if not (path / "model.bin").exists():
        path.mkdir(parents=True, exist_ok=True)
        _write_translator(config, path)
    allowed = engine.get_supported_compute_types("cpu")
    if dtype not in allowed:
        raise InputError(f"on this CPU it computes in {', '.join(sorted(allowed))}")
    model = engine.Translator(str(path), compute_type=dtype, inter_threads=1, intra_threads=threads)
    source = [[f"{position}" for position in range(text_tokens)]] * rows

    def clip(num_frames: int) -> None:
        options = {"max_decoding_length": num_frames, "min_decoding_length": num_frames}
        found = model.translate_batch(source, beam_size=1, **options)
        assert len(found[0].hypotheses[0]) == num_frames, "it ended early"

    return clip


def _write_translator(config: LMConfig, path: Path) -> None:
    from ctranslate2.specs import Activation, TransformerSpec, attention_spec, common_spec

    width, random = config.dim, np.random.default_rng(0)
    vocabulary = config.num_codebooks * config.codebook_size
    spec = TransformerSpec.from_config(
        (1, config.num_layers), config.num_heads, pre_norm=True, activation=Activation.GELU
    )

    def matrix(outputs: int, inputs: int = width) -> np.ndarray:
        return random.standard_normal((outputs, inputs), np.float32) * inputs**-0.5

    def fill(module: Any) -> None:
        if isinstance(module, common_spec.LayerNormSpec):
            module.gamma, module.beta = np.ones(width, np.float32), np.zeros(width, np.float32)
        elif isinstance(module, common_spec.EmbeddingsSpec):
            module.weight = matrix(vocabulary)
        elif isinstance(module, attention_spec.MultiHeadAttentionSpec):
            many = {2: (3, 1), 3: (1, 2, 1)}[len(module.linear)]  # queries, keys and values; or apart
            for linear, times in zip(module.linear, many, strict=True):
                linear.weight = matrix(times * width)
            fill(module.layer_norm)
        elif hasattr(module, "linear_0"):
            module.linear_0.weight = matrix(config.ff_mult * width)
            module.linear_1.weight = matrix(width, config.ff_mult * width)
            fill(module.layer_norm)

    for stack in (spec.encoder, spec.decoder):
        for embeddings in stack.embeddings if isinstance(stack.embeddings, list) else [stack.embeddings]:
            fill(embeddings)
        stack.position_encodings.encodings = matrix(2048)
        fill(stack.layer_norm)
        for layer in stack.layer:
            for part in ("self_attention", "attention", "ffn"):
                if hasattr(layer, part):
                    fill(getattr(layer, part))
    spec.decoder.projection.weight = matrix(vocabulary)
    words = ["<unk>", "<s>", "</s>", *(str(number) for number in range(vocabulary - 3))]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.validate()
    spec.save(str(path))
