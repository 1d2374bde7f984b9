"""Tokens of a codec into your own language model: plain PyTorch, and nothing of this package but reading tokens.

    python -m audiogen.codec encode my_sounds/ -o tokens/
    python examples/own_transformer.py tokens/ sample.wav --steps 2000

A token file is read to codes [K, T]. Frame after frame, codebook after codebook, they become one sequence, to which a
transformer is trained to give the next code. Without text it makes more sounds like those it was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from audiogen import audio, load_codec
from audiogen.codec.tokens import read_tokens


class Transformer(nn.Module):
    """Codes [B, S] of K codebooks in turn -> logits [B, S, V] of each next one. Input V, the last, is the start."""

    def __init__(
        self, num_codebooks: int, codebook_size: int, dim: int = 256, layers: int = 6, longest: int = 2048
    ):
        super().__init__()
        self.num_codebooks, self.start = num_codebooks, codebook_size
        self.code = nn.Embedding(num_codebooks * (codebook_size + 1), dim)
        self.place = nn.Embedding(longest, dim)
        layer = nn.TransformerEncoderLayer(
            dim, dim // 64, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, codebook_size)

    def forward(self, codes: Tensor) -> Tensor:
        place = torch.arange(codes.shape[1])
        book = (place - 1) % self.num_codebooks  # place 0 is the start, place 1 the first codebook
        x = self.code(codes + book * (self.start + 1)) + self.place(place)  # [B, S, dim]
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1])
        return self.head(self.layers(x, mask=mask, is_causal=True))

    @torch.inference_mode()
    def sample(self, num_frames: int, top_k: int = 50) -> Tensor:
        """Codes [K, T], drawn one after the other."""
        codes = torch.tensor([[self.start]])
        for _ in range(num_frames * self.num_codebooks):
            values, found = self(codes)[0, -1].topk(min(top_k, self.start))
            codes = torch.cat([codes, found[torch.multinomial(values.softmax(0), 1)][None]], 1)
        return codes[0, 1:].reshape(num_frames, self.num_codebooks).T


def main(argv: Sequence[str] | None = None) -> None:
    """Train on token files, draw one sound, decode it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path, help="folder of .agtok files")
    parser.add_argument("out", type=Path, help="sound file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--frames", type=int, default=50, help="of a training sequence and of the sample; default: 50"
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    clips, names = [], set()
    for path in sorted(args.tokens.rglob("*.agtok")):
        header, segments = read_tokens(path)
        clips.append(torch.cat([segment.codes[0] for segment in segments], 1).T.flatten())  # [T * K]
        names.add((header.codec, header.num_codebooks, header.codebook_size))
    ((codec_name, num_codebooks, codebook_size),) = names  # of one codec and one bitrate
    length = args.frames * num_codebooks
    clips = [clip for clip in clips if len(clip) >= length]

    model = Transformer(num_codebooks, codebook_size, longest=length + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for step in range(args.steps):
        rows = []
        for number in torch.randint(len(clips), (8,)):
            clip = clips[number]
            first = num_codebooks * int(torch.randint((len(clip) - length) // num_codebooks + 1, ()))
            rows.append(torch.cat([torch.tensor([model.start]), clip[first : first + length]]))
        batch = torch.stack(rows)  # [8, 1 + length]
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step}: {loss.item():.3f} nats a code")

    codec = load_codec(codec_name)
    sound = codec.decode(model.eval().sample(args.frames)[None])[0]  # [C, N]
    audio.save(args.out, sound, codec.sample_rate)
    print(args.out)


if __name__ == "__main__":
    main()
