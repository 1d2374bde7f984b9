"""AudioGen: text to audio by a language model over a codec's tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.adapters import Adapters, parse
from audiogen.codec.segmented import SegmentedCodec
from audiogen.codec.stream import decode_live, decode_stream, encode_stream
from audiogen.device import DTYPES, choose_device
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.tensors import unfilled
from audiogen.generators import in_order, level, loops
from audiogen.generators import request as requests
from audiogen.generators.given import gaps, given_sound, given_texts, token_draws
from audiogen.generators.live import HISTORY_S, SoundStream, Texts
from audiogen.generators.publish import Published
from audiogen.generators.request import GUIDANCE, LONGEST_LM_S, TOKENS
from audiogen.interfaces import Codec, Condition, Edit, Progress, Sampling, finite
from audiogen.lm import decoders, lora
from audiogen.lm.infill import Gap, fill
from audiogen.lm.model import TokenLM
from audiogen.lm.sample import Callback, Decoder, TokenRequest, TokenSampling
from audiogen.lm.stream import generate_any_length, num_decoded, stream_tokens
from audiogen.models.build import load_codec, read_lm
from audiogen.models.find import LM, Found, bundled, find
from audiogen.models.own import CODEC_FOLDER, save_codec, save_lm
from audiogen.models.parts import CodecReference, LMParts
from audiogen.text.condition import mix, stack
from audiogen.text.t5 import T5Conditioner

ROWS, FILLED_ROWS = 8, 4  # clips at a time; the latter where a CPU always runs so many


class AudioGen(Published):
    """Text to audio: a language model over the tokens of a codec. Implements `interfaces.Generator`.

    A row's audio is a function of its text, duration, seed and the settings: the same alone, in a batch and in any
    order, to the last bit on one machine. PyTorch rounds differently with the number of rows, so the language model
    always runs on `batch_size` rows of one length (the last one repeated to fill up), and a row passes the text encoder
    and the codec by itself. The C++ kernels compute every row by itself, and run without filling up.
    """

    family = TOKENS
    notes: tuple[str, ...] = ()  # files of language models leave no choice

    def __init__(
        self,
        lm: TokenLM | LMParts,
        conditioner: T5Conditioner,
        codec: Codec | SegmentedCodec,
        max_frames: int,
        info: Mapping[str, Any] | None = None,
        decoder: Decoder | None = None,
    ):
        """max_frames: the longest sequence the language model runs on; longer sounds are made by windows in turn.

        info: facts of the model, from its files; `info["generation"]` has guidance and in_order, if any.
        decoder: something with the language model's weights as they are now, which then runs its steps; `lm` may then
        still lie in its files. All models must be in evaluation mode and on one device.
        """
        if isinstance(codec, SegmentedCodec):
            raise InputError(
                f"codec {codec.name!r} codes each segment of a sound by itself, so it cannot be generated through; "
                "such codecs make token files only"
            )
        config = lm.config
        own = (config.codebook_size, config.dim)
        if own != (codec.codebook_size, conditioner.width) or config.num_codebooks > codec.num_codebooks:
            raise InputError(
                f"the language model has {config.num_codebooks} codebooks of {config.codebook_size} codes and width "
                f"{config.dim}, but its codec {codec.num_codebooks} of {codec.codebook_size} and its text encoder "
                f"width {conditioner.width}; the codec may have more codebooks, the rest must be equal"
            )
        self._lm, self.conditioner, self.codec, self.config = lm, conditioner, codec, config
        self.device = next(codec.parameters()).device
        self.decoder: Decoder = decoder or self.lm
        self.max_frames = max_frames
        self.info = dict(info or {})
        self.guidance = float(self.info.get("generation", {}).get("guidance", GUIDANCE))
        self.in_order = bool(self.info.get("generation", {}).get("in_order", False))
        self.sample_rate, self.channels, self.frame_rate = codec.sample_rate, codec.channels, codec.frame_rate
        self.latent_rate = f"{self.frame_rate:g} Hz x {config.num_codebooks}"
        self.max_duration_s = LONGEST_LM_S
        self.batch_size = ROWS if self.decoder.independent_rows or self.device.type != "cpu" else FILLED_ROWS

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path | Found = "lm_tiny",
        device: str = "auto",
        dtype: str = "auto",
        text_encoder: str | None = None,
        adapter: Adapters = None,
        packed: bool | None = None,
    ) -> AudioGen:
        """Open a bundled model, a model directory, or a public release: its directory or "org/name[@revision]".

        name_or_dir: one of those, or what `find` found. device: "cpu", "cuda", "cuda:1", "mps", or "auto": a CUDA GPU
        where there is one, else the CPU. dtype: of the language model, "float32", "bfloat16", "float16", "int8" (CPU or
        CUDA), "int4" (CPU), or "auto", see `decoders.choose_dtype`; the text encoder and the codec stay in float32.
        text_encoder: a T5, directory or hub id, in place of the one that the model names. adapter: what LoRA
        fine-tuning of this model wrote, or several, see `adapters.parse`. packed: weights go from their files into a
        form that decodes several times faster (`lm.decoders`); the PyTorch module, `lm`, is read when it is first
        asked for.
        False runs that instead. None is True on a CPU; on CUDA, where the packed form has been tested without a GPU
        only, it is False but for int8.
        """
        found = find(name_or_dir, LM)
        where = choose_device(device)
        parts = read_lm(found, text_encoder)
        packs = parts.config.backbone is None
        dtype = decoders.choose_dtype(dtype, where, packs)
        if packed and not packs:
            raise InputError(f"{found.name} has a backbone, which runs as it is; drop --cuda-graph")
        if packed is None:
            packed = where.type == "cpu" or dtype == "int8"
        packed = packed and packs and decoders.is_packed(dtype, where)
        conditioner = parts.open_text(where)
        codec = load_codec(parts.codec.location, where, parts.codec.dual_mono)
        # A public release is one with its codec: it has no identity to compare.
        if parts.codec.identity and not codec.is_compatible(parts.codec.identity, parts.config.num_codebooks):
            raise InputError(
                f"{found.name} was trained on the tokens of codec {parts.codec.identity}, but {parts.codec.location} "
                f"is {codec.identity}; put the codec it was trained with there"
            )
        if packed and not adapter:
            decoder = decoders.pack(parts.skeleton(), dtype, where, parts.read)
            return cls(parts, conditioner, codec, parts.max_frames, parts.info, decoder)
        if not packed and dtype not in DTYPES:
            raise InputError(f"dtype {dtype} is for packed weights; choose {', '.join(DTYPES)}")
        lm = parts.load(where, torch.float32 if packed else DTYPES[dtype])
        lora.load_adapters(lm, parse(adapter))
        packed_lm = decoders.pack(lm, dtype, where) if packed else None
        return cls(lm, conditioner, codec, parts.max_frames, parts.info, packed_lm)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a model directory that `from_pretrained` opens, and its card; a codec that is not bundled is in it.

        dtype: of language model and text encoder; the codec's stays float32, so that its tokens mean the same.
        """
        directory = Path(directory)
        location = self.codec.name
        own = checkpoint.identity(self.codec.state_dict())
        codec = load_codec(location) if location in bundled() else None
        # all weights are compared: equal identities would still allow different decoders
        if (
            codec is None
            or isinstance(codec, SegmentedCodec)
            or checkpoint.identity(codec.state_dict()) != own
        ):
            location = str(directory / CODEC_FOLDER)
            save_codec(location, self.codec)
            codec = load_codec(location)
        reference = CodecReference(location, codec.identity)
        save_lm(directory, self.lm, self.conditioner, reference, self.max_frames, self.info, dtype)
        self.write_card(directory, {"codec": codec.name, "text encoder": self.conditioner.config.encoder})

    def save_transformers(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a directory that `transformers` opens, and `from_pretrained` too: see `models.export`.

        Raises InputError where it cannot express the codec, the pattern or the text encoder.
        """
        from audiogen.models import export

        export.save(directory, self.lm, self.conditioner, self.codec, self.max_frames, self.guidance, dtype)

    @property
    def lm(self) -> TokenLM:
        """The language model as a PyTorch module; where a packed copy runs it, its weights are read now, in float32."""
        if isinstance(self._lm, LMParts):
            self._lm = self._lm.load(self.device)
        return self._lm

    def identity(self) -> str:
        """16 hex digits that change with any weight, and with the number type they are rounded to."""
        lm = self._lm
        lm_identity = lm.identity() if isinstance(lm, LMParts) else checkpoint.identity(lm.state_dict())
        others = [checkpoint.identity(part.state_dict()) for part in (self.conditioner, self.codec)]
        parts = [lm_identity, *others, type(self.decoder).__name__, getattr(self.decoder, "dtype", "")]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def num_parameters(self) -> int:
        """Of language model, text encoder and codec."""
        encoder = self.conditioner.text_encoder().stack
        with unfilled():
            lm = TokenLM(self.config)
        modules = (lm, self.conditioner.output_proj, encoder, self.codec)
        return sum(weight.numel() for module in modules for weight in module.parameters()) + sum(
            tensor.numel() for name, tensor in self.codec.state_dict().items() if name.endswith("codewords")
        )

    def steps_at_most(self, steps: int | None) -> None:
        """None: every frame is decoded once, there is no number of steps to choose."""

    def num_evaluations(self, duration_s: float, guidance: float, steps: int | None = None) -> int:
        """Decoding steps for one clip, each counted twice where guidance needs a second row."""
        decoded = num_decoded(self.config, self.num_frames(duration_s), self.max_frames)
        return decoded * (1 if guidance == 1 else 2)

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Audio [B, C, N] at the model's rate and channels through its tokens -> [B, C, N]: its upper bound."""
        sounds = [self._decode(self._encode(sound)[0])[:, : audio.shape[-1]].cpu() for sound in audio]
        return torch.stack(sounds)

    @torch.inference_mode()
    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        edit: Edit | None = None,
        progress: Progress | None = None,
        turned_down_db: list[float] | None = None,
    ) -> Tensor:
        """Texts to audio [B, C, N]: see `interfaces.Generator`. What they mean in audiocraft, options mean here.

        With a prompt, or a sound that `edit` extends, the result begins with its samples at the model's rate; the model
        continues whole frames of it. Parts are made anew by a model that was trained for it (`lm.infill`).
        """
        draws = token_draws(sampling)
        request = requests.check(self, texts, duration_s, seed, guidance, sampling)
        requests.check_loop(sampling, prompt=prompt, edit=edit)
        if edit is not None:
            prompt = requests.given_edit(edit, prompt, request.durations_s, self.config.infills, sampling)
        spans = edit.parts if edit is not None else ()
        if prompt is None and (parts := in_order.split(request.texts, sampling, self.in_order)):
            return in_order.generate(self, parts, request, sampling, guidance, progress, turned_down_db)
        frames, lengths = request.num_frames, request.num_samples
        if sampling.loop:  # the seam is chosen from what is past the end
            frames = [self.num_frames(duration + loops.PAST_S) for duration in request.durations_s]
        kept, given = given_sound(self.codec, prompt, len(texts), self._encode, spans)  # given [B, K, P]
        if prompt is not None and not spans:
            requests.check_prompt(prompt, request.durations_s)
        down_db = [] if turned_down_db is None else turned_down_db
        down_db[:] = [0.0] * len(texts)
        conditions = self._conditions(texts, sampling)
        without = None if sampling.negative is None else self.conditioner([sampling.negative])
        result = torch.zeros(len(texts), self.channels, max(lengths))
        independent = self.decoder.independent_rows
        # independent rows of any length within a window run together, the longest first
        order = sorted(range(len(texts)), key=lambda row: -frames[row] if independent else row)
        sizes = [(n, each.mask.shape[1]) for n, each in zip(frames, conditions, strict=True)]
        sizes = [(max(n, self.max_frames), 0) for n, _ in sizes] if independent else sizes
        at_once = self.batch_size if sampling.schedule is None and not spans else 1
        for rows, callback in requests.alike(order, sizes.__getitem__, at_once, progress):
            filled = rows if independent or at_once == 1 else rows + rows[-1:] * (self.batch_size - len(rows))
            wanted = TokenRequest(
                stack([conditions[row] for row in filled]),
                [frames[row] for row in filled],
                [requests.noise_seed(request.seeds[row], request.texts[row]) for row in filled],
                request.guidance,
                None if without is None else stack([without] * len(filled)),
                None if given is None else given[filled, :, : frames[rows[0]]],
            )
            new = gaps(kept[rows[0]], frames[rows[0]]) if spans and kept else []
            codes = self._codes(wanted, draws, sampling, callback, new)
            for row, row_codes in zip(rows, codes, strict=False):
                own, length = row_codes[:, : frames[row]], lengths[row]
                sound = self._decode(own).cpu()
                if sampling.loop:
                    scored = self.decoder, conditions[row], own, length, self.codec, self.max_frames
                    sound = loops.closed(sound, length, self.sample_rate, loops.by_likelihood(*scored))
                stays = kept[row] if kept else ()
                result[row, :, :length], down_db[row] = level.finish(sound[:, :length], *stays)
        return result

    def generate_continuation(
        self,
        prompt: Tensor,
        prompt_sample_rate: int,
        texts: Sequence[str | None] | None = None,
        duration_s: float | Sequence[float] = 5.0,
        *,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        progress: Progress | None = None,
    ) -> Tensor:
        """`generate` with a prompt, under audiocraft's name; texts None continues every sound without text."""
        if texts is None:
            texts = [None] * (len(prompt) if prompt.dim() == 3 else 1)
        return self.generate(
            texts, duration_s, guidance=guidance, seed=seed, prompt=(prompt, prompt_sample_rate), sampling=sampling,
            progress=progress,
        )  # fmt: skip

    def stream(
        self,
        text: str | None,
        duration_s: float | None = None,
        *,
        guidance: float | None = None,
        seed: int = 0,
        prompt: tuple[Tensor, int] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        turned_down_db: list[float] | None = None,
        chunk_s: float | Sequence[float] = 0.25,
        lookahead_s: float | None = None,
    ) -> SoundStream:
        """Audio [C, n] piece by piece while it is generated, in memory that does not grow.

        Joined, the sound that `generate` makes of the same text and seed, as long as that is within full scale: past
        it the level falls from a peak on (`level.finish_live`). What rounds with the number of rows, PyTorch's own
        products, may differ in the last bits, and so in a code in a million.

        duration_s: None goes on until the caller stops. prompt: audio [C, n] and its sample rate, which comes first.
        chunk_s: of sound at a time, or in the first piece, the second ...; the last holds from there on. Less costs
        more, most for a codec without state. lookahead_s: for such a codec, how far it looks ahead of what is given
        out; None is as far as it can, and less is sooner, with a cross-fade. The others are as in `generate`.
        """
        draws = token_draws(sampling)
        requests.check_loop(sampling, stream=True)
        request = requests.check(
            self, [text], self.max_duration_s if duration_s is None else duration_s, seed, guidance, sampling
        )
        parts = in_order.split(request.texts, sampling, self.in_order)
        if prompt is None and duration_s and parts:
            given = {"guidance": guidance, "seed": seed, "chunk_s": chunk_s, "lookahead_s": lookahead_s}
            sound = in_order.stream(self, parts[0], duration_s, sampling, turned_down_db, given)
            return SoundStream(sound, None)
        kept, codes = given_sound(self.codec, prompt, 1, self._encode)
        pieces_s = chunk_s if isinstance(chunk_s, Sequence) else (chunk_s,)
        requests.check_pieces(chunk_s=pieces_s, lookahead_s=[lookahead_s or 0.0])
        (condition,) = self._conditions(request.texts, sampling)
        num_frames = None if duration_s is None else request.num_frames
        without = None if sampling.negative is None else self.conditioner([sampling.negative])
        seeds = [requests.noise_seed(seed, request.texts[0])]
        wanted = TokenRequest(condition, num_frames, seeds, request.guidance, without, codes)
        changes, history = self._texts(condition, sampling), round(HISTORY_S * self.frame_rate)
        frames = stream_tokens(
            self.decoder, wanted, draws, max_frames=self.max_frames, changes=changes, history=history
        )
        lookahead = None if lookahead_s is None else round(lookahead_s * self.frame_rate)
        sizes = [max(1, round(each * self.frame_rate)) for each in pieces_s]
        decoded = decode_live(self.codec, frames, sizes, lookahead)
        blocks = level.until(decoded, None if duration_s is None else request.num_samples[0])
        live = level.finish_live(blocks, kept[0][0] if kept else None, turned_down_db)
        return SoundStream(live, changes)

    def num_frames(self, duration_s: float) -> int:
        """Frames of tokens for a duration, checked: the last one may reach beyond it."""
        requests.check_duration(duration_s, self.max_duration_s)
        return max(1, math.ceil(round(duration_s * self.frame_rate, 6)))  # 0.14 s at 50 Hz is 7 frames, not 8

    def _conditions(self, texts: Sequence[str | None], sampling: Sampling) -> list[Condition]:
        """Of each text, or between it and the text `to`, one row."""
        given = given_texts(self.conditioner, texts, sampling.peer_padding)
        if sampling.to is None:
            return given
        (other,) = given_texts(self.conditioner, [sampling.to])
        return [mix(condition, other, requests.morph(sampling)) for condition in given]

    def _texts(self, first: Condition, sampling: Sampling) -> Texts:
        """The texts of a sound over time, which begins with that condition."""
        return Texts(
            lambda text: given_texts(self.conditioner, [text])[0], first, self.frame_rate, sampling.crossfade_s,
            sampling.schedule or (),
        )  # fmt: skip

    def _codes(
        self,
        wanted: TokenRequest,
        draws: TokenSampling,
        sampling: Sampling,
        callback: Callback | None,
        parts: list[Gap],
    ) -> Tensor:
        """Codes [B, K, T]; with a schedule, of one row, as a stream makes them. parts: frames to make anew."""
        if parts:
            return fill(self.decoder, wanted, parts, draws, max_frames=self.max_frames, callback=callback)
        changes = None
        if sampling.schedule is not None and wanted.condition is not None:
            changes = self._texts(wanted.condition, sampling)
        return generate_any_length(
            self.decoder, wanted, draws, max_frames=self.max_frames, changes=changes,
            history=round(HISTORY_S * self.frame_rate), callback=callback,
        )  # fmt: skip

    def _encode(self, audio: Tensor) -> Tensor:
        """Audio [C, N] at the codec's rate and channels -> codes [1, K, T]."""
        blocks = [audio[None].to(self.device, torch.float32)]
        return torch.cat(list(encode_stream(self.codec, blocks, self.config.num_codebooks)), -1)

    def _decode(self, codes: Tensor) -> Tensor:
        """Codes [K, T] -> audio [C, T * hop_length]."""
        return finite(torch.cat(list(decode_stream(self.codec, [codes[None]])), -1)[0], "samples")
