"""Text to audio: a sound is a function of its text, seed and settings; durations, continuation, saving, refusals."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiogen import AudioGen
from audiogen import audio as audio_io
from audiogen import lora as low_rank
from audiogen.codec.model import Codec
from audiogen.codec.segmented import SegmentedCodec
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.generators import load as generators
from audiogen.generators.facts import facts
from audiogen.interfaces import Condition, Edit, Generator, Sampling
from audiogen.lm import decoders, lora
from audiogen.lm.kernels import native
from audiogen.lm.kernels.packed import PackedLM
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models.build import load_codec, load_lm
from audiogen.models.find import bundled, find
from audiogen.models.own import load_tagger
from audiogen.models.parts import LMParts
from audiogen.native import library
from audiogen.text.condition import pad_like_peers
from tests import random_t5

TEXTS = ["a dog barks", "rain falls on a tin roof", None, "a clock ticks", "a dog ticks", "rain"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    """By PyTorch in float32, what every other way to run it is compared with."""
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32", packed=False)


def test_a_sound_is_the_same_alone_in_a_batch_and_in_any_order(model: AudioGen) -> None:
    together = model.generate(TEXTS, 0.2, seed=5)
    assert together.shape == (6, 1, 1600) and together.isfinite().all()
    for row, text in enumerate(TEXTS):
        assert torch.equal(model.generate([text], 0.2, seed=5 + row), together[row : row + 1])
    backwards = model.generate(TEXTS[::-1], 0.2, seed=[10, 9, 8, 7, 6, 5])
    assert torch.equal(backwards.flip(0), together)
    assert len({row.numpy().tobytes() for row in together}) == 6


def test_texts_of_one_seed_do_not_share_their_noise(model: AudioGen) -> None:
    """So hot that every code is as probable as the others, text changes nothing but the noise."""
    flat = {"guidance": 1.0, "sampling": Sampling(temperature=1e9, top_k=0), "seed": [3, 3, 3]}
    dog, rain, again = model.generate(["a dog", "rain", "rain"], 0.2, **flat)  # type: ignore[arg-type]
    assert not torch.equal(dog, rain) and torch.equal(rain, again)
    streamed = torch.cat(list(model.stream("rain", 0.2, **flat | {"seed": 3})), -1)  # type: ignore[arg-type]
    torch.testing.assert_close(streamed, rain, atol=1e-5, rtol=0)


def test_long_and_short_rows_of_a_batch_are_what_they_are_alone(model: AudioGen) -> None:
    texts, durations = (
        ["a dog barks", "a clock ticks " * 20, "rain"],
        [0.2, 0.155, 0.9],
    )  # 0.9 s is past the window
    together = model.generate(texts, durations, seed=1, sampling=Sampling(negative="rain"))
    assert together.shape == (3, 1, 7200)
    for row, (text, duration_s) in enumerate(zip(texts, durations, strict=True)):
        alone = model.generate([text], duration_s, seed=1 + row, sampling=Sampling(negative="rain"))[0]
        assert alone.shape[-1] == round(8000 * duration_s)
        assert torch.equal(together[row, :, : alone.shape[-1]], alone)
        assert not together[row, :, alone.shape[-1] :].any()
        assert alone[:, -80:].any()  # sound to the very end


def test_peer_padding_puts_zero_rows_into_the_softmax_and_is_off_by_default(model: AudioGen) -> None:
    texts = ["a dog barks", None, "rain falls on a tin roof, then a dog barks twice"]
    alone = [model.conditioner([text]) for text in texts]
    lengths = [condition.mask.shape[1] for condition in alone]
    longest = max(lengths)
    assert lengths[0] < longest
    # One layer, by hand: a row of zeros has the score 0 and the value 0, so it only adds 1 to the denominator.
    attention = model.lm.blocks()[0].cross_attention
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    queries = attention.query_proj(x).view(1, 5, 4, 6).transpose(1, 2)
    keys, values = attention.project(alone[0].tokens)
    scores = (queries @ keys.transpose(2, 3) / 6**0.5).exp()
    weights = scores / (scores.sum(-1, keepdim=True) + longest - lengths[0])
    expected = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    padded = pad_like_peers(alone)
    assert padded.tokens.shape == (3, longest, 24) and padded.mask.all()
    text = attention.project(padded.tokens[:1])
    with torch.no_grad():
        found = attention(x, text, padded.mask[:1, None, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    greedy, peers = Sampling(temperature=0.0), Sampling(temperature=0.0, peer_padding=True)
    together = model.generate(texts, 0.2, guidance=3.0, sampling=peers)
    codes = generate_tokens(model.lm, TokenRequest(padded, 20, [0, 1, 2], guidance=3.0), TokenSampling(0.0))
    torch.testing.assert_close(together, model.codec.decode(codes), atol=1e-5, rtol=0)
    default = model.generate(texts, 0.2, guidance=3.0, sampling=greedy)
    assert torch.equal(default[:1], model.generate(texts[:1], 0.2, guidance=3.0, sampling=greedy))
    assert not torch.equal(together[0], default[0])  # its neighbours are longer
    assert torch.equal(together[1:], default[1:])  # no text stays no text, and the longest has no padding
    assert torch.equal(model.generate(texts[:1], 0.2, guidance=3.0, sampling=peers), default[:1])
    clip = 0.5 * torch.sin(torch.arange(800) / 5.0)[None]
    continued = [
        model.generate_continuation(clip, 8000, texts, 0.3, guidance=3.0, sampling=sampling)
        for sampling in (greedy, peers)
    ]
    assert not torch.equal(continued[0][0], continued[1][0]) and torch.equal(
        continued[0][1:], continued[1][1:]
    )


def test_guidance_is_the_models_own_by_default(model: AudioGen) -> None:
    own = AudioGen(model.lm, model.conditioner, model.codec, 40, {"generation": {"guidance": 1.5}})
    assert torch.equal(own.generate(["rain"], 0.1), model.generate(["rain"], 0.1, guidance=1.5))
    assert torch.equal(model.generate(["rain"], 0.1), model.generate(["rain"], 0.1, guidance=3.0))


def test_a_codec_of_segments_is_refused(model: AudioGen) -> None:
    config = dataclasses.replace(model.codec.config, segment_s=0.5, segment_overlap=0.1)
    with pytest.raises(InputError, match="codes each segment of a sound by itself"):
        AudioGen(model.lm, model.conditioner, SegmentedCodec(Codec(config).eval(), 500, 450), 40)


def test_a_release_generates_what_the_public_implementation_did(shared: Path, tmp_path: Path) -> None:
    """Its codes and its codec; the text features of the golden file stand for a text encoder."""
    release = shared / "fixtures" / "audiogen_tiny"
    expected = load_file(release / "expected.safetensors")
    model = generators.load(release, "cpu", text_encoder=str(random_t5.write(tmp_path, 512)))
    assert (model.sample_rate, model.channels, model.lm.config.num_codebooks) == (16000, 1, 4)
    tokens = model.conditioner.output_proj(expected["text_features"])
    text = Condition(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    codes = generate_tokens(model.lm, TokenRequest(text, 12, [0], guidance=3.0), TokenSampling(0.0))
    assert torch.equal(codes, expected["greedy_codes"])
    assert torch.equal(model.codec.encode(expected["audio"]), expected["codes"])
    torch.testing.assert_close(model.codec.decode(expected["codes"]), expected["decoded"], atol=1e-4, rtol=0)
    sounds = model.generate(["a dog barks", None], 0.5)
    assert sounds.shape == (2, 1, 8000) and sounds.isfinite().all()


def test_without_text_a_release_needs_no_text_encoder(shared: Path) -> None:
    model = generators.load(shared / "fixtures" / "audiogen_tiny", "cpu")
    sounds = model.generate([None] * 2, 0.1)
    assert sounds.shape == (2, 1, 1600) and sounds.isfinite().all()
    with pytest.raises(InputError, match="t5-.*cannot be opened"):  # no network in the tests
        model.generate(["a dog"], 0.1)


def test_every_setting_reaches_the_model(model: AudioGen) -> None:
    def sound(**settings: object) -> bytes:
        text = settings.pop("text", "a dog barks")
        return model.generate([text], 0.4, **settings).numpy().tobytes()  # type: ignore[arg-type, list-item]

    settings = [
        {},
        {"seed": 1},
        {"text": "rain"},
        {"guidance": 1.0},
        {"sampling": Sampling(temperature=0.3)},
        {"sampling": Sampling(top_k=2)},
        {"sampling": Sampling(top_p=0.5)},
        {"sampling": Sampling(negative="rain")},
    ]
    assert len({sound(**setting) for setting in settings}) == len(settings)
    greedy = Sampling(temperature=0.0)
    assert sound(sampling=greedy, seed=1) == sound(sampling=greedy, seed=2)
    assert sound(sampling=greedy) == sound(sampling=Sampling(top_k=1), seed=3)


def test_without_text_guidance_changes_nothing(model: AudioGen) -> None:
    alone = model.generate([None] * 3, 0.2, seed=4, guidance=1.0)
    torch.testing.assert_close(alone, model.generate([None] * 3, 0.2, seed=4), atol=1e-5, rtol=0)


def test_continuation_begins_with_the_clip_itself(model: AudioGen) -> None:
    """Bit for bit up to a fade of 20 ms; its whole frames, as the codec codes them, are what the model continues."""
    clip = 0.5 * torch.sin(torch.arange(1000) / 5.0)[None]  # 12 whole frames and a half
    greedy = Sampling(temperature=0.0)
    sounds = model.generate_continuation(clip, 8000, ["a dog barks", "rain"], 0.3, sampling=greedy)
    assert sounds.shape == (2, 1, 2400) and sounds.abs().max() <= 1
    for sound in sounds:
        assert torch.equal(sound[:, : 1000 - 160], clip[:, : 1000 - 160])
        assert not torch.equal(sound[:, : 1000 - 150], clip[:, : 1000 - 150])
    plain = model.generate(["a dog barks", "rain"], 0.3, sampling=greedy)
    assert not torch.equal(sounds[..., 1000:], plain[..., 1000:])
    # a clip a row, at another rate and in stereo
    stereo = torch.stack([clip, clip.flip(-1)]).repeat_interleave(2, -1).expand(2, 2, -1)
    both = model.generate_continuation(stereo, 16000, duration_s=0.3)
    assert both.shape == (2, 1, 2400) and not torch.equal(both[0], both[1])
    for row, sound in enumerate(both):
        own = audio_io.resample(stereo[row], 16000, 8000).mean(0, keepdim=True)
        assert torch.equal(sound[:, : 1000 - 160], own[:, : 1000 - 160])


def test_a_loud_model_is_turned_down_and_not_the_sound_that_it_continues(
    model: AudioGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda *given, **state: 50 * decode(*given, **state))
    down_db: list[float] = []
    sounds = model.generate(["a dog", "rain"], [0.1, 0.2], turned_down_db=down_db)
    peaks = sounds.abs().amax((1, 2))
    assert len(down_db) == 2 and min(down_db) > 0 and torch.equal(peaks, torch.ones(2))
    clip = 0.9 * torch.sin(torch.arange(800) / 5.0)[None]
    (whole,) = model.generate(["rain"], 0.2, prompt=(clip, 8000), turned_down_db=down_db)
    pieces = model.stream("rain", 0.2, prompt=(clip, 8000), turned_down_db=down_db)
    for sound in (whole, torch.cat(list(pieces), -1)):
        assert torch.equal(sound[:, : 800 - 160], clip[:, : 800 - 160]) and sound.abs().max() <= 1
        assert len(down_db) == 1 and down_db[0] > 0


def test_a_saved_model_is_complete_and_generates_the_same(model: AudioGen, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    moved = generators.load(tmp_path / "moved", "cpu", "float32", packed=False)
    assert torch.equal(moved.generate(TEXTS[:2], 0.1), model.generate(TEXTS[:2], 0.1))
    assert moved.info == {"steps": 0} and moved.max_frames == 40
    found = facts(find(tmp_path / "moved"))
    for key in ("family", "sample_rate", "channels", "latent_rate", "max_duration_s"):
        assert getattr(found, key) == getattr(moved, key)
    assert found.defaults == f"guidance {moved.guidance:g}"
    moved.save_pretrained(tmp_path / "moved")  # onto itself
    generators.load(tmp_path / "moved", "cpu").save_pretrained(tmp_path / "moved")  # and out of mapped files
    again = generators.load(tmp_path / "moved", "cpu", "float32", packed=False)
    assert torch.equal(again.generate(["rain"], 0.1), model.generate(["rain"], 0.1))


def test_a_bundled_codec_is_named_not_copied(
    model: AudioGen, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiogen.models.find.weights_folder", lambda: tmp_path / "weights")
    shutil.copytree(tiny_model / "codec", tmp_path / "weights" / "codec_x")
    codec = load_codec("codec_x")
    named = AudioGen(model.lm, model.conditioner, codec, model.max_frames)
    named.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "codec").exists()
    again = AudioGen.from_pretrained(tmp_path / "saved", "cpu", "float32", packed=False)
    assert torch.equal(again.generate(["rain"], 0.1), model.generate(["rain"], 0.1))
    next(codec.decoder.parameters()).mul_(1.5)  # no longer the bundled one, though it reads the same tokens
    named.save_pretrained(tmp_path / "changed")
    again = AudioGen.from_pretrained(tmp_path / "changed", "cpu", "float32", packed=False)
    assert again.codec.identity == model.codec.identity
    assert torch.equal(again.generate(["rain"], 0.1), named.generate(["rain"], 0.1))


def test_another_codec_is_refused_and_not_noise(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors = checkpoint.load_tensors(tmp_path / "model" / "codec")
    name = next(name for name in tensors if name.endswith("codewords"))
    tensors[name] = tensors[name] + 0.5
    checkpoint.write_tensors(tmp_path / "model" / "codec" / "model.safetensors", tensors)
    with pytest.raises(InputError, match="was trained on the tokens of codec"):
        AudioGen.from_pretrained(tmp_path / "model")


def test_reconstruction_is_the_codec_alone(model: AudioGen) -> None:
    audio = 0.1 * torch.randn(2, 1, 501, generator=torch.Generator().manual_seed(0))
    codes = model.codec.encode(audio)[:, : model.lm.config.num_codebooks]
    assert torch.allclose(model.reconstruct(audio), model.codec.decode(codes)[..., :501], atol=1e-5)


@pytest.mark.parametrize("duration_s", [0.1, 1.3])
def test_evaluations_are_counted_as_they_happen(
    model: AudioGen, duration_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the batch that the language model sees, over the batch: also past the training length."""
    seen = []
    logits = type(model.lm).logits

    def watched(self: object, features: torch.Tensor) -> torch.Tensor:
        seen.append(len(features))
        return logits(self, features)

    monkeypatch.setattr(type(model.lm), "logits", watched)
    for guidance in (1.0, 3.0):
        seen.clear()
        model.generate(["a tone"], duration_s, guidance=guidance)
        assert sum(seen) == model.batch_size * model.num_evaluations(duration_s, guidance)


def test_parameters_are_those_of_all_parts(model: AudioGen) -> None:
    parts = [model.lm.state_dict(), model.conditioner.state_dict(), model.codec.decoder.state_dict()]
    assert model.num_parameters > sum(tensor.numel() for part in parts for tensor in part.values()) // 2
    assert model.latent_rate == f"{model.frame_rate:g} Hz x {model.lm.config.num_codebooks}"


def test_progress_rises_to_one(model: AudioGen) -> None:
    shares: list[float] = []
    model.generate(TEXTS, [0.1] * 5 + [0.6], progress=shares.append)
    assert shares == sorted(shares) and 0 < shares[0] < 0.1 and shares[-1] == pytest.approx(1.0)


def test_half_precision_generates_and_leaves_text_and_codec_alone(tiny_model: Path) -> None:
    model: Generator = AudioGen.from_pretrained(tiny_model, "cpu", "bfloat16", packed=False)
    assert isinstance(model, AudioGen)
    assert model.lm.heads.weight.dtype == torch.bfloat16
    assert {weight.dtype for part in (model.conditioner, model.codec) for weight in part.parameters()} == {
        torch.float32
    }
    sound = model.generate(["rain"], 0.1, guidance=3.0, seed=0)
    assert sound.dtype == torch.float32 and sound.isfinite().all()


needs_compiler = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_by_native_kernels_a_sound_is_the_same_alone_and_in_a_batch(
    model: AudioGen, tiny_model: Path, dtype: str, guidance: float
) -> None:
    """Bit for bit, though a batch is not filled up; 0.9 s takes windows."""
    fast = AudioGen.from_pretrained(tiny_model, "cpu", dtype)
    assert isinstance(fast.decoder, native.NativeLM) and fast.decoder.dtype == dtype
    durations = [0.2, 0.2, 0.9, 0.2, 0.2, 0.155]
    settings = {"guidance": guidance, "sampling": Sampling(negative="rain" if guidance != 1.0 else None)}
    together = fast.generate(TEXTS, durations, seed=5, **settings)  # type: ignore[arg-type]
    assert together.isfinite().all() and together.any()
    assert torch.equal(fast.generate(TEXTS, durations, seed=5, **settings), together)  # type: ignore[arg-type]
    for row, (text, duration_s) in enumerate(zip(TEXTS, durations, strict=True)):
        alone = fast.generate([text], duration_s, seed=5 + row, **settings)[0]  # type: ignore[arg-type]
        assert torch.equal(together[row, :, : alone.shape[-1]], alone)
    again = AudioGen.from_pretrained(tiny_model, "cpu", dtype)
    assert torch.equal(again.generate(TEXTS[:1], 0.2, seed=5, **settings)[0], together[0, :, :1600])  # type: ignore[arg-type]
    assert fast.num_parameters == model.num_parameters


@needs_compiler
def test_native_kernels_in_float32_give_pytorchs_greedy_codes(model: AudioGen) -> None:
    decoder, text = native.NativeLM(model.lm), model.conditioner(["a dog barks", "rain"])
    prompt = torch.tensor([[[1, 2], [3, 4], [5, 6]]]).repeat(2, 1, 1)
    for guidance in (1.0, 3.0):
        request = TokenRequest(text, [90, 70], [0, 1], guidance, prompt=prompt)
        slow, fast = (
            generate_tokens(chosen, request, TokenSampling(0.0), max_frames=40)
            for chosen in (model.lm, decoder)
        )
        assert torch.equal(slow, fast)


@needs_compiler
def test_int8_is_packed_after_the_adapter_and_saved_whole(
    model: AudioGen, tiny_model: Path, tmp_path: Path
) -> None:
    lm = load_lm(tiny_model).lm
    config = lora.LoraConfig(rank=2)
    lora.add(lm, config)
    for name, tensor in low_rank.adapter_state(lm).items():
        if name.endswith("up"):
            tensor.fill_(0.5)
    lora.save_adapter(tmp_path / "adapter", lm, config, str(tiny_model), {})
    plain = AudioGen.from_pretrained(tiny_model, "cpu", "int8")
    adapted = AudioGen.from_pretrained(tiny_model, "cpu", "int8", adapter=tmp_path / "adapter")
    assert not torch.equal(adapted.generate(["rain"], 0.1), plain.generate(["rain"], 0.1))
    assert plain.identity() != adapted.identity()
    plain.save_pretrained(tmp_path / "saved")
    assert plain.lm.heads.weight.dtype == torch.float32
    saved = AudioGen.from_pretrained(tmp_path / "saved", "cpu", "float32", packed=False)
    assert torch.equal(saved.generate(["rain"], 0.1), model.generate(["rain"], 0.1))


def test_the_weights_are_read_when_they_are_asked_for_and_not_before(
    model: AudioGen, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening packs one weight after the other: the module is never whole in memory."""
    reads: list[str] = []
    read, load = LMParts.read, LMParts.load

    def counted(self: LMParts, name: str) -> Iterator[torch.Tensor]:
        reads.append(name)
        return read(self, name)

    monkeypatch.setattr(LMParts, "read", counted)
    monkeypatch.setattr(LMParts, "load", lambda *_: pytest.fail("loaded whole"))
    fast = AudioGen.from_pretrained(tiny_model, "cpu", "bfloat16")
    assert sorted(reads) == sorted(model.lm.state_dict())
    fast.generate(["rain"], 0.1)
    assert fast.num_parameters == model.num_parameters and fast.latent_rate == model.latent_rate
    monkeypatch.setattr(LMParts, "load", load)
    assert all(
        torch.equal(fast.lm.state_dict()[name], weight) for name, weight in model.lm.state_dict().items()
    )
    assert fast.lm is fast.lm


def test_identity_changes_with_weights_and_number_type(tiny_model: Path, tmp_path: Path) -> None:
    kinds = [("float32", True), ("float32", False), ("bfloat16", True), ("int8", True)]
    each = [AudioGen.from_pretrained(tiny_model, "cpu", dtype, packed=packed) for dtype, packed in kinds]
    assert len({one.identity() for one in each}) == len(kinds)
    assert AudioGen.from_pretrained(tiny_model, "cpu", "int8").identity() == each[-1].identity()
    shutil.copytree(tiny_model, tmp_path / "changed")
    tensors = load_file(tmp_path / "changed" / "model.safetensors")
    tensors["heads.weight"][3, 4] += 1
    save_file(tensors, tmp_path / "changed" / "model.safetensors")
    assert AudioGen.from_pretrained(tmp_path / "changed", "cpu", "int8").identity() != each[-1].identity()


@pytest.fixture(scope="module")
def packed(tiny_model: Path) -> AudioGen:
    """As opened by default in float32: packed, and rows that do not depend on one another where a compiler is."""
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32")


@needs_compiler
@pytest.mark.parametrize("chunk_s", [0.0, 0.03, 0.25])
def test_a_stream_joined_is_the_whole_sound(packed: AudioGen, chunk_s: float) -> None:
    sampling = Sampling(temperature=0.8, top_k=9, negative="rain")
    settings = {"seed": 7, "guidance": 2.0, "sampling": sampling}
    for text, duration_s in (("a dog barks", 0.4), (None, 0.155)):
        whole = packed.generate([text], duration_s, **settings)[0]  # type: ignore[arg-type]
        pieces = list(packed.stream(text, duration_s, chunk_s=chunk_s, **settings))  # type: ignore[arg-type]
        assert all(piece.shape[0] == 1 and piece.shape[1] for piece in pieces)
        assert chunk_s > duration_s / 2 or len(pieces) > 2
        torch.testing.assert_close(torch.cat(pieces, -1), whole, atol=1e-6, rtol=0)


def test_a_stream_goes_on_for_ever_and_starts_at_once(
    model: AudioGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = model.lm.step
    monkeypatch.setattr(
        model.lm, "step", lambda new, cache: (steps.append(new.shape[2]), step(new, cache))[1]
    )
    stream = model.stream("a dog barks", seed=1, chunk_s=0.0)
    first = next(stream)
    # its frame, what the decoder needs beyond it, and the pattern's delays
    assert sum(steps) <= 1 + model.codec.lookahead_frames + 2
    later = [piece for piece, _ in zip(stream, range(130), strict=False)]  # past three windows of 40 frames
    assert all(piece.isfinite().all() for piece in (first, *later))
    assert torch.cat(later[-40:], -1).any()


@needs_compiler
def test_a_stream_continues_a_sound(packed: AudioGen) -> None:
    prompt = torch.randn(2, 1234, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = packed.generate_continuation(prompt, 11025, ["a dog barks"], 0.3, seed=2)[0]
    pieces = packed.stream("a dog barks", 0.3, seed=2, prompt=(prompt, 11025))
    torch.testing.assert_close(torch.cat(list(pieces), -1), whole, atol=1e-6, rtol=0)


def test_what_cannot_be_streamed_is_said_before_the_first_piece(model: AudioGen) -> None:
    for settings, said in (
        ({"text": " "}, "text 0 is empty"),
        ({"text": "a", "duration_s": 0.0}, "duration is 0 s"),
        ({"text": "a", "duration_s": 4000.0}, "duration is 4000 s"),
        ({"text": "a", "chunk_s": -1.0}, "chunk_s is -1.0; it must be from 0"),
        ({"text": "a", "lookahead_s": float("nan")}, "lookahead_s is nan"),
        ({"text": "a", "prompt": (torch.zeros(1, 0), 8000)}, "shape \\[1, 0\\]"),
        (
            {"text": "a", "duration_s": 0.1, "prompt": (torch.zeros(1, 1600), 8000)},
            "the length includes",
        ),
    ):
        with pytest.raises(InputError, match=said):
            model.stream(**settings)  # type: ignore[arg-type]


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_without_a_compiler_pytorchs_packed_products_serve(
    model: AudioGen, tiny_model: Path, capfd: pytest.CaptureFixture[str], dtype: str
) -> None:
    slow = AudioGen.from_pretrained(tiny_model, "cpu", dtype)
    AudioGen.from_pretrained(tiny_model, "cpu", dtype)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "PyTorch's are slower" in said
    assert isinstance(slow.decoder, PackedLM)
    sounds = slow.generate(TEXTS[:2], 0.2, seed=5)
    assert sounds.isfinite().all() and torch.equal(slow.generate([TEXTS[1]], 0.2, seed=6)[0], sounds[1])
    if dtype == "float32":
        assert torch.allclose(sounds, model.generate(TEXTS[:2], 0.2, seed=5), atol=1e-4)


def test_number_types_that_a_device_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="int8 runs on a CPU or CUDA; here the device is mps: choose cpu"):
        decoders.choose_dtype("int8", torch.device("mps"))
    with pytest.raises(InputError, match="int4 runs on a CPU by kernels that a C\\+\\+ compiler builds"):
        decoders.choose_dtype("int4", torch.device("cuda"))
    monkeypatch.setattr(decoders, "library", lambda: None)
    with pytest.raises(InputError, match="int4 runs on a CPU by kernels that a C\\+\\+ compiler builds"):
        decoders.choose_dtype("int4", torch.device("cpu"))
    assert decoders.choose_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert decoders.choose_dtype("auto", torch.device("mps")) == "float32"
    assert decoders.is_packed("bfloat16", torch.device("cuda"))
    assert decoders.is_packed("int8", torch.device("cuda"))
    assert not decoders.is_packed("bfloat16", torch.device("mps"))
    assert not decoders.is_packed("float16", torch.device("cpu"))


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("is_native", [False, True])
def test_auto_is_bfloat16_on_a_cpu_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, has_kernels: bool, is_native: bool
) -> None:
    monkeypatch.setattr(decoders, "has_bfloat16", lambda device: is_native)
    if not has_kernels:
        monkeypatch.setattr(decoders, "library", lambda: None)
    elif decoders.library() is None:
        pytest.skip("no C++ compiler")
    model = AudioGen.from_pretrained(tiny_model, "cpu")
    assert isinstance(model.decoder, native.NativeLM if has_kernels else PackedLM)
    assert model.decoder.dtype == ("bfloat16" if has_kernels or is_native else "float32")


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ("a dog", {}, "one string"),
        ([], {}, "no texts"),
        (["a dog", " "], {}, "text 1 is empty"),
        (["a dog"], {"sampling": Sampling(negative="")}, "negative text is empty"),
        (["a dog"], {"duration_s": 0}, "duration is 0 s; it must be above 0 and at most 3600 s"),
        (["a dog"], {"duration_s": -1.5}, "duration is -1.5 s"),
        (["a dog"], {"duration_s": 1e9}, "duration is 1e\\+09 s"),
        (["a dog"], {"duration_s": float("nan")}, "duration is nan s"),
        (["a dog"], {"duration_s": [0.1, 0.2]}, "2 durations for 1 texts"),
        (["a dog"], {"seed": [1, 2]}, "2 seeds for 1 texts"),
        (["a dog"], {"seed": -1}, "seed is -1"),
        (["a dog"], {"guidance": float("inf")}, "guidance is inf"),
        (["a dog"], {"sampling": Sampling(temperature=-1.0)}, "temperature is -1"),
        (["a dog"], {"sampling": Sampling(top_k=-1)}, "top_k is -1"),
        (["a dog"], {"sampling": Sampling(top_p=1.5)}, "top_p is 1.5"),
        (["a dog"], {"sampling": Sampling(steps=0)}, "steps is not for a token language model; drop steps"),
        (["a dog"], {"edit": Edit(torch.ones(1, 9), 8, 0.5)}, "strength is not for a token language model"),
    ],
)
def test_what_cannot_be_generated_is_said(
    model: AudioGen, texts: list[str], settings: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        model.generate(texts, **settings)


def test_what_cannot_be_continued_is_said(model: AudioGen) -> None:
    with pytest.raises(InputError, match="to continue has 0.2 s .* 0.1 s are too few"):
        model.generate_continuation(torch.zeros(1, 1600), 8000, ["a dog"], 0.1)
    with pytest.raises(InputError, match="2 sounds to continue for 3 texts"):
        model.generate_continuation(torch.zeros(2, 1, 800), 8000, ["a dog"] * 3, 0.5)
    with pytest.raises(InputError, match="not finite"):
        model.generate_continuation(torch.full((1, 800), torch.nan), 8000, ["a dog"], 0.5)
    with pytest.raises(InputError, match="shape \\[1, 0\\]"):
        model.generate_continuation(torch.zeros(1, 0), 8000, ["a dog"], 0.5)


def test_what_cannot_be_opened_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a codec, which audiogen.load_codec opens"):
        generators.load(tiny_model / "codec")
    with pytest.raises(InputError, match="holds a codec"):
        AudioGen.from_pretrained(tiny_model / "codec")
    with pytest.raises(InputError, match="neither a directory nor a bundled model"):
        generators.load("lm_tinny")
    with pytest.raises(InputError, match="device 'gpu' cannot be used"):
        generators.load(tiny_model, device="gpu")
    with pytest.raises(
        InputError, match="dtype is 'int3'; allowed: auto, float32, bfloat16, float16, int8, int4"
    ):
        generators.load(tiny_model, dtype="int3")
    for part in (
        "model.safetensors",
        "config.json",
        "text/vocabulary.model",
        "text/model.safetensors",
        "codec",
    ):
        shutil.copytree(tiny_model, tmp_path / part)
        doomed = tmp_path / part / part
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
        with pytest.raises(InputError):
            generators.load(tmp_path / part)
    config = json.loads((tiny_model / "config.json").read_text())
    config["config"]["lm"]["codebook_size"] = 12
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not fit their config"):
        generators.load(tmp_path / "other")


def test_the_bundled_model_sounds() -> None:
    if "lm_tiny" not in bundled():
        pytest.skip("the bundled weights are not there")
    model = AudioGen.from_pretrained()
    dog, rain = model.generate(["a dog barks", "rain falls"], 2.0)
    assert dog.shape == (1, 2 * model.sample_rate)
    for sound in (dog, rain):
        assert 0.001 < sound.square().mean().sqrt() < 0.7 and sound.abs().max() < 4.0


def test_the_bundled_latent_system_makes_what_the_text_says() -> None:
    if "lafma_tiny" not in bundled() or "tagger_tiny" not in bundled():
        pytest.skip("the bundled weights are not there")
    texts = {"a dog barks": "dog bark", "rain falls": "rain", "a clock ticks": "clock tick"}
    model, tagger = generators.load("lafma_tiny", "cpu"), load_tagger("tagger_tiny").eval()
    sounds = model.generate(list(texts), 5.0, sampling=Sampling(steps=10))
    with torch.no_grad():
        found = tagger(sounds[:, 0]).logits[:, tagger.group("esc10")].argmax(1)
    assert [tagger.config.groups["esc10"][index] for index in found] == list(texts.values())
