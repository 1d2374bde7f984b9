"""Releases in audiocraft's layout: every size and delay from the file's own configuration, all else refused by name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM, T5Config, T5EncoderModel, T5Tokenizer

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig
from audiogen.lm.patterns import interleave
from audiogen.models.build import load_lm, read_lm
from audiogen.models.find import find

LM = """
lm_model: transformer_lm
sample_rate: 8000
channels: 1
compression_model_n_q: null
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2], flatten_first: 0, empty_initial: 0}
transformer_lm:
  {dim: 24, num_heads: 4, num_layers: 2, hidden_scale: 3, n_q: 3, card: 20, dropout: 0.0, emb_lr: null,
   activation: gelu, norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false, past_context: null,
   causal: true, custom: false, memory_efficient: true, attention_as_float32: false, layer_scale: null,
   positional_embedding: sin, xpos: false, checkpointing: none, weight_init: gaussian, depthwise_init: current,
   zero_bias_init: true, norm: layer_norm, cross_attention: false, qk_layer_norm: false,
   qk_layer_norm_cross: false, attention_dropout: null, kv_repeat: 1, two_step_cfg: false}
classifier_free_guidance: {training_dropout: 0.1, inference_coef: 4.5}
fuser:
  {cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [], cross: [description],
   input_interpolate: []}
conditioners:
  args: {merge_text_conditions_p: 0.25, drop_desc_p: 0.5}
  description: {model: t5, t5: {name: t5-base, finetune: false, word_dropout: 0.3, normalize_text: false}}
dataset: {segment_duration: "${length}", batch_size: 2}
length: 2.5
logging: "${unknown_resolver:x}"
"""
CODEC = {"sample_rate": 8000, "seanet": {"ratios": [5, 4, 4]}}
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


def their_decoder(settings: dict[str, Any], channels: int) -> MusicgenForCausalLM:
    """The architecture of the configuration in transformers, an independent implementation, with random weights."""
    torch.manual_seed(0)
    special = dict.fromkeys(("pad_token_id", "bos_token_id"), settings["card"])
    decoder = MusicgenForCausalLM(
        MusicgenDecoderConfig(
            vocab_size=settings["card"],
            hidden_size=settings["dim"],
            ffn_dim=settings["hidden_scale"] * settings["dim"],
            num_hidden_layers=settings["num_layers"],
            num_attention_heads=settings["num_heads"],
            num_codebooks=settings["n_q"],
            audio_channels=channels,
            **special,
        )
    ).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.dim() == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return decoder


def released_names(decoder: MusicgenForCausalLM, encoder_width: int) -> dict[str, Tensor]:
    """Its tensors as a release names and joins them."""
    state, config = decoder.state_dict(), decoder.config
    projection = "condition_provider.conditioners.description.output_proj."
    released = {
        f"{projection}weight": torch.randn(config.hidden_size, encoder_width),
        f"{projection}bias": torch.randn(config.hidden_size),
    }
    for k in range(config.num_codebooks):
        released[f"emb.{k}.weight"] = state[f"model.decoder.embed_tokens.{k}.weight"]
        released[f"linears.{k}.weight"] = state[f"lm_heads.{k}.weight"]
    norms = {"out_norm": "model.decoder.layer_norm"}
    for i in range(config.num_hidden_layers):
        mine, theirs = f"transformer.layers.{i}.", f"model.decoder.layers.{i}."
        for name, attention in (("self_attn", "self_attn"), ("cross_attention", "encoder_attn")):
            joined = [state[f"{theirs}{attention}.{part}_proj.weight"] for part in "qkv"]
            released[f"{mine}{name}.in_proj_weight"] = torch.cat(joined)
            released[f"{mine}{name}.out_proj.weight"] = state[f"{theirs}{attention}.out_proj.weight"]
        released[f"{mine}linear1.weight"] = state[f"{theirs}fc1.weight"]
        released[f"{mine}linear2.weight"] = state[f"{theirs}fc2.weight"]
        norms |= {
            f"{mine}norm1": f"{theirs}self_attn_layer_norm",
            f"{mine}norm_cross": f"{theirs}encoder_attn_layer_norm",
            f"{mine}norm2": f"{theirs}final_layer_norm",
        }
    for name, norm in norms.items():
        released |= {f"{name}.{part}": state[f"{norm}.{part}"] for part in ("weight", "bias")}
    return released


def write(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], codec: dict[str, Any] | None = None
) -> Path:
    """A release; the codec has its configuration alone, which is all that the language model needs of it."""
    folder.mkdir(exist_ok=True)
    torch.save(
        {"best_state": state, "xp.cfg": yaml.safe_dump(config), "version": "1"}, folder / "state_dict.bin"
    )
    codec = {"best_state": {}, "xp.cfg": yaml.safe_dump(CODEC)} if codec is None else codec
    torch.save(codec, folder / "compression_state_dict.bin")
    return folder


def configuration(**transformer_lm: Any) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(LM)
    config["transformer_lm"] |= transformer_lm
    return config


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return released_names(their_decoder(configuration()["transformer_lm"], 1), 12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("sizes", "delays"),
    [
        ({}, [0, 1, 2]),
        ({"n_q": 2, "card": 7, "dim": 16, "num_layers": 1, "num_heads": 2, "hidden_scale": 4}, [0, 3]),
        ({"n_q": 5, "num_layers": 3, "num_heads": 8, "hidden_scale": 1}, [0, 1, 1, 2, 4]),
        ({"n_q": 1}, None),
    ],
)
def test_sizes_and_delays_come_from_the_file(
    sizes: dict[str, int], delays: list[int] | None, tmp_path: Path
) -> None:
    config = configuration(**sizes)
    config["codebooks_pattern"]["delay"]["delays"] = delays
    settings = config["transformer_lm"]
    theirs = their_decoder(settings, 1)
    loaded = load_lm(write(tmp_path, config, released_names(theirs, 12)))
    num_codebooks = settings["n_q"]
    assert (loaded.lm.config.delays or tuple(range(num_codebooks))) == tuple(delays or range(num_codebooks))
    codes = torch.randint(settings["card"], (2, num_codebooks, 6))
    steps = interleave(codes, loaded.lm.config.pattern_of(6), loaded.lm.special)
    assert steps.shape[-1] == 6 + max(delays or [0]) + 1
    tokens = torch.randn(2, 4, settings["dim"])
    expected = theirs(steps.flatten(0, 1), encoder_hidden_states=tokens).logits.unflatten(0, (2, -1))
    ours = loaded.lm(steps, Condition(tokens, torch.ones(2, 4, dtype=torch.bool)))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_what_a_release_says_of_itself(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    loaded = load_lm(write(tmp_path, configuration(), tensors), dtype=torch.bfloat16)
    assert (loaded.max_frames, loaded.info) == (250, {"generation": {"guidance": 4.5}})  # 2.5 s of 100 Hz
    assert (loaded.codec.location, loaded.codec.identity, loaded.codec.dual_mono) == (
        str(tmp_path),
        "",
        False,
    )
    assert loaded.conditioner.config.encoder == "google-t5/t5-base"
    assert {weight.dtype for weight in loaded.lm.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in loaded.conditioner.parameters()} == {torch.float32}
    description = read_lm(find(tmp_path, "token_lm"))
    assert description.config == loaded.lm.config and description.text == loaded.conditioner.config
    assert (description.codec, description.max_frames) == (loaded.codec, 250)
    # no text needs no text encoder, and a text says which one is missing
    assert not loaded.conditioner([None, " "]).tokens.any()
    with pytest.raises(InputError, match="google-t5/t5-base"):
        loaded.conditioner(["a dog"])


def test_stereo_delays_and_half_precision(tmp_path: Path) -> None:
    config = configuration(n_q=4)
    config["interleave_stereo_codebooks"] = {"use": True, "per_timestep": False}
    config["codebooks_pattern"]["delay"]["delays"] = [0, 0, 1, 1]
    state = released_names(their_decoder(config["transformer_lm"], 2), 12)
    half = {name: tensor.half() for name, tensor in state.items()}
    loaded = load_lm(write(tmp_path, config, half))
    assert loaded.codec.dual_mono and loaded.lm.config.delays == (0, 0, 1, 1)
    assert torch.equal(loaded.lm.out_norm.weight, state["out_norm.weight"])
    joined = torch.cat([half[f"linears.{k}.weight"] for k in range(4)]).float()
    assert loaded.lm.heads.weight.dtype == torch.float32 and torch.equal(loaded.lm.heads.weight, joined)
    config["compression_model_n_q"] = 2  # the codec's, which are those of one channel
    assert load_lm(write(tmp_path, config, half)).codec.dual_mono
    config["compression_model_n_q"] = 4
    with pytest.raises(InputError, match="compression_model_n_q is 4, but .*n_q is 4; that must be twice"):
        load_lm(write(tmp_path, config, half))


def test_releases_of_before_the_pattern_had_a_section(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    config = configuration(q_modeling="delay")
    config["codebooks_pattern"] = {"modeling": None}
    assert load_lm(write(tmp_path, config, tensors)).lm.config.delays in ((), (0, 1, 2))
    config["codebooks_pattern"] = {"modeling": "parallel"}
    assert load_lm(write(tmp_path, config, tensors)).lm.config == LMConfig(
        3, 20, 24, 2, 4, 3, pattern="parallel"
    )


@pytest.mark.parametrize(
    ("pointer", "frames"),
    [("facebook/encodec_32khz", 125), ("facebook/encodec_24khz", 187), ("dac_44khz", 215)],
)
def test_a_compression_file_may_name_its_codec(
    tensors: dict[str, Tensor], tmp_path: Path, pointer: str, frames: int
) -> None:
    folder = write(tmp_path, configuration(), tensors, {"pretrained": pointer})
    assert load_lm(folder).max_frames == frames
    torch.save({"best_state": {}, "xp.cfg": yaml.safe_dump(CODEC)}, folder / "beside.bin")
    write(tmp_path, configuration(), tensors, {"pretrained": "beside.bin"})
    assert load_lm(folder).max_frames == 250


@torch.no_grad()
def test_a_text_encoder_of_the_right_width_is_used(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = write(tmp_path / "release", configuration(), tensors)
    for width in (12, 16):
        text = tmp_path / f"t5_{width}"
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁dog", -4.0)]
        T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(text)
        shape = T5Config(vocab_size=40, d_model=width, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
        T5EncoderModel(shape).save_pretrained(text)
    loaded = load_lm(folder, text_encoder=str(tmp_path / "t5_12"))
    encoder = T5EncoderModel.from_pretrained(tmp_path / "t5_12")
    hidden = encoder(torch.tensor([loaded.conditioner.token_ids("a dog")])).last_hidden_state
    projection = "condition_provider.conditioners.description.output_proj."
    expected = hidden @ tensors[f"{projection}weight"].T + tensors[f"{projection}bias"]
    torch.testing.assert_close(loaded.conditioner(["a dog"]).tokens, expected, atol=1e-4, rtol=0)
    for wrong, said in (
        ("t5_16", "t5_16' gives features 16 wide, but .* projects from 12"),
        ("none", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=said):
            load_lm(folder, text_encoder=str(tmp_path / wrong))


def put(key: str, value: Any) -> Change:
    """Set a dotted key of the configuration, or with a value of `...` remove it."""

    def change(config: dict[str, Any], state: dict[str, Tensor]) -> None:
        *path, last = key.split(".")
        for part in path:
            config = config.setdefault(part, {})
        config.pop(last, None) if value is ... else config.__setitem__(last, value)

    return change


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lm_model", "transformer_lm_magnet", "lm_model is 'transformer_lm_magnet'"),
        ("transformer_lm.bias_attn", True, "transformer_lm.bias_attn is True; only False"),
        ("transformer_lm.bias_ff", True, "transformer_lm.bias_ff is True"),
        ("transformer_lm.bias_proj", ..., "transformer_lm.bias_proj is True"),
        ("transformer_lm.norm_first", False, "transformer_lm.norm_first is False; only True"),
        ("transformer_lm.norm_first", ..., "transformer_lm.norm_first is False"),
        ("transformer_lm.norm", "rms_norm", "transformer_lm.norm is 'rms_norm'"),
        ("transformer_lm.positional_embedding", "rope", "transformer_lm.positional_embedding is 'rope'"),
        ("transformer_lm.qk_layer_norm", True, "transformer_lm.qk_layer_norm is True"),
        ("transformer_lm.qk_layer_norm_cross", True, "transformer_lm.qk_layer_norm_cross is True"),
        ("transformer_lm.kv_repeat", 2, "transformer_lm.kv_repeat is 2; only 1"),
        ("transformer_lm.xpos", True, "transformer_lm.xpos is True"),
        ("transformer_lm.layer_scale", 0.1, "transformer_lm.layer_scale is 0.1"),
        ("transformer_lm.past_context", 100, "transformer_lm.past_context is 100"),
        ("transformer_lm.causal", False, "transformer_lm.causal is False"),
        ("transformer_lm.activation", "relu", "transformer_lm.activation is 'relu'; only 'gelu'"),
        ("transformer_lm.max_period", 500, "transformer_lm.max_period is 500"),
        (
            "transformer_lm.subcodes_context",
            5,
            "transformer_lm.subcodes_context is 5, which is not implemented",
        ),
        ("transformer_lm.dim", 25, "dim is 25"),
        ("transformer_lm.num_layers", -1, "num_layers is -1; it must be a whole number"),
        ("transformer_lm.dim", 48, "should make"),
        ("transformer_lm.card", None, "transformer_lm.card is None; it must be a whole number"),
        ("transformer_lm.num_layers", 10**12, "num_layers is 1000000000000; it must be a whole number"),
        ("transformer_lm.n_q", 10**12, "n_q is 1000000000000; it must be a whole number"),
        ("transformer_lm.hidden_scale", 3.5, "hidden_scale is 3.5"),
        ("codebooks_pattern.modeling", "unroll", "codebooks_pattern.modeling is 'unroll'; only 'delay' or"),
        ("codebooks_pattern.delay.delays", [0, 1], r"delays is \[0, 1\]; 3 are needed"),
        ("codebooks_pattern.delay.delays", [0, 1, "x"], "delays.2 is 'x'"),
        ("codebooks_pattern.delay.flatten_first", 1, "codebooks_pattern.delay.flatten_first is 1"),
        ("codebooks_pattern.delay.empty_initial", 1, "codebooks_pattern.delay.empty_initial is 1"),
        ("conditioners.self_wav", {"model": "chroma_stem"}, "self_wav.model is 'chroma_stem'.*no melody"),
        ("conditioners.self_wav", {"model": "style"}, "self_wav.model is 'style'.*no melody or style"),
        ("conditioners.bpm", {"model": "lut"}, "conditioners.bpm.model is 'lut'"),
        ("conditioners.description.model", "clap", "conditioners.description.model is 'clap'"),
        ("conditioners.description.t5.name", "t5-giant", "t5.name is 't5-giant'; only 't5-small'"),
        ("conditioners.description.t5.finetune", True, "t5.finetune is True"),
        ("conditioners.description.t5.normalize_text", True, "t5.normalize_text is True"),
        ("conditioners", {}, "conditioners is empty"),
        ("fuser.cross", [], r"fuser.cross is \[\]; only \['description'\]"),
        ("fuser.cross", ..., "lacks fuser.cross"),
        ("fuser.prepend", ["description"], r"fuser.prepend is \['description'\]; only \[\]"),
        ("fuser.cross_attention_pos_emb", True, "fuser.cross_attention_pos_emb is True"),
        (
            "interleave_stereo_codebooks",
            {"use": True},
            "interleave_stereo_codebooks.use is true, but .*n_q is 3",
        ),
        ("interleave_stereo_codebooks", {"use": True, "per_timestep": True}, "per_timestep is True"),
        ("compression_model_n_q", 2, "compression_model_n_q is 2, but transformer_lm.n_q is 3"),
        ("dataset.segment_duration", "${nowhere}", "dataset.segment_duration cannot be resolved"),
        ("dataset.segment_duration", None, "lacks dataset.segment_duration"),
        ("classifier_free_guidance.inference_coef", "x", "inference_coef is 'x'"),
        ("transformer_lm", [1], r"transformer_lm is \[1\]; a mapping"),
    ],
)
def test_what_is_not_implemented_is_named(
    tensors: dict[str, Tensor], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    config = configuration()
    put(key, value)(config, {})
    folder = write(tmp_path, config, tensors)
    with pytest.raises(InputError, match=f"state_dict.bin.*{said}") as caught:
        load_lm(folder)
    assert "\n" not in str(caught.value)


def edit(name: str, value: Tensor | None) -> Callable[[dict[str, Any]], None]:
    def change(contents: dict[str, Any]) -> None:
        contents["best_state"].pop(name, None)
        if value is not None:
            contents["best_state"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("out_norm.bias", None), "missing out_norm.bias"),
        (edit("emb.9.weight", torch.zeros(2)), "unexpected emb.9.weight"),
        (edit("extra", torch.zeros(2)), "unexpected extra"),
        (
            lambda contents: contents["best_state"].update({3: torch.zeros(1)}),
            "3 is a Tensor; names with tensors",
        ),
        (
            edit("emb.1.weight", torch.zeros(21, 23)),
            r"emb.0.weight is .*\[21, 23\].*, should make \[63, 24\]",
        ),
        (
            edit("out_norm.weight", torch.zeros(24).long()),
            r"out_norm.weight is \[24\] of int64, not a tensor of floats",
        ),
        (
            edit("condition_provider.conditioners.description.output_proj.weight", None),
            "missing .*output_proj.weight",
        ),
        (lambda contents: contents.pop("best_state"), "best_state is missing"),
        (lambda contents: contents.pop("xp.cfg"), "xp.cfg is missing"),
        (lambda contents: contents.update({"xp.cfg": "a: [1"}), "xp.cfg cannot be read as YAML"),
        (lambda contents: contents.update({"xp.cfg": "just words"}), "conditioners is empty"),
        (lambda contents: contents.update({"xp.cfg": "- 1"}), "xp.cfg holds no `key: value` mapping"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    tensors: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    path = write(tmp_path, configuration(), tensors) / "state_dict.bin"
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*{said}") as caught:
        load_lm(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_release_without_its_codec_file_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(tmp_path, configuration(), tensors)
    (folder / "compression_state_dict.bin").write_bytes(b"what")
    with pytest.raises(InputError, match="compression_state_dict.bin"):
        load_lm(folder)
    (folder / "compression_state_dict.bin").unlink()
    with pytest.raises(InputError, match="compression_state_dict.bin"):
        load_lm(folder)
    write(folder, configuration(), tensors, {"pretrained": "debug"})
    with pytest.raises(InputError, match=r"compression_state_dict.bin: pretrained is 'debug'"):
        load_lm(folder)
    (folder / "state_dict.bin").unlink()
    with pytest.raises(
        InputError, match="holds a codec, which does not generate; .* lies its state_dict.bin"
    ):
        load_lm(folder)
