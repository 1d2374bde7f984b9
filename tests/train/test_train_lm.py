"""Language model training: its data in three forms, what validation says, and exact resume."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DacConfig, DacModel

from audiogen.codec.__main__ import main as codec_main
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.data.captions import meanings, shuffle_captions
from audiogen.data.shards import ShardReader
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.generators.token import AudioGen
from audiogen.models.build import load_codec, load_lm
from audiogen.models.own import save_codec
from audiogen.text.vocabulary import VOCABULARY_FILE, Vocabulary
from tests import random_t5
from tests.train.conftest import losses, scalars

Train = Callable[..., Path]


def same_state(a: Path, b: Path) -> bool:
    found = checkpoint.latest(a), checkpoint.latest(b)
    assert found[0] and found[1] and found[0][0] == found[1][0]
    files = ("state.json", "state.safetensors")
    return all((found[0][1] / name).read_bytes() == (found[1][1] / name).read_bytes() for name in files)


def test_a_finished_run_is_a_model_complete_in_itself(lm_run: Train, codec_dir: Path) -> None:
    run = lm_run("run")
    loaded = load_lm(run)
    assert (
        load_codec(loaded.codec.location).identity == loaded.codec.identity == load_codec(codec_dir).identity
    )
    assert Path(loaded.codec.location) == run / "codec"
    assert loaded.max_frames == 25
    condition = loaded.conditioner(["a tone", None])
    assert loaded.lm(torch.zeros(2, 3, 4, dtype=torch.long), condition).shape == (2, 3, 4, 8)
    records = scalars(run)
    valid = [record for record in records if "valid/loss" in record]
    assert [record["step"] for record in valid] == [4, 6]
    for kind in ("ce", "ce_shuffled", "ce_none"):
        each = [valid[0][f"valid/{kind}_q{k}"] for k in range(3)]
        assert valid[0][f"valid/{kind}"] == pytest.approx(sum(each) / 3, rel=1e-6)
    assert load_lm(run / "best").info["valid/loss"] == min(record["valid/loss"] for record in valid)


def test_text_is_learned_and_validation_shows_it(lm_run: Train) -> None:
    """Tones and noises share no tokens: a wrong caption must cost, and none a little.

    Without text the first frame still separates the two: one bit in 75 codes, 0.009 nats a code.
    """
    run = lm_run(
        "run", "fit.steps=140", "fit.valid_every=140", "model.dropout=0", "text.dropout=0", "data.mix_probability=0",
        "fit.batch_size=6", "pretokenize_epochs=2", "fit.save_every=0", "fit.log_every=20",
    )  # fmt: skip
    last = [record for record in scalars(run) if "valid/loss" in record][-1]
    assert last["valid/ce"] < last["valid/ce_none"] - 0.004
    assert last["valid/ce"] < last["valid/ce_shuffled"] - 0.05


def kill_at_step(train: Train, settings: tuple[str, ...]) -> None:
    """Train, and be killed while the checkpoint of step 4 is being written."""
    rename = os.replace

    def killer(source: Any, target: Any) -> None:
        if Path(target).name == "step_00000004":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = killer  # type: ignore[assignment]
    train("killed", *settings)


@pytest.mark.parametrize("settings", [(), ("pretokenize_epochs=2",)])
def test_killed_in_the_middle_of_a_save_resumes_bit_for_bit(
    lm_run: Train, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = lm_run("whole", *settings)
    process = get_context("fork").Process(target=kill_at_step, args=(lm_run, settings))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = checkpoint.latest(tmp_path / "killed")
    assert found and found[0] == 2
    killed = lm_run("killed", "resume=must", *settings)
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole)


def test_division_of_a_batch_changes_nothing(lm_run: Train) -> None:
    same = ("model.dropout=0", "text.dropout=0", "fit.steps=3", "fit.valid_every=0")
    whole, parts = lm_run("whole", *same), lm_run("parts", *same, "fit.accumulate=4")
    for a, b in zip(scalars(whole), scalars(parts), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_infilling_is_trained_on_a_share_of_the_clips_and_stated_in_the_model(lm_run: Train) -> None:
    same = ("model.dropout=0", "text.dropout=0", "fit.steps=2", "fit.valid_every=0")
    whole, parts, plain = (
        lm_run("whole", *same, "infill=0.6"),
        lm_run("parts", *same, "infill=0.6", "fit.accumulate=4"),
        lm_run("plain", *same),
    )
    for a, b, c in zip(scalars(whole), scalars(parts), scalars(plain), strict=True):
        assert a == pytest.approx(b, rel=1e-4) and a["train/loss"] != pytest.approx(c["train/loss"], rel=1e-4)
    on = lm_run("on", f"init_from={whole}", "fit.steps=1")
    assert [load_lm(run).lm.config.infills for run in (whole, on, plain)] == [True, True, False]
    with pytest.raises(InputError, match="infill trains all weights.*drop one of the two"):
        lm_run("lora", f"init_from={plain}", "infill=0.5", "lora={}")


@pytest.mark.parametrize("recompute", ["true", "selective"])
def test_gradient_checkpointing_changes_nothing(lm_run: Train, recompute: str) -> None:
    same = ("fit.steps=3", "fit.valid_every=0")
    plain, saving = lm_run("plain", *same), lm_run("saving", *same, f"gradient_checkpointing={recompute}")
    for a, b in zip(scalars(plain), scalars(saving), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_gradient_checkpointing_is_one_of_three(lm_run: Train) -> None:
    with pytest.raises(InputError, match="gradient_checkpointing: got 'some'"):
        lm_run("run", "gradient_checkpointing=some")


def test_a_compiled_model_learns_the_same_and_checkpoints_are_of_either(
    lm_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as one graph, not built, for C++ takes a minute; AUDIOGEN_TEST_COMPILE=1 does that, too."""
    if "AUDIOGEN_TEST_COMPILE" not in os.environ:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    same = (
        "model.dropout=0", "text.dropout=0", "fit.valid_every=0", "model.num_layers=1", "data.mix_probability=0",
        "optim.warmup_steps=9",
    )  # fmt: skip
    eager = lm_run("eager", *same, "fit.steps=3")
    mixed = lm_run("mixed", *same, "fit.steps=1")
    lm_run("mixed", *same, "fit.steps=2", "fit.compile=true", "resume=must")
    assert checkpoint.load_tensors(mixed).keys() == checkpoint.load_tensors(eager).keys()
    lm_run("mixed", *same, "fit.steps=3", "resume=must")
    for a, b in zip(scalars(eager), scalars(mixed), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_bfloat16_trains_on_a_cpu(lm_run: Train, tmp_path: Path) -> None:
    run, reference = lm_run("run", "fit.precision=bfloat16"), lm_run("reference")
    losses = [
        [record["train/loss"] for record in scalars(path) if "train/loss" in record]
        for path in (run, reference)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    with pytest.raises(InputError, match="float16 needs a GPU"):
        lm_run("half", "fit.precision=float16")
    assert not (tmp_path / "half").exists()  # it is refused before codec, tokens or recipe are written


def test_tokens_made_before_training_are_those_of_the_sounds(lm_run: Train, codec_dir: Path) -> None:
    run = lm_run("run", "pretokenize_epochs=2", "data.mix_probability=0", "fit.steps=1", "data.segment_s=1.0")
    codec = load_codec(codec_dir)
    for name in ("pass_000", "pass_001", "valid"):
        reader = ShardReader(run / "tokens" / name)
        assert reader.spec.identity == codec.identity
        for index, clip in enumerate(reader.clips):
            from audiogen import audio

            sound, _ = audio.load(clip.path.rpartition("#")[0], 2000)
            assert torch.equal(reader.codes(index), codec.encode(sound[None])[0])
            assert clip.captions in (("a tone", "a steady tone"), ("rain falls", "it is raining"))


def test_tokens_are_used_again_and_refused_for_other_data(
    lm_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_run("run", "pretokenize_epochs=1", "fit.steps=1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/tokens/pass_000").iterdir()}
    lm_run("run", "pretokenize_epochs=2", "fit.steps=2")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "run/tokens/pass_001").is_dir()
    with pytest.raises(InputError, match=r"tokens made with other settings \(data\); delete it"):
        lm_run("run", "pretokenize_epochs=2", "fit.steps=3", "data.segment_s=0.25")


def test_token_shards_are_trained_on_directly(
    lm_run: Train, manifest: Path, codec_dir: Path, tmp_path: Path
) -> None:
    first = lm_run("first", "pretokenize_epochs=1", "data.mix_probability=0", "fit.steps=1")
    shards = first / "tokens" / "pass_000"
    run = lm_run(
        "run", f"data.train={shards}", f"data.valid={shards}", "data.mix_probability=0", "fit.steps=2"
    )
    assert load_lm(run).max_frames == 25
    with pytest.raises(InputError, match="token shards and sounds"):
        lm_run("both", f"data.train=[{shards},{manifest}]", "data.mix_probability=0")
    other = tmp_path / "other"
    checkpoint.copy_model(codec_dir, other)
    tensors = checkpoint.load_tensors(other)
    tensors["encoder.stack.out.bias"] = tensors["encoder.stack.out.bias"] + 1
    checkpoint.save_model(other, "codec", checkpoint.read_config(other)["config"], tensors)
    with pytest.raises(InputError, match="the token shards are of codec"):
        lm_run(
            "wrong",
            f"data.train={shards}",
            f"data.valid={shards}",
            "data.mix_probability=0",
            f"codec={other}",
        )


def test_tokens_and_models_of_a_codec_go_on_with_more_codebooks(
    lm_run: Train, codec_run: Train, codec_dir: Path, manifest: Path, tmp_path: Path
) -> None:
    more = codec_run("more", f"init_from={codec_dir}", "trains=decoder", "more_codebooks=2", "fit.steps=3")
    first = lm_run("first", "pretokenize_epochs=1", "data.mix_probability=0", "fit.steps=1")
    shards = first / "tokens" / "pass_000"
    same = f"data.train={shards}", f"data.valid={shards}", "data.mix_probability=0", "fit.steps=1"
    assert losses(lm_run("same", *same)) == losses(lm_run("other", *same, f"codec={more}"))
    sound = AudioGen.from_pretrained(first, "cpu", "float32").generate(["rain"], 0.5, seed=0)
    checkpoint.copy_model(more, first / "codec")  # its codec is now the one with more codebooks
    model = AudioGen.from_pretrained(first, "cpu", "float32")
    assert model.codec.num_codebooks == 5 and model.config.num_codebooks == 3
    assert not torch.equal(model.generate(["rain"], 0.5, seed=0), sound)  # another decoder
    lm_run("further", f"init_from={first}", "fit.steps=1")
    tokens, sounds = str(tmp_path / "tokens"), str(tmp_path / "sounds")
    assert codec_main(["encode", str(manifest), "--codec", str(codec_dir), "--out", tokens]) == 0
    assert codec_main(["decode", tokens, "--codec", str(more), "--out", sounds]) == 0


def test_a_run_keeps_the_codec_it_began_with(lm_run: Train, codec_run: Train) -> None:
    lm_run("run", "fit.steps=1")
    other = codec_run("other", "fit.steps=1", "seed=5")
    with pytest.raises(InputError, match="was trained on tokens of another codec"):
        lm_run("run", "fit.steps=2", f"codec={other}")


def test_init_from_takes_architecture_text_encoder_and_weights(lm_run: Train, manifest: Path) -> None:
    base = lm_run("base", "fit.steps=2", "fit.ema_decay=0")
    run = lm_run("run", f"init_from={base}", "fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0")
    for part in (".", "text", "codec"):
        before, after = checkpoint.load_tensors(base / part), checkpoint.load_tensors(run / part)
        assert before.keys() == after.keys()
        assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before), part
    others = manifest.with_name("others.jsonl")
    others.write_text(re.sub(r'"captions": \[[^]]*\]', '"captions": ["a zither"]', manifest.read_text()))
    other = lm_run("more", f"init_from={base}", "fit.steps=1", f"data.train={others}")
    words, more = (Vocabulary((each / "text" / VOCABULARY_FILE).read_bytes()).words for each in (base, other))
    assert more == words | {"zither"}  # those of both, so that neither is warned of
    with pytest.raises(InputError, match=r"model.dim=8: init_from=.* decides the architecture"):
        lm_run("other", f"init_from={base}", "model.dim=8")


def test_a_release_is_trained_on_and_the_run_is_complete(lm_run: Train, shared: Path, tmp_path: Path) -> None:
    release = shared / "fixtures" / "audiogen_tiny"
    text = str(random_t5.write(tmp_path / "t5", 512))
    once = ("fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0", "fit.valid_every=0")
    run = lm_run("run", f"init_from={release}", f"text_encoder={text}", *once)
    before, after = load_lm(release, text_encoder=text), load_lm(run)
    for name, weight in before.lm.state_dict().items():
        torch.testing.assert_close(after.lm.state_dict()[name], weight, atol=1e-9, rtol=0, msg=name)
    with torch.no_grad():
        expected = before.conditioner(["a dog"]).tokens
        torch.testing.assert_close(after.conditioner(["a dog"]).tokens, expected, atol=1e-6, rtol=1e-6)
    assert after.info["generation"] == before.info["generation"] and before.info["generation"]
    assert after.codec.location == str(run / "codec")
    assert after.codec.identity == load_codec(run / "codec").identity == load_codec(release).identity
    assert checkpoint.read_config(run / "codec")["kind"] == "codec"
    again = lm_run("again", f"init_from={run}", *once)  # and is trained on itself
    assert load_lm(again).codec.identity == after.codec.identity


def test_a_release_without_its_text_encoder_says_what_to_give(
    lm_run: Train, shared: Path, tmp_path: Path
) -> None:
    release = shared / "fixtures" / "audiogen_tiny"
    with pytest.raises(
        InputError, match=r"cannot be .*text_encoder= takes the place of the one of init_from"
    ):
        lm_run("run", f"init_from={release}")
    narrow = random_t5.write(tmp_path / "narrow", 24)
    with pytest.raises(InputError, match="24"):
        lm_run("run", f"init_from={release}", f"text_encoder={narrow}")
    with pytest.raises(InputError, match=r"text.encoder=x: init_from=.* decides the architecture"):
        lm_run("run", f"init_from={release}", "text.encoder=x")
    assert not (tmp_path / "run").exists()


def test_tokens_of_a_released_codec_and_of_dac(lm_run: Train, shared: Path, tmp_path: Path) -> None:
    config = DacConfig(
        sampling_rate=2000, encoder_hidden_size=4, downsampling_ratios=[4, 5], decoder_hidden_size=16,
        n_codebooks=3, codebook_size=8, codebook_dim=2, hidden_size=16, hop_length=20,
    )  # fmt: skip
    DacModel(config).save_pretrained(tmp_path / "dac")
    release = shared / "fixtures" / "audiogen_tiny"
    for codec, sizes in ((tmp_path / "dac", (3, 8)), (release, (4, load_codec(release).codebook_size))):
        name = f"run_{codec.name}"
        run = lm_run(
            name, f"codec={codec}", f"model.num_codebooks={sizes[0]}", f"model.codebook_size={sizes[1]}",
            "fit.steps=2", "fit.sample_every=2", "pretokenize_epochs=1", "data.mix_probability=0",
            "data.segment_s=0.3",
        )  # fmt: skip
        found = load_lm(run).codec
        assert found.location == str(run / "codec")
        assert found.identity == load_codec(found.location).identity == load_codec(codec).identity
        assert list((run / "samples" / "step_00000002").iterdir())


def test_two_channels_through_a_mono_codec(lm_run: Train, codec_dir: Path) -> None:
    """The sounds are mono: both channels are the same, and so are the tokens of both."""
    run = lm_run("run", "dual_mono=true", "model.num_codebooks=6", "pretokenize_epochs=1", "fit.steps=2")
    found = load_lm(run).codec
    assert found.dual_mono
    codec = load_codec(found.location, dual_mono=found.dual_mono)
    assert (codec.channels, codec.num_codebooks) == (2, 6)
    assert codec.identity == found.identity == load_codec(codec_dir, dual_mono=True).identity
    codes = ShardReader(run / "tokens" / "valid").codes(0)
    assert torch.equal(codes[0::2], codes[1::2]) and len(codes) == 6


def test_a_codec_of_segments_is_refused(lm_run: Train, tmp_path: Path) -> None:
    seanet = SeanetConfig(ratios=(5, 4), num_filters=4, lstm=0)
    config = CodecConfig(2000, 1, "seanet", seanet, num_codebooks=3, codebook_size=8, segment_s=0.2)
    save_codec(tmp_path / "segments", Codec(config))
    with pytest.raises(InputError, match="in overlapping segments, .* choose a codec without segments"):
        lm_run("run", f"codec={tmp_path / 'segments'}")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_its_codec_is_refused(lm_run: Train) -> None:
    with pytest.raises(InputError, match=r"model has 4 codebooks of 8, but codec .* has 3 of 8"):
        lm_run("run", "model.num_codebooks=4")
    with pytest.raises(InputError, match=r"text.width is 8, but model.dim is 16"):
        lm_run("run", "text.width=8")


def test_fewer_codebooks_than_the_codec_has(lm_run: Train) -> None:
    assert load_lm(lm_run("run", "model.num_codebooks=2", "fit.steps=2")).lm.config.num_codebooks == 2


def test_samples_are_generated_for_validation_captions(lm_run: Train) -> None:
    run = lm_run("run", "fit.steps=1", "fit.sample_every=1", "fit.valid_every=0", "data.segment_s=0.2")
    names = sorted(path.name for path in (run / "samples" / "step_00000001").iterdir())
    assert names and all(name.endswith((".wav", ".png")) for name in names)
    assert any(word in names[0] for word in ("tone", "rain"))


def test_captions_of_one_clip_mean_the_same_and_so_in_chains() -> None:
    same = meanings([("a dog barks", "dog barking"), ("dog barking", "a bark"), ("rain",), ()])
    assert same["a dog barks"] == same["dog barking"] == same["a bark"] != same["rain"]


def test_shuffled_captions_always_mean_something_else() -> None:
    same = meanings([("a", "A"), ("b", "B"), ("c",)])
    captions = ["a", "A", "a", None, "b", "B", "c", "a"]
    shuffled = shuffle_captions(captions, same)
    assert shuffled is not None and shuffled == shuffle_captions(captions, same)
    for caption, other in zip(captions, shuffled, strict=True):
        assert (caption is None and other is None) or (other in captions and same[caption] != same[other])
    assert shuffle_captions(["a", "A", None], same) is None
