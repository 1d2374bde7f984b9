"""The small causal transformer that predicts the codes of `.ecdc` files (EnCodec arXiv:2210.13438, 3.3).

Its weights are the files `encodec_lm_24khz-*.th` and `encodec_lm_48khz-*.th`. An entropy-coded file decodes only
if every probability is what it was for the encoder, to about the last bit. So the operations, their order and
the layout in memory are those of the `encodec` package wherever another choice would round differently; nothing
here may be fused, batched over frames or cast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen.errors import InputError
from audiogen.files import pickles

NUM_HEADS = 8  # the one size that the tensors do not tell
CONTEXT_S = 3.5  # what attention reaches back
MAX_PERIOD = 10000.0


@dataclass
class LMState:
    """What the model remembers between frames: the inputs of each layer's attention [1, t, D], and the position."""

    position: int = 0
    inputs: list[Tensor] = field(default_factory=list)


class Layer(nn.Module):
    """Attention over what came before, then a feed-forward network; each is added, then normalised."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, NUM_HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """One frame [1, 1, D] and the inputs before it [1, t, D] -> [1, 1, D]."""
        keys = torch.cat([past, x], 1)
        # A mask that hides nothing still decides which attention kernel runs, and so the last bit.
        mask = torch.zeros(1, keys.shape[1], dtype=torch.bool, device=x.device)
        attended, _ = self.self_attn(x, keys, keys, attn_mask=mask, need_weights=False)
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class Transformer(nn.Module):
    """The layers; before them the input is normalised and its position added."""

    def __init__(self, dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(Layer(dim, hidden_dim) for _ in range(num_layers))


class EcdcLM(nn.Module):
    """Codes so far -> distributions of the next frame's codes, all codebooks at once.

    context_frames: how many frames attention reaches back.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        hidden_dim: int,
        num_layers: int,
        context_frames: int,
    ) -> None:
        super().__init__()
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.context_frames = context_frames
        self.transformer = Transformer(dim, hidden_dim, num_layers)
        self.emb = nn.ModuleList(nn.Embedding(codebook_size + 1, dim) for _ in range(num_codebooks))
        self.linears = nn.ModuleList(nn.Linear(dim, codebook_size) for _ in range(num_codebooks))

    @torch.no_grad()
    def step(self, codes: Tensor, state: LMState) -> Tensor:
        """One frame of codes [K, 1] (-1 before the first frame) -> probabilities [K, V] of the next one.

        K may be less than the model has. `state` is moved on in place.
        """
        rows = codes[:, None] + 1  # [K, 1, 1]; row 0 of each embedding stands for no code
        embedded = [embedding(row) for embedding, row in zip(self.emb, rows, strict=False)]  # K of [1, 1, D]
        x = self.transformer.norm_in(
            reduce(torch.add, embedded)
        )  # one after another: a stacked sum rounds otherwise
        if not state.inputs:  # attention also sees one frame of zeros before the first one
            state.inputs = [torch.zeros_like(x) for _ in self.transformer.layers]
        x = x + _position(state.position, x.shape[-1], x.device)
        for index, layer in enumerate(self.transformer.layers):
            past = state.inputs[index]
            state.inputs[index] = torch.cat([past, x], 1)[:, -self.context_frames :]
            x = layer(x, past)
        state.position += 1
        logits = torch.stack([linear(x) for linear, _ in zip(self.linears, codes, strict=False)], 1)
        # Softmax over an axis that is not the last adds in another order than over the last.
        probabilities = logits.permute(0, 3, 1, 2).softmax(1)  # [1, V, K, 1]
        return probabilities[0, :, :, 0].T


def _position(position: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids [1, 1, D] of one position: cosines, then sines."""
    index = torch.arange(dim // 2, device=device).view(1, 1, -1)
    phase = torch.tensor(position, device=device).view(1, 1, 1) / MAX_PERIOD ** (index / (dim // 2 - 1))
    return torch.cat([phase.cos(), phase.sin()], -1)


def load_lm(path: str | Path, frame_rate: float) -> EcdcLM:
    """Read the weights of a language model for codes at `frame_rate` Hz; its sizes are those of the tensors.

    Raises InputError where the file is missing or damaged, or does not hold such a model.
    """
    tensors = pickles.read_state(path)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > Path(path).stat().st_size:  # views that repeat their elements
        raise InputError(f"{path} claims tensors of {num_bytes} bytes, more than it has; download it again")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    try:
        rows, dim = tensors["emb.0.weight"].shape
        hidden_dim = tensors["transformer.layers.0.linear1.weight"].shape[0]
    except (
        AttributeError,
        IndexError,
        KeyError,
        ValueError,
    ) as error:  # no dict, no tensor, missing, other axes
        raise InputError(
            f"{path} is not a language model for .ecdc files ({error}); give encodec_lm_24khz-*.th or "
            "encodec_lm_48khz-*.th"
        ) from None
    if dim % NUM_HEADS or not dim or rows < 2:
        raise InputError(
            f"{path}: emb.0.weight is {[rows, dim]}; two rows or more of a multiple of {NUM_HEADS} columns are allowed"
        )
    counts = [
        len([name for name in tensors if name.startswith(start) and name.endswith(end)])
        for start, end in (("emb.", ".weight"), ("transformer.layers.", ".linear1.weight"))
    ]
    with torch.device("meta"):  # nothing is allocated for sizes that the file does not fill
        lm = EcdcLM(counts[0], rows - 1, dim, hidden_dim, counts[1], int(CONTEXT_S * frame_rate))
    wrong = [
        name
        for name, tensor in lm.state_dict().items()
        if name not in tensors or tensors[name].shape != tensor.shape
    ]
    extra = sorted(set(tensors) - set(lm.state_dict()))
    if wrong or extra:
        raise InputError(
            f"{path} is not a language model for .ecdc files: {(wrong + extra)[0]} is missing, extra or of another "
            "size; download it again"
        )
    lm.load_state_dict(tensors, assign=True)
    return lm.eval().requires_grad_(False)


def find_lm(folder: str | Path, model: str) -> Path | None:
    """The language model's file for "encodec_24khz" or "encodec_48khz" in a folder; None where there is none."""
    found = sorted(Path(folder).glob(f"{model.replace('encodec_', 'encodec_lm_')}-*.th"))
    return found[0] if found else None
