"""How fast a training step is: ours, and straightforward equivalents from transformers and PyTorch, in one run.

    python tools/bench_train.py
    python tools/bench_train.py --only lm_tiny small --precision bfloat16 --compile

lm_tiny is the recipe's model and batch; small is MusicGen small with 4 of its 24 layers; lm_small and lm_medium are
those recipes' models with as many clips as a GPU holds of both, on request. Ours is a step of `LMTask`;
the other is MusicgenForCausalLM with the same weights, its own loss, torch's gradient clipping and AdamW as they come.
Both see the same codes and the same 16 tokens of text, whose encoder is left out. A token is a step of the sequence.

codec_tiny and codec are those recipes' steps of `CodecTask`, codec with a quarter of its filters. For codec_tiny the
other is the same model in a plain loop. For codec it has the encoder and decoder of EncodecModel; the quantiser, losses
and discriminators, which transformers has not got for training, are ours, with four passes of the discriminators, out
of place, two for each player. Its unit is a second of audio.

The models take turns, round by round; figures are medians over rounds, on one thread of CPU time, so that other work
on the machine counts little. FLOPs of an LM step: 6 for each weight and token
it multiplies, and 6 D (S^2 / 2 + S L) for each clip and layer of attention twice over (scores, values); of a codec step
what torch counts of products and convolutions in ours: Fourier transforms and LSTM cells are left out. Model FLOPs use
is that over the time of a step, over what products of 2048 x 2048 matrices reach in the same rounds and precision.
Memory is the most that a step holds beyond weights and optimiser state. It runs on CUDA as well (--device cuda).
--json adds a line a model to a file.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import EncodecConfig, EncodecModel, MusicgenForCausalLM
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

from audiogen.codec.balancer import Balancer
from audiogen.codec.conv import add_weight_norm
from audiogen.codec.losses import (
    adversarial_discriminator,
    adversarial_generator,
    feature_matching,
    multi_scale_mel,
)
from audiogen.codec.model import Codec, CodecConfig
from audiogen.data.dataset import DataConfig, parse_sources
from audiogen.errors import InputError, run_command
from audiogen.interfaces import AudioBatch, CodeBatch, Condition
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing
from audiogen.models.export import decoder_parts
from audiogen.models.parts import CodecReference, PretrainedLM
from audiogen.text.t5 import TextConfig
from audiogen.train.codec import CodecRecipe, CodecTask, make_discriminator
from audiogen.train.lm import LMRecipe, LMTask, training_flops
from audiogen.train.optim import OptimConfig
from audiogen.train.run import open_recipe
from audiogen.train.task import FitConfig, autocast

TEXT_TOKENS = 16
LMS = {  # the model, clips, frames
    "lm_tiny": (LMConfig(8, 512, 256, num_layers=8, num_heads=4, dropout=0.1), 8, 125),
    "small": (LMConfig(4, 2048, 1024, num_layers=4, num_heads=16), 4, 250),
    "lm_small": (LMConfig(4, 2048, 768, num_layers=12, num_heads=12), 16, 500),
    "lm_medium": (LMConfig(4, 2048, 1536, num_layers=48, num_heads=24), 4, 500),
}
CODECS = {  # changes to the recipe; all with clips of one second
    "codec_tiny": [],
    "codec": ["fit.batch_size=2", "model.seanet.num_filters=16", "discriminator.num_filters=8"],
}


class Candidate(NamedTuple):
    """step(number) trains once and returns the loss."""

    name: str
    step: Callable[[int], float]


class Race(NamedTuple):
    """Candidates that do the same work, `units` of it a step; flops is what the work takes, None to be counted."""

    title: str
    unit: str
    units: float
    precision: str
    candidates: list[Candidate]
    flops: float | None


class FixedText(nn.Module):
    """In place of a text encoder: the same condition, whatever the captions."""

    def __init__(self, condition: Condition):
        super().__init__()
        self.condition = condition

    def forward(self, captions: Sequence[str | None]) -> Condition:
        return self.condition


def lm_race(name: str, precision: str, device: torch.device, compiled: bool) -> Race:
    """LMTask against transformers."""
    config, num_clips, num_frames = LMS[name]
    lm = TokenLM(config)
    tokens = torch.randn(num_clips, TEXT_TOKENS, config.dim, device=device)
    text = Condition(tokens, torch.ones(num_clips, TEXT_TOKENS, dtype=torch.bool, device=device))
    codes = torch.randint(0, config.codebook_size, (num_clips, config.num_codebooks, num_frames))
    theirs = lm_transformers(lm, text, codes, precision, device)  # first, for it copies the weights
    candidates = [theirs]
    for compile_it in (False, True)[: 1 + compiled]:
        candidates.append(lm_ours(lm, text, codes, precision, device, compile_it))
    num_steps = teacher_forcing(lm, codes).inputs.shape[2]
    title = f"{name}, {precision}: {num_clips} clips of {num_steps} steps"
    flops = training_flops(lm, num_clips, num_steps, TEXT_TOKENS)
    return Race(title, "tokens", num_clips * num_steps, precision, candidates, flops)


def lm_ours(
    lm: TokenLM, text: Condition, codes: Tensor, precision: str, device: torch.device, compiled: bool
) -> Candidate:
    """A step of `LMTask` on weights of its own."""
    copy = TokenLM(lm.config)
    copy.load_state_dict(lm.state_dict())
    fit = FitConfig(steps=10**6, batch_size=len(codes), precision=precision, compile=compiled)  # type: ignore[arg-type]
    recipe = LMRecipe(
        codec="", model=lm.config, data=DataConfig(parse_sources("synth:1")), condition_dropout=0.0, fit=fit,
        text=TextConfig(width=lm.config.dim), optim=OptimConfig(warmup_steps=0, schedule="constant"),
    )  # fmt: skip
    start = PretrainedLM(copy, FixedText(text), CodecReference("", ""), codes.shape[2], {})  # type: ignore[arg-type]
    codec: Any = Codec(CodecConfig(arch="spectral"))  # for its rates alone
    task = LMTask(recipe, codec, start, [], device)
    lengths = torch.full((len(codes),), codes.shape[2])
    keys = [str(row) for row in range(len(codes))]
    batch = CodeBatch(lengths, list(keys), keys, codes)
    return Candidate(
        "ours, compiled" if compiled else "ours", lambda number: task.step(batch, number)["loss"]
    )


def lm_transformers(
    lm: TokenLM, text: Condition, codes: Tensor, precision: str, device: torch.device
) -> Candidate:
    """MusicgenForCausalLM trained as its documentation has it."""
    config, tensors = decoder_parts(lm)
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**config))
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unexpected, unexpected
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, targets, _ = teacher_forcing(lm, codes.to(device))
    rows, labels = inputs.flatten(0, 1), targets.transpose(1, 2)  # [B K, S], [B, S, K]
    text_inputs = {"encoder_hidden_states": text.tokens, "encoder_attention_mask": text.mask.long()}

    def step(number: int) -> float:
        with autocast(device, precision):
            loss: Tensor = model(rows, labels=labels, use_cache=False, **text_inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Candidate("transformers", step)


def codec_race(name: str, precision: str, device: torch.device, compiled: bool) -> Race:
    """CodecTask against a plain loop."""
    settings = [*CODECS[name], f"fit.precision={precision}", "fit.ema_decay=0"]
    recipe: CodecRecipe = open_recipe(name, settings)
    num_clips, rate = recipe.fit.batch_size, recipe.model.sample_rate
    audio = 0.1 * torch.randn(num_clips, 1, rate)
    keys = [str(row) for row in range(num_clips)]
    batch = AudioBatch(torch.full((num_clips,), rate), [None] * num_clips, keys, audio)
    candidates = [codec_plain(recipe, audio, device)]
    for compile_it in (False, True)[: 1 + compiled]:
        candidates.append(codec_ours(recipe, batch, device, compile_it))
    return Race(
        f"{name}, {precision}: {num_clips} clips of 1 s", "s audio", num_clips, precision, candidates, None
    )


def codec_ours(recipe: CodecRecipe, batch: AudioBatch, device: torch.device, compiled: bool) -> Candidate:
    """A step of `CodecTask`."""
    task = CodecTask(replace(recipe, fit=replace(recipe.fit, compile=compiled)), device)
    return Candidate(
        "ours, compiled" if compiled else "ours", lambda number: task.step(batch, number)["loss"]
    )


def encodec_parts(recipe: CodecRecipe) -> tuple[nn.Module, nn.Module]:
    """The encoder and decoder of transformers' EncodecModel in a recipe's shape."""
    shape = recipe.model.seanet
    config = EncodecConfig(
        sampling_rate=recipe.model.sample_rate, audio_channels=1, normalize=False, use_causal_conv=shape.causal,
        num_filters=shape.num_filters, num_residual_layers=shape.num_residual_layers, compress=shape.compress,
        upsampling_ratios=list(shape.ratios), hidden_size=recipe.model.latent_dim, num_lstm_layers=shape.lstm,
        kernel_size=shape.kernel_size, residual_kernel_size=shape.residual_kernel_size, codebook_size=2,
        last_kernel_size=shape.last_kernel_size, dilation_growth_rate=shape.dilation_base, target_bandwidths=[1.0],
        use_conv_shortcut=not shape.true_skip, pad_mode=shape.pad_mode, norm_type="weight_norm",
    )  # fmt: skip
    model = EncodecModel(config)
    return model.encoder, model.decoder


def codec_plain(recipe: CodecRecipe, audio: Tensor, device: torch.device) -> Candidate:
    """A codec step as one writes it first: see above."""
    real, loss_weights = audio.to(device), recipe.loss
    codec = Codec(recipe.model)
    if recipe.model.arch == "seanet":
        codec.encoder, codec.decoder = encodec_parts(recipe)
        assert sum(p.numel() for p in codec.parameters()) == num_trained(recipe)
    codec.to(device).train()
    optim = recipe.optim
    optimizer = torch.optim.AdamW(codec.parameters(), optim.lr, optim.betas, weight_decay=optim.weight_decay)
    weights = {
        "waveform_l1": loss_weights.waveform_l1, "mel": loss_weights.mel, "adversarial": loss_weights.adversarial,
        "feature_matching": loss_weights.feature_matching,
    }  # fmt: skip
    balancer = Balancer(weights) if any(weights.values()) else None
    judge = make_discriminator(recipe).to(device)
    for module in judge.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False
    judge_optimizer = torch.optim.AdamW(judge.parameters(), optim.lr, optim.betas, weight_decay=0.0)
    kind, rate = recipe.adversarial.kind, recipe.model.sample_rate
    num_codebooks = torch.full((len(real),), recipe.model.num_codebooks, device=device)

    def step(number: int) -> float:
        with autocast(device, recipe.fit.precision):
            output = codec(real, num_codebooks, reconstruct=balancer is not None)
        apart = (
            loss_weights.commitment * output.commitment_loss + loss_weights.spectral * output.spectral_loss
        )
        total = apart
        if balancer is None:
            apart.backward()
        else:
            fake = output.audio.float()
            with autocast(device, recipe.fit.precision):
                real_logits, _ = judge(real)
                fake_logits, _ = judge(fake.detach())
            adversarial_discriminator(real_logits, fake_logits, kind).backward()
            with autocast(device, recipe.fit.precision):
                _, real_features = judge(real)
                fake_logits, fake_features = judge(fake)
            losses = {
                "waveform_l1": (fake - real).abs().mean(),
                "mel": multi_scale_mel(fake, real, rate, loss_weights.mel_windows),
                "adversarial": adversarial_generator(fake_logits, kind),
                "feature_matching": feature_matching(real_features, fake_features),
            }
            balancer.backward(losses, fake, apart=apart)
            judge_optimizer.step()
            judge_optimizer.zero_grad()
            total = apart + sum(weights[name] * loss for name, loss in losses.items())
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(codec.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return Candidate("transformers" if recipe.model.arch == "seanet" else "plain loop", step)


def num_trained(recipe: CodecRecipe) -> int:
    """Weights of our codec as it trains."""
    codec = Codec(recipe.model)
    add_weight_norm(codec)
    return sum(p.numel() for p in codec.parameters())


def product_rate(precision: str, device: torch.device, size: int = 2048) -> float:
    """FLOPs per second of matrix products, of two the better."""
    dtype = torch.get_autocast_dtype(device.type) if precision != "float32" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return (
        2 * size**3 / min(seconds(lambda number: (a @ b)[0, 0].item(), number, device) for number in range(3))
    )


def seconds(step: Callable[[int], float], number: int, device: torch.device) -> float:
    """Of a step; on one thread of a CPU those that it had the core."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def peak_bytes(step: Callable[[int], float], device: torch.device) -> int:
    """The most bytes that a step holds beyond what it began with."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(0)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(0)
    events = found.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def run(race: Race, device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Warm up, measure in turns, print a table and return it."""
    print(f"\n{race.title}", flush=True)
    losses = {each.name: [each.step(number) for number in range(2)][0] for each in race.candidates}
    flops = race.flops
    if flops is None:
        with FlopCounterMode(display=False) as counter:
            race.candidates[1].step(2)
        flops = float(counter.get_total_flops())
    peaks = {each.name: peak_bytes(each.step, device) for each in race.candidates}
    times: dict[str, list[float]] = {each.name: [] for each in race.candidates}
    rates = []
    for number in range(rounds):
        rates.append(product_rate(race.precision, device))
        for each in race.candidates:
            times[each.name].append(seconds(each.step, number, device))
    rate = max(rates)
    print(f"{flops / 1e9:.1f} GFLOP a step; products of matrices reach {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':16} s/step {race.unit + '/s':>10}  times  use of FLOPs  memory MB  first loss")
    first, found = statistics.median(times[race.candidates[0].name]), []
    for each in race.candidates:
        median = statistics.median(times[each.name])
        print(
            f"{each.name:15} {median:7.3f} {race.units / median:10.1f} {first / median:6.2f} "
            f"{flops / median / rate:13.0%} {peaks[each.name] / 1e6:10.0f} {losses[each.name]:11.4f}",
            flush=True,
        )
        figures: dict[str, object] = {f"{race.unit}/s": race.units / median, "times": first / median}
        figures |= {"FLOPs use": flops / median / rate, "MB": peaks[each.name] / 1e6}
        found.append({"what": race.title, "model": each.name} | figures)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[*LMS, *CODECS], nargs="+", default=["lm_tiny", "small", *CODECS])
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), nargs="+", default=["float32", "bfloat16"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="ours compiled, too (takes a minute each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to add lines of JSON to")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        raise InputError("--rounds and --threads are at least 1")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{args.threads} thread{'s'[: args.threads > 1]}, {args.rounds} rounds")
    for name in args.only:
        for precision in args.precision:
            torch.manual_seed(args.seed)
            make = lm_race if name in LMS else codec_race
            found = run(make(name, precision, device, args.compile), device, args.rounds)
            if args.json:
                with open(args.json, "a") as file:
                    for each in found:
                        file.write(json.dumps({"bench": "training"} | each) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
