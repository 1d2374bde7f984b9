"""A new latent-diffusion system in one file: its own denoiser and conditioning, the package's process and samplers.

    python examples/new_latent_system.py my_system.wav --steps 3000

What is new: `Denoiser`, a stack of convolutions over time; text and time scale and shift its channels. What is reused:
the autoencoder and the text encoder of lafma_tiny, `Process`, which makes noise and targets, and `sample`, the one loop
for sampling, guidance and editing. To train on your own sounds, change `clips`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import audiogen
from audiogen import audio
from audiogen.data import synth
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.process import Process, ProcessConfig
from audiogen.diffusion.sample import Noise, Sampling, sample

CORPUS = 7  # seed of the built-in corpus


class Denoiser(nn.Module):
    """(x_t [B, D, T, M], t [B], conditioning with a vector [B, E]) -> velocity [B, D, T, M]."""

    def __init__(self, depth: int, bins: int, text_dim: int, width: int = 256, num_blocks: int = 8):
        super().__init__()
        self.first, self.last = nn.Conv1d(depth * bins, width, 1), nn.Conv1d(width, depth * bins, 1)
        self.condition = nn.Sequential(nn.Linear(text_dim + 64, width), nn.SiLU())
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(num_blocks))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(num_blocks))
        # dilations of 1 to 8, twice: each frame depends on a good second around it
        self.mixers = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=2 ** (n % 4), dilation=2 ** (n % 4)) for n in range(num_blocks)
        )
        nn.init.zeros_(self.last.weight)  # the first prediction is zero, not noise of the network's own
        nn.init.zeros_(self.last.bias)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        angles = t[:, None] * torch.exp(torch.linspace(0, 6, 32))  # [B, 32]
        assert conditioning.vector is not None
        c = self.condition(torch.cat([conditioning.vector, angles.sin(), angles.cos()], 1))  # [B, width]
        x = self.first(x_t.transpose(2, 3).flatten(1, 2))  # [B, D * M, T] -> [B, width, T]
        for film, norm, mixer in zip(self.films, self.norms, self.mixers, strict=True):
            scale, shift = film(c)[:, :, None].chunk(2, 1)
            x = x + mixer(nn.functional.silu(norm(x) * (1 + scale) + shift))
        return self.last(x).unflatten(1, (x_t.shape[1], x_t.shape[3])).transpose(2, 3)


def clips(num_clips: int, duration_s: float, sample_rate: int) -> Iterator[tuple[str, Tensor]]:
    """(caption, sound [1, N]): synthesised ones, which need no download."""
    for number in range(num_clips):
        clip = synth.render(CORPUS, number, sample_rate, duration_s)
        yield clip.captions[0], clip.audio


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the clips once, train the denoiser on their latents, make a sound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="sound file")
    parser.add_argument("--text", default="a bell rings")
    parser.add_argument("--steps", type=int, default=3000, help="of training; default: 3000")
    parser.add_argument("--clips", type=int, default=2000, help="of the built-in corpus; default: 2000")
    parser.add_argument("--seconds", type=float, default=2.56)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    base = audiogen.load("lafma_tiny", "cpu").system
    autoencoder, encode_text = base.autoencoder, base.conditioner.text

    def condition(texts: Sequence[str | None]) -> Conditioning:
        """The mean of the text encoder's states [B, E], zeros for no text."""
        with torch.no_grad():
            states = encode_text(texts)  # tokens [B, L, E], mask [B, L]
        mask = states.mask[:, :, None]
        return Conditioning(vector=(states.tokens * mask).sum(1) / mask.sum(1).clamp(min=1))

    captions, sounds = zip(*clips(args.clips, args.seconds, autoencoder.sample_rate), strict=True)
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(sound[None]) for sound in sounds])  # [clips, D, T, M]
    vectors = torch.cat([condition([caption]).vector for caption in captions])  # [clips, E]

    process = Process(ProcessConfig("flow", "velocity", time_sampling="logit_normal", one_is="data"))
    denoiser = Denoiser(latents.shape[1], latents.shape[3], vectors.shape[1])
    optimizer = torch.optim.AdamW(denoiser.parameters(), 5e-4)
    for step in range(args.steps):
        rows = torch.randint(len(latents), (16,))
        keep = (torch.rand(16) > 0.1)[:, None]  # one in ten without its text, for guidance
        clean, t = latents[rows], process.sample_t(16)
        noise = torch.randn_like(clean)
        predicted = denoiser(
            process.noise(clean, noise, t), process.model_time(t), Conditioning(vector=vectors[rows] * keep)
        )
        loss = (predicted - process.target(clean, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step}: {loss.item():.3f}")

    wanted = condition([args.text])
    nothing = Conditioning(vector=torch.zeros_like(wanted.vector))
    way = Sampling("euler", steps=20, guidance=2.5)
    made = sample(
        denoiser.eval(), process, way, wanted, Noise(latents.shape[1:], seeds=[0]), negative=nothing
    )
    sound = audio.below_full_scale(autoencoder.decode(made)[0].detach())  # [C, N]
    audio.save(args.out, sound, autoencoder.sample_rate)
    print(args.out)


if __name__ == "__main__":
    main()
