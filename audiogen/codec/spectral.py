"""Encoder and decoder at the frame rate: log-magnitude spectra in and out, phase reconstructed.

After Vocos (arXiv:2306.00814): nothing runs at the sample rate but Fourier transforms, so on a CPU it trains and runs
an order of magnitude faster than SEANet. Unlike Vocos no phase is predicted: the bits of a small codec do not determine
it, and a network that learns to invent it loses the harmonics (docs/LOG.md has the figures). The networks model log
magnitudes, with a loss on them, and Griffin-Lim finds a phase.

Centred: it looks ahead by `SpectralConfig.context_frames`. The decoder runs block by block with a state that holds what
later blocks need; the encoder through windows that overlap by that context.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiogen.codec.conv import PastInput, StreamState
from audiogen.config import NotNegative, Positive, check_ranges
from audiogen.errors import InputError
from audiogen.griffin_lim import add_frames, envelope, spectra
from audiogen.packed import Linear

FLOOR = 1e-4  # of a full-scale sine's magnitude (-80 dB): what is below counts as silence
MEAN, STD = -6.0, 2.5  # of log magnitudes over real recordings, about
LOUDEST = 3.0  # e^3 is more than a clip at full scale has in one bin
MOMENTUM = 0.5  # of Griffin-Lim (Perraudin et al. 2013); with more, short clips ring
PHASE_FRAMES = 1024  # first phases repeat after so many frames (20 s at 50 Hz)


@dataclass(frozen=True)
class SpectralConfig:
    """Sizes of the spectral encoder and decoder; the defaults are those of the bundled codec (docs/LOG.md).

    n_fft: a multiple of hop_length. mlp_ratio: widens the two-layer perceptron of each block. phase_iterations: of
    Griffin-Lim, when decoding; each extends the receptive field by n_fft / hop_length - 1 frames. frames_per_latent:
    spectra that share one latent vector: at the same bits a second, more codebooks at a lower rate spend fewer bits on
    what does not change, and a language model has fewer steps to take.
    """

    n_fft: int = 1280
    hop_length: Positive = 320
    width: Positive = 256
    num_encoder_blocks: NotNegative = 6
    num_decoder_blocks: NotNegative = 8
    kernel_size: Positive = 7
    mlp_ratio: Positive = 3
    phase_iterations: NotNegative = 8
    frames_per_latent: Positive = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.n_fft % self.hop_length or self.n_fft // self.hop_length < 2:
            raise InputError(
                f"n_fft is {self.n_fft}; it must be a multiple of hop_length={self.hop_length}, at least double"
            )
        if (self.n_fft - self.hop_length) % 2:
            raise InputError(f"n_fft - hop_length is {self.n_fft - self.hop_length}; it must be even")
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {self.kernel_size}; it must be odd")

    @property
    def num_bins(self) -> int:
        """Bins of a frame's spectrum, F."""
        return self.n_fft // 2 + 1

    @property
    def side(self) -> int:
        """Samples by which a frame's window reaches beyond its hop, on either side."""
        return (self.n_fft - self.hop_length) // 2

    @property
    def context_frames(self) -> int:
        """One-sided receptive field of encoder and decoder in latents, exact."""
        blocks = (self.kernel_size // 2) * max(self.num_encoder_blocks, self.num_decoder_blocks)
        overlap = self.n_fft // self.hop_length - 1
        return -(-(blocks + overlap * (self.phase_iterations + 1)) // self.frames_per_latent)


class ConvNextBlock(nn.Module):
    """Depthwise convolution over frames, then a perceptron per frame, residual: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: SpectralConfig, num_blocks: int) -> None:
        super().__init__()
        width = config.width
        self.depthwise = nn.Conv1d(width, width, config.kernel_size, padding="same", groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = Linear(width, config.mlp_ratio * width)
        self.project = Linear(config.mlp_ratio * width, width)
        # Starts every block near the identity, so that a deep stack trains from the first step (ConvNeXt).
        self.scale = nn.Parameter(torch.full((width,), 1.0 / num_blocks))

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = True) -> Tensor:
        if state is None and self.training:
            # An image of one row, whose channels lie together, goes without transposed copies, and in float32 its
            # gradient is fastest: 2 to 2.5 times as fast. Its sums are rounded otherwise, and codes that were made
            # before must stay: not in inference.
            side, weight = self.depthwise.kernel_size[0] // 2, self.depthwise.weight[:, :, None]
            with torch.autocast(x.device.type, enabled=False):
                image = x.float().transpose(1, 2)[:, :, None]
                y = F.conv2d(image, weight, self.depthwise.bias, padding=(0, side), groups=x.shape[2])
            y = y[:, :, 0].transpose(1, 2)
        elif state is None:
            y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        else:  # [B, t, D] -> the frames that are determined now
            side = self.depthwise.kernel_size[0] // 2
            past = state.get(self)
            before = past.x if isinstance(past, PastInput) else x.new_zeros(len(x), side, x.shape[2])
            x = F.pad(torch.cat([before, x], 1), (0, 0, 0, side if last else 0))
            count = max(0, x.shape[1] - 2 * side)
            state[self] = PastInput(x[:, count:])
            if count == 0:
                return x[:, :0]
            y = F.conv1d(
                x.transpose(1, 2), self.depthwise.weight, self.depthwise.bias, groups=x.shape[2]
            ).transpose(1, 2)
            x = x[:, side : side + count]
        y = self.project(F.gelu(self.expand(self.norm(y))))
        return x + self.scale * y


class Stack(nn.Module):
    """A linear map plus ConvNeXt blocks: [B, T, D_in] -> [B, T, D_out].

    The linear path alone is a principal component analysis: it learns the harmonics within a few hundred steps, and
    the blocks then the rest.
    """

    def __init__(self, in_dim: int, out_dim: int, num_blocks: int, config: SpectralConfig) -> None:
        super().__init__()
        self.linear = Linear(in_dim, out_dim)
        self.embed = Linear(in_dim, config.width)
        self.blocks = nn.ModuleList(ConvNextBlock(config, num_blocks) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.out = Linear(config.width, out_dim)
        self.initialise()

    def initialise(self) -> None:
        """All weights: small in the blocks and where data goes out, unit gain where it comes in."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.trunc_normal_(layer.weight, std=0.02)  # as ConvNeXt and Vocos
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in (self.embed, self.linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # keeps the variance of its input
        if self.linear.out_features > self.linear.in_features:
            # A decoder: neighbouring bins share their energy.
            self.linear.weight.data.mul_(0.3)

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = True) -> Tensor:
        """With `state`, the next block [B, t, D_in] -> the frames that are determined now."""
        y = self.embed(x)
        for block in self.blocks:
            y = block(y, state, last)
        if state is not None:
            past = state.get(self)
            x = torch.cat([past.x, x], 1) if isinstance(past, PastInput) else x
            state[self] = PastInput(x[:, y.shape[1] :])
            x = x[:, : y.shape[1]]
        return (self.linear(x) + self.out(self.norm(y))).float()


class SpectralEncoder(nn.Module):
    """Audio [B, C, N] -> latents [B, latent_dim, T], T = ceil(N / (hop_length * frames_per_latent))."""

    window: Tensor  # no file holds it, so it has values where the weights are made without memory

    def __init__(self, config: SpectralConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft, device="cpu"), persistent=False)
        width = latent_dim // config.frames_per_latent
        self.stack = Stack(channels * config.num_bins, width, config.num_encoder_blocks, config)

    def log_magnitude(self, audio: Tensor) -> Tensor:
        """[B, C, N] -> natural log of the magnitudes [B, C, T, F] in float32; a full-scale sine's bin is near 0.

        T is here, and in the decoder's, the number of spectra: frames_per_latent times that of the latents.
        """
        side, hop = self.config.side, self.config.hop_length
        with torch.autocast(audio.device.type, enabled=False):
            whole = hop * self.config.frames_per_latent
            padded = F.pad(audio.float(), (side, side + -audio.shape[-1] % whole))
            frames = padded.unfold(-1, self.config.n_fft, hop) * self.window  # [B, C, T, n_fft]
            # A sine of amplitude 1 has n_fft / 4 in its bin: half of the window's sum, which is n_fft / 2.
            return torch.log(torch.fft.rfft(frames).abs() * (4.0 / self.config.n_fft) + FLOOR)  # [B, C, T, F]

    def forward(self, audio: Tensor) -> Tensor:
        return self.encode(self.log_magnitude(audio))

    def encode(self, log_magnitude: Tensor) -> Tensor:
        """[B, C, T, F] -> [B, latent_dim, T / frames_per_latent]."""
        x = rearrange(log_magnitude, "b c t f -> b t (c f)")
        x = self.stack(normalised(x))  # [B, T, latent_dim / frames_per_latent]
        return rearrange(x, "b (t r) d -> b (r d) t", r=self.config.frames_per_latent)


class SpectralDecoder(nn.Module):
    """Latents [B, latent_dim, T] -> audio [B, C, T * hop_length * frames_per_latent]."""

    first_rotation: Tensor

    def __init__(self, config: SpectralConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        generator = torch.Generator().manual_seed(0)
        phase = 2 * torch.pi * torch.rand(PHASE_FRAMES, config.num_bins, generator=generator, device="cpu")
        self.register_buffer("first_rotation", torch.polar(torch.ones_like(phase), phase), persistent=False)
        width = latent_dim // config.frames_per_latent
        self.stack = Stack(width, channels * config.num_bins, config.num_decoder_blocks, config)

    def forward(
        self, latents: Tensor, first_frame: int = 0, state: StreamState | None = None, last: bool = True
    ) -> Tensor:
        """With `state`, the next block -> the audio that is determined now; `last`: the sound ends with it."""
        magnitude = self.log_magnitude(latents, state, last)
        return self.synthesise(magnitude, first_frame * self.config.frames_per_latent, state, last)

    def log_magnitude(self, latents: Tensor, state: StreamState | None = None, last: bool = True) -> Tensor:
        """[B, latent_dim, T] -> [B, C, T * frames_per_latent, F], as `SpectralEncoder.log_magnitude`."""
        x = rearrange(latents, "b (r d) t -> b (t r) d", r=self.config.frames_per_latent)
        x = self.stack(x, state, last) * STD + MEAN  # the inverse of `normalised`
        return rearrange(x, "b t (c f) -> b c t f", c=self.channels)

    def synthesise(
        self,
        log_magnitude: Tensor,
        first_frame: int = 0,
        state: StreamState | None = None,
        last: bool = True,
    ) -> Tensor:
        """Log magnitudes [B, C, T, F] -> audio [B, C, T * hop], float32; with `state`, what is determined now.

        Phases start from a fixed table at `first_frame` on, so that a window decoded alone gets the phases it has in
        the whole, and are refined by Griffin-Lim with momentum. They are constants to the gradient, which reaches the
        magnitudes through the last inverse transform.
        """
        with torch.autocast(log_magnitude.device.type, enabled=False):
            magnitude = (torch.exp(log_magnitude.float().clamp(max=LOUDEST)) - FLOOR).clamp(min=0)
            magnitude = magnitude * (self.config.n_fft / 4.0)  # inverse of `SpectralEncoder.log_magnitude`
            past = None if state is None else state.get(self)
            if not isinstance(past, Synthesis):
                past = self._start(magnitude, first_frame)
            rows = torch.arange(past.frame, past.frame + magnitude.shape[2], device=magnitude.device)
            rotation = self.first_rotation[rows % PHASE_FRAMES].expand(magnitude.shape)
            first = past.magnitude.shape[2]  # frame of `magnitude` from which on a pass is to go
            magnitude = _joined(past.magnitude, magnitude, 2)
            passes = []
            with torch.no_grad():
                previous = torch.zeros_like(rotation)
                for each in past.passes:
                    own = magnitude[:, :, first : first + rotation.shape[2]]
                    first -= each.previous.shape[2]
                    rotation, previous, kept = self._refine(rotation, own, previous, each, last)
                    passes.append(kept)
            audio, sums = self._inverse(rotation, magnitude[:, :, : rotation.shape[2]], past.sums, last)
            trim = min(past.trim, audio.shape[-1])
            if state is not None:
                left = magnitude[:, :, rotation.shape[2] :]
                state[self] = Synthesis(left, passes, sums, past.frame + len(rows), past.trim - trim)
            return audio[..., trim : audio.shape[-1] - (self.config.side if last else 0)]

    def _start(self, magnitude: Tensor, first_frame: int) -> "Synthesis":
        """The state before the first block of magnitudes [B, C, t, F]."""
        nothing = magnitude.new_zeros(*magnitude.shape[:2], self.config.n_fft - self.config.hop_length)
        each = Pass(Sums(nothing, 0), nothing[..., :0], magnitude[:, :, :0].to(torch.complex64))
        passes = [each] * self.config.phase_iterations
        return Synthesis(magnitude[:, :, :0], passes, Sums(nothing, 0), first_frame, self.config.side)

    def _refine(
        self, rotation: Tensor, magnitude: Tensor, previous: Tensor, past: "Pass", last: bool
    ) -> tuple[Tensor, Tensor, "Pass"]:
        """A pass of Griffin-Lim over the next spectra [B, C, t, F], and what the pass before computed for them.

        -> of the frames that are determined now the rotations and the spectra of the sound, and the state.
        """
        n_fft, hop = self.config.n_fft, self.config.hop_length
        audio, sums = self._inverse(rotation, magnitude, past.sums, last)
        audio, previous = _joined(past.audio, audio, 2), _joined(past.previous, previous, 2)
        count = max(0, (audio.shape[-1] - n_fft) // hop + 1)
        kept = Pass(sums, audio[..., count * hop :], previous[:, :, count:])
        return *spectra(audio, previous[:, :, :count], n_fft, hop, MOMENTUM), kept

    def _inverse(
        self, rotation: Tensor, magnitude: Tensor, past: "Sums", last: bool
    ) -> tuple[Tensor, "Sums"]:
        """The next spectra [B, C, t, F] to audio by weighted overlap-add: what no later one adds to.

        last: also what reaches beyond the end. -> audio [B, C, n] and the sums before the next block.
        """
        n_fft, hop, count = self.config.n_fft, self.config.hop_length, rotation.shape[2]
        sums = add_frames(rotation, magnitude, past.sums, n_fft, hop)
        before = min(past.frames, n_fft // hop - 1)  # frames that reach into this block
        # The floor acts at both ends alone, where few windows overlap; `synthesise` cuts most of them off.
        weights = envelope(n_fft, hop, before + count, sums.device)[before * hop :].clamp(min=1e-3)
        end = sums.shape[-1] if last else count * hop
        return sums[..., :end] / weights[:end], Sums(sums[..., count * hop :], past.frames + count)


class Sums(NamedTuple):
    """Sums [B, C, n_fft - hop] of windowed frames that the next ones add to, and how many frames there were."""

    sums: Tensor
    frames: int


class Pass(NamedTuple):
    """What a pass of Griffin-Lim keeps of the blocks before.

    audio: [B, C, n] that spectra to come are computed from. previous: [B, C, t, F] of those, by the pass before.
    """

    sums: Sums
    audio: Tensor
    previous: Tensor


class Synthesis(NamedTuple):
    """What `synthesise` keeps of the blocks before.

    magnitude: [B, C, t, F] of frames that some pass has not done. sums: of the last inverse.
    frame: how many came, from the first frame of the table of phases on. trim: samples still to be cut at the start.
    """

    magnitude: Tensor
    passes: list[Pass]
    sums: Sums
    frame: int
    trim: int


def normalised(log_magnitude: Tensor) -> Tensor:
    """To about zero mean and unit variance over real recordings; any shape."""
    return (log_magnitude - MEAN) / STD


def _joined(before: Tensor, x: Tensor, dim: int) -> Tensor:
    """Concatenated, of any shape but for `dim`; not copied where nothing is before."""
    return torch.cat([before, x], dim) if before.shape[dim] else x
