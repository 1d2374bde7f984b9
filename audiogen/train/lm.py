"""Language model training: predict a codec's tokens from text (AudioGen, arXiv:2209.15352)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiogen import distributed
from audiogen import lora as low_rank
from audiogen.codec.segmented import SegmentedCodec
from audiogen.config import NotNegative, Probability, to_plain
from audiogen.data.captions import wordings
from audiogen.data.dataset import Split, open_data
from audiogen.data.encoded import CodeDataset, open_codes
from audiogen.data.seeds import generator_for, seed_for
from audiogen.data.shards import is_shard_directory
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import AudioBatch, CodeBatch, Codec
from audiogen.lm import infill, lora
from audiogen.lm.efficient import Recompute
from audiogen.lm.lora import LoraConfig
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing, token_loss
from audiogen.lm.sample import TokenRequest, generate_tokens
from audiogen.models.backbone import load_backbone, read_sizes
from audiogen.models.build import load_codec, load_lm, read_lm
from audiogen.models.find import CODEC, LM, OWN, bundled, find
from audiogen.models.own import CODEC_FOLDER, save_codec, save_lm
from audiogen.models.parts import CodecReference, PretrainedLM
from audiogen.text.condition import drop
from audiogen.text.t5 import TextConfig
from audiogen.train.cache import pretokenize
from audiogen.train.parallel import NORMS, start_weights
from audiogen.train.task import CaptionedTask, Run, autocast, learn_words, new_text, product_dtype

SAMPLE_GUIDANCE = 3.0  # AudioGen's and MusicGen's default


@dataclass(frozen=True, kw_only=True)
class LMRecipe(Run):
    """A language model training run; `recipes/lm*.yaml` are complete examples.

    codec: whose tokens are learned: a bundled codec, a model directory, a released one (file, directory or hub id).
    dual_mono: a mono codec codes each channel of stereo sound by itself. init_from: anything that `audiogen.generate`
    opens: bundled, a model directory, a released one (directory or hub id); `model`, `text`, `codec` and `dual_mono`
    are then taken from it. text_encoder: T5 directory or hub id in place of the one that init_from names. lora: train
    small matrices beside those of init_from, and save them alone; null trains all. condition_dropout: share of the
    clips trained without their text, for guidance; drawn per clip. infill: share of the clips of which a part is
    predicted after what follows it, see `lm.infill`; above 0 the model can make a part of a sound anew.
    pretokenize_epochs: passes over the data stored as tokens before training, in the run directory; 0 encodes each
    batch as it comes. gradient_checkpointing: recompute layers in the backward pass, for memory; selective: only what
    is cheap, see `lm.efficient.run_layer`. data: sounds, or folders of token shards made by `audiogen.codec encode
    --shards`. model.backbone may name a Qwen3, a directory or hub id: its sizes take the place of those in `model` and
    `text`, and its weights and tokenizer begin the training.
    """

    codec: str
    model: LMConfig
    task: Literal["lm"] = "lm"
    out: str = "runs/lm"
    text_encoder: str | None = None
    lora: LoraConfig | None = None
    dual_mono: bool = False
    text: TextConfig = field(default_factory=TextConfig)
    condition_dropout: Probability = 0.1  # AudioGen's share (arXiv:2209.15352)
    infill: Probability = 0.0
    pretokenize_epochs: NotNegative = 0
    gradient_checkpointing: Recompute = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text.width != self.model.dim:
            raise InputError(
                f"text.width is {self.text.width}, but model.dim is {self.model.dim}: make them equal"
            )
        if self.infill and self.lora:
            raise InputError(
                "infill trains all weights, and lora leaves those of the model as they are; drop one of the two"
            )
        if self.text_encoder and not self.init_from:
            raise InputError(
                "text_encoder replaces that of init_from=, which is not given; a new model has text.encoder"
            )

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        found = read_lm(find(recipe["init_from"], LM), recipe.get("text_encoder"))
        return {
            "model": to_plain(found.config),
            "text": to_plain(found.text),
            "codec": found.codec.location,
            "dual_mono": found.codec.dual_mono,
        }

    @staticmethod
    def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Where model.backbone names a Qwen3: `model` and `text` with its sizes."""
        model, text = recipe.get("model"), recipe.get("text", {})
        if not isinstance(model, Mapping) or not isinstance(text, Mapping):
            return {}  # which `build` refuses
        if not isinstance(name := model.get("backbone"), str):
            return {}
        found = read_sizes(name)
        return {"model": {**model, **found["model"]}, "text": {**text, **found["text"]}}

    def prepare(self, device: torch.device) -> tuple[LMTask, Split[Any]]:
        """See `Run`; the data are sounds, or tokens that were made before or are made now."""
        if self.lora and not self.init_from:
            raise InputError("lora adapts a model that there is: give init_from=, or lora=null for a new one")
        codec = open_codec(self, device)
        shards = [is_shard_directory(source.source) for source in self.data.train + self.data.valid]
        if any(shards) and not all(shards):
            raise InputError("data names token shards and sounds; give only one of the two kinds")
        data: Split[Any] = (
            open_codes(self.data) if any(shards) else open_data(self.data, codec.sample_rate, codec.channels)
        )
        recipe = self.limited(len(data.train))  # before there are several encoded passes over them
        start = open_model(self, codec, device) if self.init_from else None
        reference = keep_codec(self, codec)
        if self.pretokenize_epochs and not any(shards):
            with distributed.first_process_first():
                data = pretokenize(data, self, self.pretokenize_epochs, codec)
        spec = data.train.spec if isinstance(data.train, CodeDataset) else None
        if spec is not None and not codec.is_compatible(spec.identity, spec.num_codebooks):
            raise InputError(
                f"the token shards are of {spec}, but codec={self.codec} is {codec.identity}; encode the "
                "sounds again with it"
            )
        if start is None:
            torch.manual_seed(seed_for(self.seed, "weights"))
            with start_weights(self.fit.shard):
                lm = TokenLM(self.model)
            pretrained = self.model.backbone and self.model.backbone.pretrained
            text = (
                load_backbone(lm, self.text, pretrained)
                if pretrained
                else new_text(self, self.text, data.train)
            )
            start = PretrainedLM(lm, text, reference, 0, {})
        elif self.lora is None:  # adapters are saved without the text encoder
            learn_words(start.conditioner, data.train)
        start = start._replace(codec=reference)
        return LMTask(recipe, codec, start, wordings(data.valid), device), data


def open_codec(recipe: LMRecipe, device: torch.device) -> Codec:
    """The codec whose tokens are learned: bundled, own, released, or DAC."""
    model, codec = recipe.model, load_codec(recipe.codec, device, recipe.dual_mono)
    if isinstance(codec, SegmentedCodec):
        raise InputError(
            f"codec={recipe.codec} codes a sound in overlapping segments, each with a loudness of its own, which "
            "no language model here predicts; choose a codec without segments"
        )
    if model.num_codebooks > codec.num_codebooks or model.codebook_size != codec.codebook_size:
        raise InputError(
            f"model has {model.num_codebooks} codebooks of {model.codebook_size}, but codec {recipe.codec} has "
            f"{codec.num_codebooks} of {codec.codebook_size}: change model.num_codebooks, model.codebook_size"
        )
    return codec


def open_model(recipe: LMRecipe, codec: Codec, device: torch.device) -> PretrainedLM:
    """The model of `init_from`, ready to be trained whole, or with new adapters alone where the recipe has `lora`.

    Beside adapters, matrices are kept in the dtype of the products in the forward pass: the products are the same.
    Norms and embeddings are rounded to it, too, but kept in float32, so that the sum that all layers add to is float32,
    as in a model that is trained whole.
    """
    init_from, adapters = str(recipe.init_from), recipe.lora
    dtype = product_dtype(device, recipe.fit.precision) if adapters else torch.float32
    found = load_lm(init_from, device, dtype, recipe.text_encoder)
    if found.codec.identity and not codec.is_compatible(found.codec.identity, found.lm.config.num_codebooks):
        raise InputError(
            f"{init_from} was trained on the tokens of codec {found.codec.identity}, but "
            f"{found.codec.location} is {codec.identity}; put the codec it was trained with there"
        )
    try:
        found.conditioner.text_encoder()  # opened now, so that nothing is written if it is missing
    except InputError as error:
        raise InputError(f"{error} (text_encoder= takes the place of the one of init_from)") from error
    found.lm.requires_grad_(adapters is None)
    found.conditioner.requires_grad_(adapters is None)
    if adapters:
        for layer in found.lm.modules():
            if isinstance(layer, (nn.Embedding, *NORMS)):
                layer.float()
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        lora.add(found.lm, adapters)
    return found


def keep_codec(recipe: LMRecipe, codec: Codec) -> CodecReference:
    """A bundled codec by its name; of any other a copy in the run directory, which is then complete in itself."""
    reference = CodecReference(recipe.codec, codec.identity, recipe.dual_mono)
    if recipe.lora:  # adapters go with a model that has its codec
        return reference
    source = Path(recipe.codec)
    run = Path(recipe.out)
    target = Path(recipe.out, CODEC_FOLDER)
    if target.exists() and checkpoint.latest(run) and load_codec(target).identity != codec.identity:
        raise InputError(f"{run} was trained on tokens of another codec than {source}; choose another out=")
    if not source.exists() and recipe.codec in bundled():
        return reference
    if distributed.rank() == 0 and source.resolve() != target.resolve():
        found = find(recipe.codec, CODEC)
        if found.layout == OWN and not recipe.dual_mono:
            checkpoint.copy_model(found.path, target)
        else:
            save_codec(target, codec)
    distributed.barrier()
    return replace(reference, location=str(target))


class LMTask(CaptionedTask[LMRecipe]):
    """The token LM with its text encoder; the codec is frozen."""

    def __init__(
        self,
        recipe: LMRecipe,
        codec: Codec,
        start: PretrainedLM,
        valid_captions: Sequence[Sequence[str]],
        device: torch.device,
    ):
        """start: with adapters where the recipe has `lora`; nothing else is then trained."""
        self.codec, self.codec_reference = codec, start.codec
        # The options that a release generates with by default are kept; how it was trained is replaced.
        self.info = {key: value for key, value in start.info.items() if key == "generation"}
        self.sample_rate = codec.sample_rate
        self.max_frames = max(1, round(recipe.data.segment_s * codec.frame_rate))
        self.lm, self.conditioner = start.lm, start.conditioner.to(device)
        if recipe.infill:
            self.lm.config = replace(self.lm.config, infills=True)
        model = nn.ModuleDict({"lm": self.lm})  # what trains; the rest stays in evaluation mode
        if recipe.lora is None:
            model["text"] = self.conditioner
        self.conditioner.eval()
        self.forward = torch.compile(self.lm) if recipe.fit.compile else self.lm
        super().__init__(recipe, model, device, valid_captions, () if recipe.lora else self.lm.layers)

    def step(self, batch: AudioBatch | CodeBatch, step: int) -> dict[str, float]:
        """Teacher forcing on the codes of a batch: `loss` is the mean over codebooks of `ce_qK`, in nats.

        Each codebook is averaged over its codes in the whole batch, that of all parts and processes: how a batch is
        divided changes nothing.
        """
        codes, lengths = self.tokens(batch)
        pattern, positions = None, None
        gaps = self.draw_gaps(batch.keys, lengths, step)
        if any(gaps):
            pattern, positions = infill.arrange_rows(self.lm.config, codes.shape[2], lengths.tolist(), gaps)
            positions = positions[:, :-1].to(self.device)  # [B, S - 1]
        inputs, targets, mask = teacher_forcing(self.lm, codes, lengths, pattern)  # each [B, K, S - 1]
        keep = self.draw_keep(batch.keys, step)  # [B]
        counts = distributed.all_reduce_sum(mask.sum((0, 2)).float()).clamp(min=1)  # [K]
        total = torch.zeros_like(counts)

        def mean_loss(rows: slice) -> Tensor:  # [K]
            condition = drop(self.conditioner(batch.captions[rows]), keep[rows])
            with self.autocast():
                logits = self.forward(
                    inputs[rows], condition, checkpoint_layers=self.recipe.gradient_checkpointing,
                    positions=None if positions is None else positions[rows],
                )  # fmt: skip  # [B, K, S - 1, V]
            return token_loss(logits, targets[rows], mask[rows])[1]

        for rows in self.in_turn(self.parts(batch)):
            mean = self.parallel(partial(mean_loss, rows))  # [K]
            ce = mean * mask[rows].sum((0, 2)) / counts
            loss = ce.mean() * distributed.world()  # gradients are averaged over processes, not summed
            self.optimizer.backward(loss)
            total += ce.detach()
        metrics = self.update(step)
        total = distributed.all_reduce_sum(total)
        loss_value, *each = torch.cat([total.mean()[None], total]).tolist()  # one wait for the device
        return metrics | {"loss": loss_value} | {f"ce_q{k}": value for k, value in enumerate(each)}

    def amounts(self, batch: AudioBatch | CodeBatch) -> dict[str, float]:
        """Seconds of sound; tokens, of which each is a step of the sequence, with all codebooks; 10^12 FLOPs."""
        frames = batch.codes.shape[2] if isinstance(batch, CodeBatch) else self.max_frames
        num_steps = self.recipe.model.pattern_of(frames).num_steps - 1
        flops = training_flops(self.lm, len(batch.keys), num_steps)
        each = {"audio_s": frames / self.codec.frame_rate, "tokens": num_steps}
        return {unit: len(batch.keys) * amount for unit, amount in each.items()} | {"tflop": flops / 1e12}

    def tokens(self, batch: AudioBatch | CodeBatch) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] of the model's codebooks, and how many frames of each row are sound [B]."""
        num_codebooks = self.recipe.model.num_codebooks
        if isinstance(batch, CodeBatch):
            return batch.codes[:, :num_codebooks].to(self.device), batch.lengths
        parts = self.parts(batch)
        codes = [self.codec.encode(batch.audio[rows].to(self.device), num_codebooks) for rows in parts]
        return torch.cat(codes), -(-batch.lengths // self.codec.hop_length)

    def draw_keep(self, keys: Sequence[str], step: int) -> Tensor:
        """Which clips keep their text, bool [B]: a function of (seed, step, clip), not of its neighbours."""
        generators = [generator_for("text", self.recipe.seed, step, key) for key in keys]
        chances = [torch.rand((), generator=generator) for generator in generators]
        return torch.stack(chances) >= self.recipe.condition_dropout

    def draw_gaps(self, keys: Sequence[str], lengths: Tensor, step: int) -> list[infill.Gap | None]:
        """Which clips, of `lengths` [B] frames, have a gap that is predicted last; drawn as `draw_keep`."""
        gaps: list[infill.Gap | None] = []
        for key, length in zip(keys, lengths.tolist(), strict=True):
            generator = generator_for("infill", self.recipe.seed, step, key)
            chosen = float(torch.rand((), generator=generator)) < self.recipe.infill
            gaps.append(infill.draw_gap(length, generator) if chosen else None)
        return gaps

    def evaluate(self, batches: Iterable[AudioBatch | CodeBatch]) -> dict[str, float]:
        """Cross-entropy on unseen clips, per codebook: with the right caption, with that of another clip, with none.

        `ce` is with the right caption, and is `loss`; `ce_shuffled` with the caption of a clip that sounds different;
        `ce_none` without text. The difference is the worth of the text to the model.
        """
        codes, right = [], []
        for batch in batches:
            codes.append(self.tokens(batch))
            right.append(batch.captions)
        metrics: dict[str, float] = {}
        for name, captions in self.captions(right).items():
            ce = self.cross_entropy(codes, captions)
            metrics[f"ce{name}"] = ce.mean().item()
            metrics |= {f"ce{name}_q{k}": value for k, value in enumerate(ce.tolist())}
        return metrics | {"loss": metrics["ce"]}

    def cross_entropy(
        self, batches: Sequence[tuple[Tensor, Tensor]], captions: Sequence[Sequence[str | None]]
    ) -> Tensor:
        """Mean over all codes of the batches' (codes [B, K, T], lengths [B]) with their captions -> [K], in nats."""
        sums = torch.zeros(self.recipe.model.num_codebooks, device=self.device)
        counts = torch.zeros_like(sums)
        for (codes, lengths), texts in zip(batches, captions, strict=True):
            inputs, targets, mask = teacher_forcing(self.lm, codes, lengths)  # each [B, K, S - 1]
            with self.autocast():
                logits = self.lm(inputs, self.conditioner(texts))  # [B, K, S - 1, V]
            _, mean = token_loss(logits, targets, mask)  # [K]
            sums += mean * mask.sum((0, 2))
            counts += mask.sum((0, 2))
        return sums / counts.clamp(min=1)

    def generate(self, captions: list[str]) -> Tensor:
        """Captions -> sounds [B, C, N]."""
        # Adapters stand beside weights in the dtype of the products; a model that is trained whole is float32.
        precision = self.recipe.fit.precision if self.recipe.lora else "float32"
        condition = self.conditioner(captions)
        with autocast(self.device, precision):
            request = TokenRequest(condition, self.max_frames, range(len(captions)), SAMPLE_GUIDANCE)
            codes = generate_tokens(self.lm, request)  # [B, K, T]
        return self.codec.decode(codes)

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write LM, text encoder and codec, or the adapters alone."""
        recipe = self.recipe
        if recipe.lora and recipe.init_from:
            lora.save_adapter(directory, self.lm, recipe.lora, recipe.init_from, info)
        else:
            info = {**self.info, **info}
            save_lm(directory, self.lm, self.conditioner, self.codec_reference, self.max_frames, info)

    def weights(self) -> dict[str, Any]:
        """LM and text encoder, or adapters and the fingerprint of their model."""
        if self.recipe.lora:
            return low_rank.checkpoint_state(self.lm)
        return super().weights()

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Restore what `weights` gave; InputError where the recipe trains the other kind, or another model's."""
        if ("adapters" in state) != (self.recipe.lora is not None):
            kind = "adapters (lora)" if "adapters" in state else "a whole model (lora=null)"
            raise InputError(f"the checkpoint in {self.recipe.out} is of {kind}; choose another out=")
        if not self.recipe.lora:
            super().load_weights(state)
            return
        low_rank.load_checkpoint_state(self.lm, state, self.recipe.out, str(self.recipe.init_from))


def training_flops(lm: TokenLM, num_clips: int, num_steps: int, text_tokens: int = 0) -> float:
    """Of a training step: 6 for each weight and step that it multiplies, 4 where the weight does not learn.

    And 12 D (S^2 / 2 + S L) for each clip and layer of attention (scores and values), D that of its heads. The text
    encoder, and text that comes first in a backbone's sequence, are left out.
    """
    total = 0.0
    for name, weight in lm.named_parameters():
        if weight.ndim == 2 and name != "embedding.weight":
            times = text_tokens if "text_proj" in name else num_steps
            total += (6 if weight.requires_grad else 4) * weight.numel() * num_clips * times
    positions = num_steps * num_steps / 2 + num_steps * text_tokens
    backbone = lm.config.backbone
    width = lm.config.num_heads * backbone.head_dim if backbone else lm.config.dim
    return total + 12 * lm.config.num_layers * width * num_clips * positions
