"""MusicGen of transformers, tiny and random, gives the same logits and codes here, both ways; and so after saving."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.patterns import interleave
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models.build import load_lm, read_lm
from audiogen.models.export import decoder_parts
from audiogen.models.find import LAYOUTS, LM, find
from audiogen.models.own import save_lm
from audiogen.models.parts import CodecReference
from audiogen.models.settings import Settings, table
from audiogen.models.transformers import codec_config, lm_config
from audiogen.text.condition import pad_like_peers, stack

GREEDY = TokenSampling(temperature=0)
TEXTS = ["a dog barks", "rain"]
FRAMES = 9


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    """And all keys of its configurations are read, or harmless."""
    nothing = Settings({}, "generation_config.json")
    absent, whole = Settings({}, "config.json"), Settings(MusicgenDecoderConfig().to_dict(), "config.json")
    assert lm_config(absent, nothing, 1) == lm_config(whole, nothing, 1)
    whole.choice("audio_channels", (1, 2))
    whole.done([*table("transformers.harmless"), *table("transformers.harmless_decoder")])
    assert codec_config(Settings({}, "")) == codec_config(Settings(EncodecConfig().to_dict(), ""))


def tokenizer(folder: Path) -> T5Tokenizer:
    """A tokenizer of letters, written to the folder."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁dog", -4.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    made = T5Tokenizer(vocab=pieces, extra_ids=0)
    made.save_pretrained(folder)
    return made


def musicgen(channels: int = 1, **decoder: Any) -> MusicgenForConditionalGeneration:
    """Weights large enough for text and context to matter."""
    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 24,
        "ffn_dim": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_codebooks": 3 * channels,
        "audio_channels": channels,
    }
    sizes |= decoder
    special = dict.fromkeys(("pad_token_id", "bos_token_id"), sizes["vocab_size"])
    torch.manual_seed(sizes["num_codebooks"])
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(
            text_encoder=T5Config(
                vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3
            ).to_dict(),
            audio_encoder=EncodecConfig(
                sampling_rate=8000,
                num_filters=2,
                hidden_size=8,
                codebook_dim=8,
                codebook_size=32,
                upsampling_ratios=[5, 4, 4],
                num_lstm_layers=1,
            ).to_dict(),
            decoder=MusicgenDecoderConfig(**sizes, **special, dropout=0.0).to_dict(),
        )
    ).eval()
    model.generation_config.update(
        **special, decoder_start_token_id=sizes["vocab_size"], guidance_scale=2.5, max_length=40 + 3
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("decoder.", "enc_to_dec")) and weight.dim() == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return model


def saved(folder: Path, model: MusicgenForConditionalGeneration, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MusicgenForConditionalGeneration, Path]:
    """(model, the directory it was saved to)."""
    model = musicgen(request.param)
    return model, saved(tmp_path_factory.mktemp("musicgen"), model)


def their_codes(model: MusicgenForConditionalGeneration, inputs: dict[str, Any], guidance: float) -> Tensor:
    """Greedy codes [B, K, T] of transformers: what it gives to its codec."""
    seen = []
    decode = model.audio_encoder.decode

    def watched(codes: Tensor, **settings: Any) -> Any:
        seen.append(codes[0])  # [B, K of one channel, T]
        return decode(codes, **settings)

    model.audio_encoder.decode = watched
    one_channel = model.decoder.num_codebooks // model.config.decoder.audio_channels
    arguments = inputs | {"guidance_scale": guidance, "max_new_tokens": FRAMES + one_channel - 1}
    model.generate(**arguments, do_sample=False)
    model.audio_encoder.decode = decode
    return torch.stack(seen, 2).flatten(1, 2)  # left 0, right 0, left 1 ... of two channels


def encoded(folder: Path, texts: list[str]) -> dict[str, Any]:
    return dict(T5Tokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt"))


@torch.no_grad()
def test_logits_are_those_of_transformers(pair: tuple[MusicgenForConditionalGeneration, Path]) -> None:
    model, folder = pair
    loaded = load_lm(folder)
    codes = torch.randint(20, (2, loaded.lm.config.num_codebooks, FRAMES))
    steps = interleave(codes, loaded.lm.config.pattern_of(FRAMES), loaded.lm.special)
    inputs = encoded(folder, TEXTS)
    assert not inputs["attention_mask"].all()  # one text is padded
    condition = loaded.conditioner(list(TEXTS))
    expected = model(**inputs, decoder_input_ids=steps.flatten(0, 1)).logits.unflatten(0, (2, -1))
    torch.testing.assert_close(loaded.lm(steps, condition), expected, atol=1e-4, rtol=0)
    nothing = model.get_unconditional_inputs(2)
    without = model(
        encoder_outputs=nothing.encoder_outputs,
        attention_mask=nothing.attention_mask,
        decoder_input_ids=steps.flatten(0, 1),
    ).logits.unflatten(0, (2, -1))
    torch.testing.assert_close(loaded.lm(steps), without, atol=1e-4, rtol=0)
    assert (expected - without).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_are_those_of_transformers(
    pair: tuple[MusicgenForConditionalGeneration, Path], guidance: float
) -> None:
    model, folder = pair
    loaded = load_lm(folder)
    condition = loaded.conditioner(list(TEXTS))
    ours = generate_tokens(loaded.lm, TokenRequest(condition, FRAMES, [0, 1], guidance=guidance), GREEDY)
    assert torch.equal(ours, their_codes(model, encoded(folder, TEXTS), guidance))
    nothing = vars(model.get_unconditional_inputs(1))
    ours = generate_tokens(loaded.lm, TokenRequest(None, FRAMES, [0], guidance=guidance), GREEDY)
    assert torch.equal(ours, their_codes(model, nothing, guidance))


def test_what_a_release_says_of_itself(pair: tuple[MusicgenForConditionalGeneration, Path]) -> None:
    model, folder = pair
    loaded = load_lm(folder)
    stereo = model.config.decoder.audio_channels == 2
    assert loaded.codec == CodecReference(str(folder), "", dual_mono=stereo)
    assert loaded.lm.config.delays == ((0, 0, 1, 1, 2, 2) if stereo else (0, 1, 2))
    assert (loaded.max_frames, loaded.info) == (40, {"generation": {"guidance": 2.5}})
    description = read_lm(find(folder, LM))
    assert description.config == loaded.lm.config and description.text == loaded.conditioner.config
    assert (description.codec, description.max_frames) == (loaded.codec, 40)
    assert not loaded.lm.training and not loaded.conditioner.training
    assert set(loaded.conditioner.state_dict()) == {"output_proj.weight", "output_proj.bias"}


@torch.no_grad()
def test_saved_as_ours_it_carries_its_text_encoder(
    pair: tuple[MusicgenForConditionalGeneration, Path], tiny_model: Path, tmp_path: Path
) -> None:
    loaded = load_lm(pair[1])
    codec = CodecReference(str(tiny_model / "codec"), "", loaded.codec.dual_mono)
    save_lm(tmp_path / "ours", loaded.lm, loaded.conditioner, codec, loaded.max_frames, loaded.info)
    again = load_lm(tmp_path / "ours")
    assert again.conditioner.config == loaded.conditioner.config and again.info == loaded.info
    assert again.codec.dual_mono == loaded.codec.dual_mono
    assert torch.equal(again.conditioner(list(TEXTS)).tokens, loaded.conditioner(list(TEXTS)).tokens)
    for name, tensor in loaded.lm.state_dict().items():
        assert torch.equal(again.lm.state_dict()[name], tensor)
    assert set(again.conditioner.state_dict()) == {"output_proj.weight", "output_proj.bias"}


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (LMConfig(1, 7, 8, 1, 2), 1),
        (LMConfig(5, 9, 12, 3, 3, ff_mult=2), 1),
        (LMConfig(4, 17, 16, 2, 2, delays=(0, 0, 1, 1)), 2),
        (LMConfig(2, 5, 12, 1, 6, delays=(0, 1)), 1),
    ],
)
def test_ours_opens_in_transformers_and_comes_back(config: LMConfig, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm = TokenLM(config).eval()
    decoder, tensors = decoder_parts(lm)
    assert decoder["audio_channels"] == channels
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(decoder))
    theirs, report = MusicgenForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    codes = torch.randint(config.codebook_size, (2, config.num_codebooks, 7))
    steps = interleave(codes, lm.config.pattern_of(7), lm.special)
    tokens, mask = torch.randn(2, 5, config.dim), torch.arange(5) < torch.tensor([[5], [3]])
    condition = Condition(tokens * mask[..., None], mask)
    expected = theirs.eval()(
        steps.flatten(0, 1), encoder_hidden_states=condition.tokens, encoder_attention_mask=mask.long()
    ).logits.unflatten(0, (2, -1))
    torch.testing.assert_close(lm(steps, condition), expected, atol=1e-4, rtol=0)

    whole = musicgen(
        channels,
        vocab_size=config.codebook_size,
        hidden_size=config.dim,
        ffn_dim=config.ff_mult * config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_codebooks=config.num_codebooks,
    )
    whole.decoder.load_state_dict(tensors)
    back = load_lm(saved(tmp_path / "whole", whole)).lm
    delays = config.delays or tuple(range(config.num_codebooks))
    assert back.config == dataclasses.replace(config, delays=delays)
    for name, tensor in lm.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "change",
    [{"pattern": "flatten"}, {"delays": (0, 2, 1, 1)}, {"pattern": "parallel"}, {"delays": (0, 0, 0, 1)}],
)
def test_other_patterns_stay_ours(change: dict[str, Any]) -> None:
    lm = TokenLM(dataclasses.replace(LMConfig(4, 7, 8, 1, 2), **change))
    with pytest.raises(InputError, match="transformers has only the delays"):
        decoder_parts(lm)


@torch.no_grad()
def test_shards_half_precision_and_names_of_older_versions(tmp_path: Path) -> None:
    model = musicgen()
    expected = load_lm(saved(tmp_path / "whole", model)).lm.state_dict()
    sharded = saved(tmp_path / "shards", model, max_shard_size="20KB")
    assert not (sharded / "model.safetensors").exists()
    for name, tensor in load_lm(sharded).lm.state_dict().items():
        assert torch.equal(tensor, expected[name])
    old = saved(tmp_path / "old", model.half())
    tensors = load_file(old / "model.safetensors")
    tensors["decoder.model.decoder.embed_positions.weights"] = torch.zeros(2048, 24)
    tensors["text_encoder.encoder.embed_tokens.weight"] = tensors["text_encoder.shared.weight"].clone()
    save_file(tensors, old / "model.safetensors")
    loaded = load_lm(old)
    for name, tensor in loaded.lm.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name].half().float())
    assert loaded.conditioner(["rain"]).tokens.dtype == torch.float32
    assert loaded.conditioner.text_encoder().stack.embed_tokens.weight.dtype == torch.float32


@torch.no_grad()
def test_a_text_encoder_as_wide_as_the_decoder_has_no_projection(tmp_path: Path) -> None:
    model = musicgen(hidden_size=12, num_attention_heads=3, ffn_dim=24)
    assert not hasattr(model, "enc_to_dec_proj")
    folder = saved(tmp_path, model)
    loaded = load_lm(folder)
    inputs = encoded(folder, TEXTS)
    hidden = model.text_encoder(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    torch.testing.assert_close(loaded.conditioner(list(TEXTS)).tokens, hidden, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_like_peers_is_attention_without_a_mask(tmp_path: Path) -> None:
    model = musicgen()
    folder = saved(tmp_path, model)
    loaded = load_lm(folder)
    condition = pad_like_peers([loaded.conditioner([text]) for text in TEXTS])
    inputs = encoded(folder, TEXTS)
    hidden = model.enc_to_dec_proj(model.text_encoder(**inputs).last_hidden_state)
    hidden = hidden * inputs["attention_mask"][..., None]
    steps = torch.randint(20, (2, 3, 8))
    expected = model.decoder(steps.flatten(0, 1), encoder_hidden_states=hidden).logits.unflatten(0, (2, -1))
    torch.testing.assert_close(loaded.lm(steps, condition), expected, atol=1e-4, rtol=0)
    masked = loaded.lm(steps, stack([loaded.conditioner([text]) for text in TEXTS]))
    torch.testing.assert_close(masked[0], expected[0], atol=1e-4, rtol=0)  # the longest has no padding
    assert (masked[1] - expected[1]).abs().max() > 1e-3


@torch.no_grad()
def test_another_text_encoder_replaces_the_one_carried(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", musicgen())
    other = tmp_path / "t5"
    tokenizer(other)
    T5EncoderModel(
        T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_heads=3)
    ).save_pretrained(other)
    loaded = load_lm(folder, text_encoder=str(other))
    assert loaded.conditioner.config.encoder == str(other) and not loaded.conditioner.config.stored
    assert loaded.conditioner.config == read_lm(find(folder, LM), str(other)).text
    assert len(loaded.conditioner.text_encoder().stack.block) == 1
    wide = tmp_path / "wide"
    tokenizer(wide)
    T5EncoderModel(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=3)
    ).save_pretrained(wide)
    with pytest.raises(InputError, match="wide' gives features 16 wide, but .* projects from 12"):
        load_lm(folder, text_encoder=str(wide))
    (folder / "tokenizer.json").unlink()
    assert load_lm(folder).conditioner([None]).tokens.shape == (1, 1, 24)  # no text needs no tokenizer
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_lm(folder).conditioner(["rain"])


@torch.no_grad()
def test_opening_the_text_encoder_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, musicgen())
    capfd.readouterr()
    assert load_lm(folder).conditioner(["rain"]).mask.all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (
            ["model.safetensors"],
            ["model.fp32.safetensors", "model.safetensors.index.fp32.json", "state_dict.bin"],
        ),
        (
            [*(f"model-0000{part}-of-00002.safetensors" for part in (1, 2)), "model.safetensors.index.json"],
            [
                "model-00001-of-00002.fp32.safetensors",
                "model.safetensors.index.fp32.json",
                "pytorch_model.bin",
            ],
        ),
    ],
)
def test_weights_are_downloaded_once_where_a_release_has_them_in_two_precisions(
    weights: list[str], others: list[str]
) -> None:
    wanted = ["config.json", "generation_config.json", "spiece.model", "tokenizer.json", *weights]
    layout = next(layout for layout in LAYOUTS if layout.fits([*wanted, *others]))
    assert layout.name == "transformers"
    assert list(filter_repo_objects([*wanted, *others], allow_patterns=list(layout.patterns))) == wanted


def changed(folder: Path, target: Path, key: str, value: Any) -> Path:
    """A copy with another value of a dotted key in config.json; `...` removes it."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    *path, last = key.split(".")
    part = config
    for name in path:
        part = part[name]
    part.pop(last) if value is ... else part.update({last: value})
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", "musicgen_melody", "model_type is 'musicgen_melody'.*follows a melody"),
        ("model_type", "bark", "model_type is 'bark'; allowed: 'musicgen'"),
        ("decoder.activation_function", "relu", "decoder.activation_function is 'relu'; only 'gelu'"),
        ("decoder.scale_embedding", True, "decoder.scale_embedding is True"),
        ("decoder.cross_attention_hidden_size", 12, "decoder.cross_attention_hidden_size is 12"),
        ("decoder.audio_channels", 3, "decoder.audio_channels is 3; only 1 or 2"),
        ("decoder.hidden_size", -24, "decoder.hidden_size is -24; it must be a whole number"),
        ("text_encoder.d_kv", -4, "not that of a T5|no network has the sizes"),
        ("decoder.ffn_dim", 73, "decoder.ffn_dim is 73; only multiples of decoder.hidden_size"),
        ("decoder.ffn_dim", 48, r"fc1.weight is \[72, 24\], should make \[48, 24\]"),
        ("decoder.num_attention_heads", 5, "multiple of lm.num_heads"),
        (
            "decoder.num_hidden_layers",
            10**12,
            "num_hidden_layers is 1000000000000; it must be a whole number",
        ),
        ("decoder.num_codebooks", 4, "(missing|unexpected) .*lm_heads"),
        ("decoder.vocab_size", 21, "special token is 20"),
        ("decoder.vocab_size", "x", "decoder.vocab_size is 'x'"),
        ("decoder", ..., "lacks decoder"),
        ("text_encoder.model_type", "umt5", "text encoder has model_type 'umt5'; 't5' and 't5gemma'"),
        ("text_encoder.num_layers", 10**12, "tensors that there are cannot fill its layers"),
        ("text_encoder.d_model", 13, "should make"),
        ("text_encoder.d_model", "x", "not that of a T5"),
        ("audio_encoder.upsampling_ratios", [], r"audio_encoder.upsampling_ratios is \[\]"),
    ],
)
def test_what_is_not_implemented_is_named(
    pair: tuple[MusicgenForConditionalGeneration, Path], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_lm(changed(pair[1], tmp_path / "changed", key, value))
    assert str(tmp_path / "changed") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "decoder.lm_heads.1.weight",
            torch.zeros(20, 23),
            r"lm_heads.0.weight is \[20, 24\] and \[20, 23\].*, should make",
        ),
        ("decoder.model.decoder.layer_norm.bias", None, "missing decoder.model.decoder.layer_norm.bias"),
        ("enc_to_dec_proj.weight", None, "missing enc_to_dec_proj.weight"),
        ("text_encoder.shared.weight", None, "missing text_encoder.shared.weight"),
        ("decoder.something", torch.zeros(1), "unexpected decoder.something"),
        (
            "decoder.model.decoder.layer_norm.bias",
            torch.zeros(24).int(),
            r"is \[24\] of int32, not a tensor of floats",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    pair: tuple[MusicgenForConditionalGeneration, Path],
    tmp_path: Path,
    name: str,
    value: Tensor | None,
    said: str,
) -> None:
    folder = changed(pair[1], tmp_path / "changed", "initializer_factor", 1.0)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if value is None else {name: value}), folder / "model.safetensors")
    with pytest.raises(InputError, match=f"model.safetensors.*{said}"):
        load_lm(folder)


def test_missing_and_damaged_files_are_named(
    pair: tuple[MusicgenForConditionalGeneration, Path], tmp_path: Path
) -> None:
    folder = changed(pair[1], tmp_path / "changed", "initializer_factor", 1.0)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="model.safetensors"):
        load_lm(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        InputError, match="holds no weights: none of model.safetensors, model.safetensors.index"
    ):
        load_lm(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json"):
        load_lm(folder)


@pytest.mark.parametrize(("longest", "frames"), [(300, 300), (43, 40), (None, 3000), (2, 1)])
def test_the_longest_generation(
    pair: tuple[MusicgenForConditionalGeneration, Path], tmp_path: Path, longest: int | None, frames: int
) -> None:
    """Whole seconds of 100 frames as the releases write them; else steps, of which two and the first are no frames."""
    folder = changed(pair[1], tmp_path / "changed", "initializer_factor", 1.0)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": longest}))
    assert read_lm(find(folder, LM)).max_frames == frames
