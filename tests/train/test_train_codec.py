"""Codec training: what is learned, what is written, and that a stop of any kind changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel

from audiogen.codec.discriminators import DiscriminatorConfig, MultiScaleSTFTDiscriminator
from audiogen.codec.losses import adversarial_discriminator, adversarial_generator, feature_matching
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec
from audiogen.train.adversarial import AdversarialConfig, Adversary
from audiogen.train.codec import CodecTask
from audiogen.train.optim import OptimConfig
from audiogen.train.task import FitConfig
from tests.train.conftest import scalars

Train = Callable[..., Path]


def same_weights(a: Path, b: Path) -> bool:
    first, second = checkpoint.load_tensors(a), checkpoint.load_tensors(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def same_state(a: Path, b: Path) -> bool:
    """Byte for byte: codec, codebooks, optimisers, averages, balancer, discriminator."""
    files = ("state.json", "state.safetensors")
    found = checkpoint.latest(a), checkpoint.latest(b)
    assert found[0] and found[1] and found[0][0] == found[1][0]
    return all((found[0][1] / name).read_bytes() == (found[1][1] / name).read_bytes() for name in files)


def test_a_finished_run_is_a_codec_with_log_and_recipe(codec_run: Train, tmp_path: Path) -> None:
    run = codec_run("run", "fit.sample_every=6")
    codec = load_codec(run)
    audio = torch.randn(2, 1, 333, generator=torch.Generator().manual_seed(0))
    assert codec.encode(audio).shape == (2, 3, 9)
    info = checkpoint.read_config(run, "codec")["info"]
    assert info["step"] == 6 and info["recipe"]["optim"]["lr"] == 1e-3
    records = scalars(run)
    train = [record for record in records if "train/loss" in record]
    valid = [record for record in records if "valid/loss" in record]
    assert [record["step"] for record in train] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in valid] == [4, 6]
    assert {"valid/mel_1", "valid/mel_3", "valid/si_sdr", "valid/use_q2"} <= valid[0].keys()
    assert ["train/adversarial" in record for record in train] == [False, False, True, True, True, True]
    assert ["train/discriminator" in record for record in train] == [False, False, True, False, True, False]
    assert [step for step, _ in checkpoint.step_dirs(run)] == [4, 6]
    best = checkpoint.read_config(run / "best", "codec")["info"]
    assert best["valid/loss"] == min(record["valid/loss"] for record in valid)
    assert json.loads((run / "run.json").read_text())["seed"] == 0
    names = {path.name for path in (run / "samples" / "step_00000006").iterdir()}
    assert {"0_original.wav", "0_coded.wav", "0_coded.png"} <= names


def test_the_saved_model_holds_the_average(codec_run: Train) -> None:
    averaged = codec_run("averaged")
    last = codec_run("last", "fit.ema_decay=0")
    drop = [{k: v for k, v in record.items() if k.startswith("train")} for record in scalars(averaged)]
    assert drop == [{k: v for k, v in record.items() if k.startswith("train")} for record in scalars(last)]
    found = checkpoint.latest(averaged)
    assert found
    state = checkpoint.load_state(found[1])["task"]
    weights, averages = checkpoint.load_tensors(averaged), state["average"]["averages"]
    assert all(torch.equal(weights[name], average) for name, average in averages.items())
    raw = checkpoint.load_tensors(last)
    assert all(torch.equal(raw[name], state["codec"][name]) for name in raw)
    assert not all(torch.equal(raw[name], weights[name]) for name in averages)


def test_resumed_is_unbroken(codec_run: Train) -> None:
    whole = codec_run("whole")
    codec_run(
        "parts", "fit.steps=2", "fit.valid_every=0"
    )  # within warm-up the rate does not depend on fit.steps
    parts = codec_run("parts")
    assert scalars(parts) == scalars(whole)
    assert (
        same_state(parts, whole)
        and same_weights(parts, whole)
        and same_weights(parts / "best", whole / "best")
    )


def kill_in_the_save_of_step_4(train: Train) -> None:
    """Train, and be killed with half of that checkpoint's files written."""
    rename = os.replace
    steps = iter((2, 4))

    def killer(source: Any, target: Any) -> None:
        if Path(target).name == "state.safetensors" and next(steps) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = killer  # type: ignore[assignment]
    train("killed")


def test_killed_in_the_middle_of_a_save_resumes_bit_for_bit(codec_run: Train, tmp_path: Path) -> None:
    whole = codec_run("whole")
    process = get_context("fork").Process(target=kill_in_the_save_of_step_4, args=(codec_run,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = checkpoint.latest(tmp_path / "killed")
    assert found and found[0] == 2
    killed = codec_run("killed", "resume=must")
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole) and same_weights(killed, whole)
    assert not list(killed.rglob(f"{writing.TEMPORARY}*"))


@pytest.mark.parametrize("at", [2, 3])
def test_sigterm_saves_the_step_and_ends_well(
    codec_run: Train, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Also where the step is one to be validated (4): the resumed run makes up for it."""
    whole = codec_run("whole")
    step = CodecTask.step

    def terminated(self: CodecTask, batch: Any, number: int) -> Any:
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(CodecTask, "step", terminated)
    stopped = codec_run("stopped")
    assert [number for number, _ in checkpoint.step_dirs(stopped)] == [2, at + 1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.undo()
    assert scalars(codec_run("stopped")) == scalars(whole)
    assert same_state(stopped, whole) and same_weights(stopped / "best", whole / "best")


def interrupt_all(train: Train) -> None:
    """Train in a process group of its own, with a worker, and press Ctrl-C on all of it in the third step."""
    os.setsid()
    step = CodecTask.step

    def interrupted(self: CodecTask, batch: Any, number: int) -> Any:
        if number == 2:
            os.killpg(0, signal.SIGINT)
            time.sleep(0.5)
        return step(self, batch, number)

    CodecTask.step = interrupted  # type: ignore[method-assign]
    train("stopped", "fit.workers=1")


def test_an_interrupt_of_all_processes_saves_too(codec_run: Train, tmp_path: Path) -> None:
    process = get_context("fork").Process(target=interrupt_all, args=(codec_run,))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = checkpoint.latest(tmp_path / "stopped")
    assert found and found[0] == 3


def test_a_loss_that_is_not_finite_stops_the_run(codec_run: Train, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"unstable at step \d: .* is (nan|inf).*checkpoint of step \d is whole"
    ):
        codec_run("run", "optim.lr=1e30", "optim.warmup_steps=3", "optim.clip_norm=0", "fit.save_every=1")
    for name, tensor in checkpoint.load_tensors(tmp_path / "run").items():
        assert tensor.float().isfinite().all(), name


def test_init_from_takes_architecture_and_weights(codec_run: Train, codec_dir: Path) -> None:
    run = codec_run("run", f"init_from={codec_dir}", "fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0")
    assert checkpoint.read_config(run)["config"] == checkpoint.read_config(codec_dir)["config"]
    before, after = checkpoint.load_tensors(codec_dir), checkpoint.load_tensors(run)
    assert all(torch.allclose(after[name], before[name]) for name in before if "quantizer" not in name)
    with pytest.raises(InputError, match=r"model.latent_dim=5: init_from=.* decides the architecture"):
        codec_run("other", f"init_from={codec_dir}", "model.latent_dim=5")


def test_a_released_codec_is_trained_on(codec_run: Train, shared: Path) -> None:
    release = shared / "fixtures" / "audiogen_tiny"
    run = codec_run("run", f"init_from={release}", "fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0")
    before, after = load_codec(release), load_codec(run)
    assert after.config == before.config  # type: ignore[attr-defined]  # of interfaces.Codec our own alone has one
    for name, tensor in before.state_dict().items():
        if "quantizer" not in name:
            torch.testing.assert_close(after.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_codecs_that_are_not_trained_here_are_refused(codec_run: Train, tmp_path: Path) -> None:
    config = DacConfig(
        sampling_rate=2000, encoder_hidden_size=4, downsampling_ratios=[4, 5], decoder_hidden_size=16,
        n_codebooks=3, codebook_size=8, codebook_dim=2, hidden_size=16, hop_length=20,
    )  # fmt: skip
    DacModel(config).save_pretrained(tmp_path / "dac")
    with pytest.raises(InputError, match="only used here, not trained: DAC"):
        codec_run("run", f"init_from={tmp_path / 'dac'}")
    seanet = SeanetConfig(ratios=(5, 4), num_filters=4, lstm=0)
    for name, more in (("segments", {"segment_s": 0.2}), ("dual", {"dual_mono": True, "channels": 2})):
        settings = {
            "sample_rate": 2000,
            "arch": "seanet",
            "seanet": seanet,
            "latent_dim": 6,
            "num_codebooks": 4,
        }
        save_codec(tmp_path / name, Codec(CodecConfig(**{**settings, **more})))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="only used here, not trained: .* each channel by itself"):
            codec_run("run", f"init_from={tmp_path / name}")
    assert not (tmp_path / "run").exists()


def test_resume_says_what_it_found(
    codec_run: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="resume=must, but .* holds no checkpoint"):
        codec_run("run", "resume=must")
    codec_run("run", "fit.steps=2")
    with pytest.raises(InputError, match=r"resume=never, but .* holds a run \(step 2\)"):
        codec_run("run", "resume=never")
    codec_run("run", "fit.steps=2")
    assert "is finished at step 2" in capsys.readouterr().out
    codec_run("run", "fit.steps=3")
    assert "fit.steps was 2, is now 3" in capsys.readouterr().err


def test_parts_of_a_batch_add_up(codec_run: Train) -> None:
    """Accumulation splits memory, not meaning; codebooks, which learn part by part, are kept out of it."""
    frozen = (
        "trains=decoder",
        "fit.steps=2",
        "adversarial.start=9",
        "codebook_dropout=0",
        "fit.valid_every=0",
    )
    base = codec_run("base", "fit.steps=2", "fit.valid_every=0")
    whole = codec_run("whole", f"init_from={base}", *frozen)
    parts = codec_run("parts", f"init_from={base}", *frozen, "fit.accumulate=2")
    first, second = scalars(whole)[0], scalars(parts)[0]
    assert first["train/mel"] == pytest.approx(second["train/mel"], rel=1e-5)
    assert first["train/waveform_l1"] == pytest.approx(second["train/waveform_l1"], rel=1e-5)


def test_bfloat16_trains_on_a_cpu(codec_run: Train) -> None:
    run = codec_run("run", "fit.precision=bfloat16")
    reference = codec_run("reference")
    losses = [
        [record["train/mel"] for record in scalars(path) if "train/mel" in record]
        for path in (run, reference)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_compiled_codec_learns_the_same(codec_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and run as it stands; the quantiser decides by data, so it is more graphs than one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    same = (
        "fit.steps=2", "fit.valid_every=0", "adversarial.start=0", "model.num_codebooks=1", "codebook_dropout=0",
        "model.kmeans_iterations=1",
    )  # fmt: skip
    eager, compiled = codec_run("eager", *same), codec_run("compiled", *same, "fit.compile=true")
    for a, b in zip(scalars(eager), scalars(compiled), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert checkpoint.load_tensors(eager).keys() == checkpoint.load_tensors(compiled).keys()


def test_seanet_trains_with_weight_norm_and_saves_without(codec_run: Train) -> None:
    run = codec_run(
        "run", "model.arch=seanet", "model.seanet.ratios=[5,4,2]", "model.seanet.num_filters=2", "fit.steps=3",
        "model.seanet.lstm=0", "model.seanet.num_residual_layers=1",
    )  # fmt: skip
    assert not any("parametrizations" in name for name in checkpoint.load_tensors(run))
    assert load_codec(run).hop_length == 40


def test_the_decoder_alone_trains_on_and_the_tokens_keep_their_meaning(codec_run: Train) -> None:
    first = codec_run("first")
    second = codec_run("second", f"init_from={first}", "trains=decoder", "fit.ema_decay=0")
    before, after = checkpoint.load_tensors(first), checkpoint.load_tensors(second)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert load_codec(first).identity == load_codec(second).identity


def test_more_codebooks_refine_and_leave_the_codes_of_those_before(codec_run: Train) -> None:
    first = codec_run("first")
    settings = (f"init_from={first}", "more_codebooks=2", "fit.ema_decay=0", "fit.steps=30")
    before, after = load_codec(first), load_codec(codec_run("second", "trains=decoder", *settings))
    assert (before.num_codebooks, after.num_codebooks) == (3, 5)
    assert isinstance(before, Codec) and isinstance(after, Codec)
    sound = torch.randn(4, 1, 4000, generator=torch.Generator().manual_seed(0)) / 4
    codes = after.encode(sound)
    assert torch.equal(codes[:, :3], before.encode(sound))
    latents = after.encoder(sound)
    errors = [(after.quantizer.decode(codes[:, :k]) - latents).square().mean().item() for k in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[4] < 0.8 * errors[2]
    assert after.identity != before.identity and after.is_compatible(before.identity, 3)
    assert after.is_compatible(before.identity, 2) and not after.is_compatible(before.identity, 4)
    assert not before.is_compatible(after.identity, 3) and not after.is_compatible("0" * 16, 1)
    assert not torch.equal(load_codec(codec_run("third", *settings)).encode(sound)[:, :3], codes[:, :3])
    with pytest.raises(InputError, match="more_codebooks adds to those of init_from, which is not given"):
        codec_run("fourth", "more_codebooks=2")
    for value in ("many", "null", "1.5", "-1"):
        with pytest.raises(InputError, match=r"more_codebooks\b"):
            codec_run("fourth", f"init_from={first}", f"more_codebooks={value}")


def test_spectra_are_learned_without_making_audio(codec_run: Train) -> None:
    run = codec_run(
        "run", "loss.waveform_l1=0", "loss.mel=0", "loss.adversarial=0", "loss.feature_matching=0", "loss.spectral=1",
        "fit.steps=40", "fit.valid_every=40", "optim.lr=1e-2",
    )  # fmt: skip
    train = [record for record in scalars(run) if "train/spectral" in record]
    assert "train/mel" not in train[0]
    assert train[-1]["train/spectral"] < 0.7 * train[0]["train/spectral"]


SPECTRA = (
    "discriminator.sees=spectra", "loss.waveform_l1=0", "loss.mel=0", "loss.spectral=2", "loss.adversarial=1",
    "loss.feature_matching=1", "adversarial.start=0",
)  # fmt: skip


@pytest.mark.parametrize("trains", ["all", "decoder"])
def test_a_discriminator_of_spectra_teaches_without_audio(codec_run: Train, trains: str) -> None:
    first = codec_run("first", "fit.steps=2")
    run = codec_run("run", f"init_from={first}", f"trains={trains}", *SPECTRA)
    train = [record for record in scalars(run) if "train/adversarial" in record]
    assert "train/mel" not in train[0] and "train/discriminator" in train[0]
    shares = [train[0][f"train/share_{name}"] for name in ("spectral", "adversarial", "feature_matching")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], rel=1e-3)
    assert (load_codec(first).identity == load_codec(run).identity) == (trains == "decoder")


def test_a_discriminator_of_spectra_needs_a_codec_of_spectra(codec_run: Train) -> None:
    with pytest.raises(InputError, match=r"discriminator\.sees=spectra is for model\.arch=spectral"):
        codec_run("run", *SPECTRA, "model.arch=seanet")
    with pytest.raises(InputError, match=r"loss\.mel=0"):
        codec_run("run", "discriminator.sees=spectra")


def test_one_pass_of_the_discriminator_serves_both_players() -> None:
    """The oracle is a pass for each: the same gradients for both, to the bit, in half as many."""
    torch.manual_seed(0)
    judge = MultiScaleSTFTDiscriminator(DiscriminatorConfig(n_ffts=(64, 32), num_filters=3, dilations=(1, 2)))
    for module in judge.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda layer, inputs: passes.append(layer))
    passes: list[nn.Module] = []
    adversary = Adversary(judge, AdversarialConfig(), OptimConfig(), FitConfig(steps=10))
    real, source = torch.randn(2, 1, 333), torch.randn(2, 1, 333, requires_grad=True)

    def gradients(losses: dict[str, Tensor], fake: Tensor) -> list[Tensor]:
        found = [torch.autograd.grad(loss, fake, retain_graph=True)[0] for loss in losses.values()]
        found += [p.grad for p in judge.parameters() if p.grad is not None]
        judge.zero_grad()
        assert len(found) == 2 + len(list(judge.parameters())) and source.grad is None
        return found

    fake = 2 * source
    real_logits, _ = judge(real)
    fake_logits, _ = judge(fake.detach())
    adversarial_discriminator(real_logits, fake_logits).backward()
    with torch.no_grad():
        _, real_features = judge(real)
    fake_logits, fake_features = judge(fake)
    apart = {
        "adversarial": adversarial_generator(fake_logits),
        "feature_matching": feature_matching(real_features, fake_features),
    }
    expected, num_passes = gradients(apart, fake), len(passes)

    passes.clear()
    losses, own = adversary.losses(real, fake, 0, scale=1.0)
    assert own.keys() == {"discriminator"}
    ours = gradients(losses, fake)
    assert len(passes) == num_passes // 2 > 0
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)
    assert sum(bool(a.any()) for a in ours) > len(ours) // 2
    adversary = Adversary(judge, AdversarialConfig(start=1, every=2), OptimConfig(), FitConfig(steps=10))
    assert [set(losses) for losses in adversary.losses(real, fake, 0, 1.0)] == [set(), set()]
    assert [set(losses) for losses in adversary.losses(real, fake, 2, 1.0)] == [set(apart), set()]
    assert all(p.grad is None for p in judge.parameters())


def test_the_discriminators_activations_in_place_change_nothing() -> None:
    torch.manual_seed(0)
    judge = MultiScaleSTFTDiscriminator(DiscriminatorConfig(n_ffts=(64,), num_filters=3, dilations=(1,)))
    audio = torch.randn(2, 1, 333, requires_grad=True)
    found = []
    for inplace in (True, False):
        for module in judge.modules():
            if isinstance(module, nn.LeakyReLU):
                assert module.inplace or found  # as it is made
                module.inplace = inplace
        logits, features = judge(audio)
        loss = logits[0].square().mean() + sum(feature.abs().mean() for feature in features[0])
        found.append([*features[0], *torch.autograd.grad(loss, [audio, *judge.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
