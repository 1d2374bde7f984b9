"""The options of `audiogen.generate`: what may be typed, and which options are for which family of models."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from audiogen import command
from audiogen.adapters import parse, stated
from audiogen.data.prompts import Kind
from audiogen.errors import InputError
from audiogen.finish import Finish
from audiogen.generators.request import FAMILIES, LATENT_ONLY, LM_ONLY, refuse
from audiogen.provenance import NOT_OPTIONS
from audiogen.text.schedule import read_schedule

FORMATS = ("wav", "flac", "ogg", "mp3")
MAX_THREADS = 1024
FINISH = tuple(field.name for field in fields(Finish))
SAMPLING = ("temperature", "top_k", "top_p", "steps", "sampler", "guidance_rescale", "candidates", "in_order")
DURATION_S = 5.0

# By groups: each option with the name of its value, its type (bool: a switch, list: may be repeated, a tuple: the
# choices), and what it is.
OPTIONS: dict[str, dict[str, tuple[Kind, str]]] = {
    "what": {
        "--text": (list, "a prompt; repeat the option for several"),
        "--prompts FILE": (
            Path,
            "file of prompts: .txt (one a line), .csv, .tsv or .jsonl (fields text and, if wanted, duration, seed, "
            "guidance, negative, model, name, of the sound's file, and other options of sampling, loudness and shape)",
        ),
        "--negative TEXT": (str, "what the sounds should not be like"),
        "--continue-from FILE": (
            Path,
            "sound to continue, by each prompt or without any; --duration counts it in",
        ),
        "--duration S": (
            float,
            "seconds a sound (default: 5, or that of --init); with --stream also inf, until Ctrl-C",
        ),
        "--schedule TEXTS": (
            str,
            "texts by time, such as '0:rain; 8:thunder; 15:rain, birds' (default of --duration: 5 s after the last)",
        ),
        "--crossfade S": (float, "seconds in which a text of --schedule passes into the next (default: 0.5)"),
        "--to TEXT": (str, "make a sound between the prompt and this text"),
        "--morph SHARE": (float, "how far the sound is from the prompt to --to, 0 to 1 (default: 0.5)"),
        "--loop": (bool, "the end of each sound continues into its beginning"),
        "--num-samples N": (int, "sounds a prompt (default: 1)"),
    },
    "a sound made of another (language models: --extend, and --inpaint where trained for it)": {
        "--init FILE": (
            Path,
            "sound to begin from; with a longer --duration and nothing else it is extended to that",
        ),
        "--strength S": (
            float,
            "of the change: 0 returns the sound, 1 leaves nothing of it; 0.6 gives its course another sound",
        ),
        "--inpaint A:B": (
            list,
            "make --init anew from second A to second B, and keep the rest; repeat the option for several parts",
        ),
        "--inpaint-resample N": (
            int,
            "make each step N times on what is new, which fits it better to what is kept (RePaint; default: 1)",
        ),
        "--extend S": (float, "make S seconds more after --init, which is kept"),
        "--extend-before S": (float, "make S seconds before --init, which is kept"),
        "--upsample": (
            bool,
            "make the highest frequencies of --init anew and keep the rest, with systems over mel spectrograms",
        ),
    },
    "how": {
        "--model": (
            str,
            "a bundled model's name, a model directory, or a public release by its directory or hub id[@revision], "
            "such as facebook/audiogen-medium; audiogen models lists those here (default: lafma_tiny, which sounds "
            "best; lm_tiny for options of language models, and for more than 5 s)",
        ),
        "--text-encoder T5": (
            str,
            "directory or hub id of the T5 (for AudioLDM: CLAP) to use in place of the one that the model names",
        ),
        "--adapter DIR[:W]": (
            list,
            "what LoRA fine-tuning of the model wrote, laid on top of it with the weight W (default: 1); repeat the "
            "option to add several",
        ),
        "--seed": (int, "sample j of a prompt has seed + j (default: 0)"),
        "--guidance": (float, "weight of the text; 1 is none (default: the model's own)"),
        "--in-order": (
            ("yes", "no"),
            "whether the parts of a text such as 'a bell, then a siren' are made one after another, each with as much "
            "of the time (default: yes for the bundled models, no for released ones)",
        ),
        "--device": (str, "auto (a CUDA GPU if there is one), cpu, cuda, cuda:N, mps (default: auto)"),
        "--dtype": (
            ("auto", "float32", "bfloat16", "float16", "int8", "int4"),
            "that the model computes in; auto is bfloat16 on CUDA, on a CPU bfloat16 for a language model where there "
            "is a C++ compiler or the processor has it, and else float32. int8 is for language models and, on a CPU "
            "with VNNI, latent diffusion, which it makes twice as fast as float32. int4 is for language models on a "
            "CPU; those run several times faster in bfloat16, int8 or int4, by kernels that the compiler builds at "
            "first use",
        ),
        "--threads N": (int, "that compute on the CPU (default: PyTorch's choice)"),
    },
    "language models only": {
        "--peer-padding": (
            bool,
            "attend to each text's padding to the longest one, as audiocraft does in batches: a sound then depends "
            "on the other prompts (default: it does not)",
        ),
        "--temperature": (float, "0 is greedy (default: 1)"),
        "--top-k": (int, "draw from the k likeliest; 0 is all (default: 250)"),
        "--top-p": (float, "above 0: draw from the likeliest of this sum, not from the top k"),
        "--cuda-graph": (
            bool,
            "on CUDA, compile the decoding step as a whole and replay it as a CUDA graph (always so for int8)",
        ),
    },
    "latent diffusion only": {
        "--steps N": (int, "of the sampler (default: the model's own, or the authors', 8 to 200)"),
        "--sampler NAME": (
            str,
            "ddim, ddpm, dpm++, dpm++sde; flows: euler, heun, ping_pong (default: the model's own, or the authors')",
        ),
        "--guidance-rescale SHARE": (
            float,
            "of the change of level by guidance to undo, 0 to 1 (default: the model's own, 0 for released ones)",
        ),
        "--candidates N": (
            int,
            "make N sounds for each and keep the one that CLAP finds nearest to its text (default: 1)",
        ),
        "--clap CLAP": (
            str,
            "directory or hub id of the CLAP model that ranks candidates (default: the system's own)",
        ),
        "--heads N,..": (
            str,
            "attention heads of each level of the UNet in place of those that the files say: converted AudioLDMs say "
            "8, and their authors' have 4,8,12,20 (what was used is printed)",
        ),
    },
    "loudness and shape, of whole sounds": {
        "--loudness LUFS": (float, "bring each sound to this loudness (ITU-R BS.1770), such as -23 or -14"),
        "--peak DB": (float, "limit true peaks to this, in dB of full scale (default: -1 with --loudness)"),
        "--fade-in S": (float, "seconds in which the sound rises"),
        "--fade-out S": (float, "seconds in which it falls"),
        "--trim-silence": (bool, "drop what is 50 dB below the loudest part at both ends"),
        "--stereo-width W": (
            float,
            "make a mono sound stereo, 0 to 1; the mean of both sides stays the mono sound",
        ),
        "--sample-rate HZ": (int, "resample the sound, such as 48000 (default: the model's rate)"),
    },
    "where the sounds come from": {
        "--no-prompt-metadata": (
            bool,
            "leave text, seed and settings out of the files' metadata; that they are generated, and by what, stays",
        ),
        "--watermark": (
            bool,
            "add AudioSeal's inaudible watermark, whose 16 bits are of the model's hash (extra watermark; its weights "
            "come from the hub)",
        ),
        "--c2pa DIR": (
            Path,
            "sign each file (wav, flac, mp3) with a C2PA manifest, by certificate.pem and key.pem of this folder "
            "(extra c2pa)",
        ),
        "--sidecar": (bool, "also write NAME.json beside each sound, with what its metadata say"),
    },
    "result": {
        "--format": (FORMATS, "of the sound files (default: that of --out, or wav)"),
        "--out PATH": (
            Path,
            "a file for one sound, or a folder (default: generated); with --stream also -, a WAV file to a player: "
            "... --stream --duration inf --out - | aplay",
        ),
        "--overwrite": (bool, "replace sounds and pictures that exist"),
        "--report": (bool, "also write report.html: all sounds of the command with players and settings"),
        "--stream": (bool, "one sound, written piece by piece while it is generated, without a picture"),
    },
}
COMMON = (
    "--text --prompts --duration --num-samples --model --seed --guidance --out --stream --overwrite".split()
)
EXAMPLES = (
    '--text "a dog barks" --text "rain falls" --num-samples 2',
    '--text "a rooster crows" --out rooster.wav',
    '--text "rain falls" --stream --duration inf --out - | aplay',
)
# What makes no other sound, or is a job's own: it is no setting in the metadata of a sound.
_OF_JOBS = (
    "text",
    "duration",
    "num_samples",
    "seed",
    "model",
    "negative",
    "guidance",
    "device",
    "dtype",
    "threads",
)
NOT_SETTINGS = {*NOT_OPTIONS, "no_prompt_metadata", *_OF_JOBS}
# What a row of --prompts may have of its own, beside the fields of `data.prompts.Prompt`.
ROW_OPTIONS: dict[str, Kind] = {
    name.partition(" ")[0].lstrip("-").replace("-", "_"): kind
    for options in OPTIONS.values()
    for name, (kind, _) in options.items()
    if name.partition(" ")[0].lstrip("-").replace("-", "_") in (*SAMPLING, *FINISH)
}
CHANGES = ("strength", "inpaint", "inpaint_resample", "extend", "extend_before", "upsample")  # of --init
DEFAULTS = {"text": [], "num_samples": 1, "seed": 0, "device": "auto", "dtype": "auto"}
TRAINED_S = 5.12  # the sounds that lafma_tiny was trained on; lm_tiny makes longer ones window by window


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "generate", "Generate sounds from text: for each a sound file and a picture of its spectrogram (PNG)."
    )
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option, (kind, about) in options.items():
            name, _, value = option.partition(" ")
            if kind is bool:
                group.add_argument(name, action="store_true", help=about)
            elif kind is list:
                group.add_argument(name, action="append", metavar=value or None, help=about)
            elif isinstance(kind, tuple):
                group.add_argument(name, choices=kind, help=about)
            else:
                group.add_argument(name, type=kind, metavar=value or None, help=about)
    command.add_output(group)  # the last one, "result"
    parser.set_defaults(**DEFAULTS, out=Path("generated"))
    command.add_help(parser, COMMON, EXAMPLES)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked as far as that needs no model; --inpaint and --heads as numbers.

    `typed` has the options that shape a sound as they were given.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    args.typed = {
        name: value
        for name, value in vars(args).items()
        if name not in NOT_SETTINGS and value is not None and value is not False
    }
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise InputError(f"--threads is {args.threads}; it must be from 1 to {MAX_THREADS}")
    args.command = shlex.join([*parser.prog.split(), *(sys.argv[1:] if argv is None else argv)])
    if args.c2pa is not None and str(args.out) == "-":
        raise InputError("--c2pa signs files, and --out - writes none; drop one of the two")
    if args.report and str(args.out) == "-":
        raise InputError("--report shows sound files, and --out - writes none; drop one of the two")
    if args.json and str(args.out) == "-":
        raise InputError(
            "--json prints to standard output, where --out - writes the sound; drop one of the two"
        )
    changes = {f"--{name.replace('_', '-')}": getattr(args, name) for name in CHANGES}
    given = [name for name, value in changes.items() if value is not None and value is not False]
    if args.watermark and args.stream:
        raise InputError(
            "--watermark is for whole sounds, and --stream writes one piece by piece; drop one of the two"
        )
    if given and args.init is None:
        raise InputError(f"{given[0]} says what becomes of a sound; give it with --init FILE")
    if args.init is not None and not given and args.duration is None:
        raise InputError(
            "--init needs --strength, --inpaint, --extend, --extend-before, --upsample or a longer --duration: what "
            "is to become of the sound"
        )
    if args.init is not None and args.stream:
        raise InputError("--init is not for --stream; give --continue-from in its place")
    _read_control(args)
    args.model = args.model or _bundled_model(args)
    args.inpaint = None if args.inpaint is None else tuple(map(_read_span, args.inpaint))
    args.heads = _read_heads(args.heads)
    return args


def _bundled_model(args: argparse.Namespace) -> str:
    """That of the first adapter, or the one that does what is asked and sounds best (docs/results.md)."""
    if args.adapter and (base := stated(parse(args.adapter)[0].path)[1]):
        return base
    # lafma_tiny was distilled to need no guidance, from which a negative text would act
    options = [getattr(args, name) for name in (*LM_ONLY, "negative")]
    of_lm = any(value is not None and value is not False for value in options) or args.dtype in (
        "int8",
        "int4",
    )
    return "lm_tiny" if of_lm or (args.duration or 0) > TRAINED_S else "lafma_tiny"


def finish_of(options: Mapping[str, Any]) -> Finish:
    """Loudness and shape among the options, by their names."""
    return Finish(**{name: options[name] for name in FINISH})


def refuse_others(args: argparse.Namespace, latent: bool, has: Collection[str] = ()) -> None:
    """Raise InputError where an option is given that the model's family does not have. has: what this one has of it."""
    options = {
        f"--{name.replace('_', '-')}": getattr(args, name)
        for name in (LM_ONLY if latent else LATENT_ONLY)
        if name not in has
    }
    refuse(options, f"{args.model}, {FAMILIES[latent]}")


def _read_control(args: argparse.Namespace) -> None:
    """--schedule as texts by time; what it begins with is the prompt."""
    args.crossfade_s = args.crossfade
    if args.morph is not None and args.to is None:
        raise InputError("--morph is between the prompt and a text; give that as --to TEXT")
    if args.loop and (args.stream or args.init is not None or args.continue_from is not None):
        raise InputError("--loop is for a new sound made whole; drop --stream, --init and --continue-from")
    if args.schedule is None:
        return
    entries = read_schedule(args.schedule)
    if entries[0][0] == 0:
        if args.text or args.prompts is not None:
            raise InputError(
                "--schedule has a text at 0 s, and so have --text and --prompts; give one of them"
            )
        args.text, entries = [entries[0][1]], entries[1:]
        args.typed["schedule"] = "; ".join(f"{start_s!r}:{text}" for start_s, text in entries)
        if not entries:
            raise InputError('--schedule has one text; give a second, such as "0:rain; 8:thunder", or --text')
    args.schedule = entries
    if args.duration is None:
        args.duration = entries[-1][0] + DURATION_S


def _read_span(text: str) -> tuple[float, float]:
    """A:B, in seconds."""
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise InputError(f"--inpaint is {text!r}; give A:B in seconds, such as 1.0:2.5") from None


def _read_heads(text: str | None) -> tuple[int, ...] | None:
    """N,N,.. as numbers."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--heads is {text!r}; give whole numbers, one a level, such as 4,8,12,20") from None
