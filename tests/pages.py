"""The pages of the documentation: their code blocks, their links, and in which reduced form each command is tried.

A block in `sh` or `python` is run unless the line before it says `<!-- not run: REASON -->`, where the reason begins
with one of `REASONS`. Blocks in `text` or `json` are output or the contents of a file.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RECORDS = ("CHANGELOG.md", "LOG.md")  # of the past: they have no commands to try, and any length
# Pages whose commands another test runs.
ELSEWHERE = {"serving.md": "tests/serve/test_docs.py", "scaling.md": "tests/codec/test_parts.py"}
# The pages that are run, in an order in which each finds what those before it made.
ORDER = (
    "../README.md quickstart.md generate.md control.md finishing.md provenance.md your-sounds.md adapters.md train.md "
    "stereo.md codec.md diffusion.md "
    "released-models.md evaluate.md results.md performance.md rivals.md faq.md troubleshooting.md extending.md "
    "CONTRIBUTING.md"
).split()
REASONS = (
    "needs a GPU",
    "needs the hub",
    "needs the network",
    "needs a server",
    "needs a certificate",
    "it serves until it is ended",
    "needs ESC-10",
    "needs SLURM",
    "needs Docker",
    "needs Ray",
    "takes hours",
    "runs the test suite",
    "an installation",
    "another program's commands",
)
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """A code block of a page; reason: why it is not run, or None."""

    page: str
    number: int
    language: str
    body: str
    reason: str | None

    def __str__(self) -> str:
        return f"{Path(self.page).name}-{self.number}"


def read(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer(read(page))
    return [Block(page, i, m["language"], m["body"], m["reason"]) for i, m in enumerate(found)]


def commands(block: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments dropped."""
    lines = (line.strip() for line in block.replace("\\\n", " ").splitlines())
    return [
        " ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines if line and not line.startswith("#")
    ]


# ------------------------------------------------------------------------------- commands in a reduced form

SMALL = (
    "fit.steps=1 fit.workers=0 fit.batch_size=2 fit.valid_batches=1 data.segment_s=0.5 pretokenize_epochs=1"
)
LATENT = "fit.steps=1 fit.workers=0 fit.batch_size=1 fit.valid_batches=1 fit.sample_every=0"
PYTHON = shlex.quote(sys.executable)
RELEASED = re.compile(
    r"(?<=[ =])facebook/(?:audiogen|musicgen)-\w+"
)  # a release with random weights stands for it
ENCODER = "release/text_encoder"

_SYNTH = "data.train=synth:4 data.valid=synth:2@100"
_LATENT_SMALL = f"{SMALL.partition(' pretok')[0]} {_SYNTH}"

# What is added to a command by how it begins, the first that fits: later options win.
ADDED = (
    ("python -m audiogen.generate --stream", "--duration 0.3 --overwrite"),
    ("python -m audiogen.generate --fade-out", "--duration 0.8 --overwrite"),
    ("python -m audiogen.generate --schedule", "--duration 5 --overwrite"),
    ("python -m audiogen.generate", "--duration 0.2 --overwrite"),
    ("python -m audiogen.data scan", "--overwrite"),
    ("python -m audiogen.codec encode", ""),
    ("python -m audiogen.codec decode", "--overwrite"),
    ("python -m audiogen.codec info", ""),
    ("python -m audiogen.info", ""),
    ("python -m audiogen.convert", ""),
    ("python -m audiogen.evaluate files", ""),
    ("python -m audiogen.evaluate codec", "--opus 12 --num-clips 2 --num-sounds 1"),
    ("python -m audiogen.evaluate compare", "--seeds 0 --duration 0.2 --num-clips 2 --num-sounds 1"),
    ("python -m audiogen.train --print-config", ""),
    ("python -m audiogen.train recipe=lafma_tiny init_from=", LATENT),
    ("python -m audiogen.train recipe=my_system.yaml", f"{_LATENT_SMALL} max_reconstruction=100"),
    ("OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 python -c", ""),
    ("python -m audiogen.train recipe=latent_lora", f"{LATENT} latent_passes=1 data.segment_s=0.5"),
    ("python -m audiogen.train recipe=lm_lora", f"{SMALL} fit.accumulate=1"),
    ("python -m audiogen.train recipe=lm", SMALL),
    ("python -m audiogen.train recipe=codec_tiny", SMALL.partition(" pretok")[0]),
    ("python -m audiogen.train recipe=codec model.seanet.num_filters=8", SMALL.partition(" pretok")[0]),
)
_BENCH = f"{PYTHON} $ROOT/tools/bench_generate.py --shape tiny --threads 1 --frames 6 --steps 2 --rounds 1"
_DEMO = 'python -m audiogen.generate --text "a dog barks" --text "rain falls"'

# Commands that are tried in a form of their own; "..." stands for the command itself.
COMMANDS = {
    "make demo": f"make --directory $ROOT --dry-run demo | grep --fixed-strings -e {shlex.quote(_DEMO[7:])}",
    "make serve": "make --directory $ROOT --dry-run serve | grep audiogen.serve",
    "pip install .": "test -f $ROOT/pyproject.toml",
    "pip install --constraint constraints-cpu.txt .": "test -f $ROOT/constraints-cpu.txt",
    "python -m audiogen.train recipe=lm": (
        f"... {SMALL} {_SYNTH} model.dim=32 model.num_layers=2 model.num_heads=2 "
        "text.width=32 text.dim=32 text.num_layers=1 text.vocab_size=64"
    ),
    "python -m audiogen.train recipe=lm_tiny": f"... {SMALL} {_SYNTH}",
    "python -m audiogen.train recipe=codec_tiny out=runs/full_codec": f"... {SMALL.partition(' pretok')[0]} {_SYNTH}",
    "python -m audiogen.train recipe=lm_tiny codec=runs/full_codec out=runs/full_lm": f"... {SMALL} {_SYNTH}",
    "python -m audiogen.train recipe=mel_autoencoder_tiny": f"... {_LATENT_SMALL}",
    "python -m audiogen.train recipe=lm_backbone": f"... {SMALL} {_SYNTH}",
    "python -m audiogen.train recipe=codec_stereo": f"... {_LATENT_SMALL}",
    "python -m audiogen.train recipe=lm_stereo": f"... {SMALL} {_SYNTH}",
    "python -m audiogen.train recipe=waveform_autoencoder_stereo": f"... {_LATENT_SMALL}",
    "python -m audiogen.train recipe=stable_audio_stereo": f"... {_LATENT_SMALL} max_reconstruction=100",
    "python -m audiogen.train recipe=stable_audio_3_tiny": f"... {_LATENT_SMALL}",
    # after one step the check would refuse the autoencoder
    "python -m audiogen.train recipe=lafma_tiny": f"... {_LATENT_SMALL} max_reconstruction=100",
    # a player that is closed after half a second
    'python -m audiogen.generate --text "rain falls" --stream --duration inf --out - | aplay': (
        f"( {PYTHON} -m audiogen.generate --text 'rain falls' --stream --duration inf --out - "
        "| head -c 16044 > endless.wav ) || [ $(wc -c < endless.wav) -eq 16044 ]"
    ),
    "python tools/bench_generate.py --shape small": f"{_BENCH} --models packed-float32 packed-int8",
    (
        "python tools/bench_generate.py --shape medium --threads 2 --models transformers-float32 native-bfloat16 "
        "native-int8"
    ): f"{_BENCH} --models transformers-float32 native-bfloat16 native-int8",
    (
        "python -m audiogen.evaluate compare --model lm_tiny --data esc10/manifest.jsonl --where fold=4 "
        "--where license=CC0,CC-BY --reference-where fold=1,2,3 --order-prompts 60"
    ): "... --order-prompts 1 --duration 1.3",
}


def reduced(command: str) -> str:
    """What is run for a command of a page. KeyError for one that no rule is about."""
    if command in COMMANDS:
        return COMMANDS[command].replace("...", command)
    added = next((added for start, added in ADDED if _begins(command, start)), None)
    if added is None:
        raise KeyError(f"a new command: say in tests/pages.py how it is tried: {command}")
    if RELEASED.search(command):
        command = RELEASED.sub("release", command)
        if "audiogen.train" in command:
            added += f" text_encoder={ENCODER}"
        elif "audiogen.evaluate" not in command:
            added += f" --text-encoder {ENCODER}"
    if re.search(r"--model (lafma_tiny|runs/(lafma_tiny|my_flow))", command):
        added += " --steps 2"
    if "--init" in command or "--continue-from" in command or "--prompts" in command:
        added = added.replace("--duration 0.2", "")  # their sounds and tables say how long
    command = command.replace("facebook/encodec_24khz --bandwidth 6", "encodec_directory --bandwidth 0.5")
    return f"{command} {added}"


def _begins(command: str, start: str) -> bool:
    """Whether the command has the words of `start`: the first ones as they are, options anywhere."""
    plain, option, _ = start.partition(" --")
    return command.startswith(plain) and (not option or start[len(plain) + 1 :] in command)


# ------------------------------------------------------------------------------- links

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.M)
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as forges and mkdocs make them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(slug)
    return found


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a page, code left out."""
    plain = re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))
    return [a or b for a, b in LINK.findall(plain)]
