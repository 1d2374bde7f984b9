"""The command line is an interface: its options are frozen, and nothing heavy is imported before it is needed.

After a change that is meant, write the list anew and read the difference before committing it:

    python tests/test_cli.py > tests/cli_options.txt
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests" / "cli_options.txt"
VERBS = (
    "audiogen.train",
    "audiogen.generate",
    "audiogen.convert",
    "audiogen.codec",
    "audiogen.evaluate",
    "audiogen.data",
    "audiogen.info",
    "audiogen.models",
    "audiogen.serve",
)

# Runs `python -m VERB --help` and watches the parser: what a user may type, and what was imported to say so.
PROBE = """
import argparse, io, json, runpy, sys
verb = sys.argv[1]

def describe(parser, prefix):  # -> (the option in one line, whether it has a help text)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from describe(child, f"{prefix} {name}")
        elif "--help" not in action.option_strings:
            kind = type(action).__name__.strip("_").replace("Action", "").lower()
            words = [prefix, ", ".join(action.option_strings) or action.dest, kind]
            words += [f"nargs={action.nargs}"] if action.nargs else []
            words += ["choices=" + "|".join(map(str, action.choices))] if action.choices else []
            words += ["required"] if action.required and action.option_strings else []
            unset = action.default is None or action.default is False or action.default == argparse.SUPPRESS
            words += [] if unset else [f"default={action.default}"]
            yield " ".join(words), bool(action.help)

parsers = []
parse = argparse.ArgumentParser.parse_known_args
def watched(self, *args, **kwargs):
    parsers.append(self)
    return parse(self, *args, **kwargs)
argparse.ArgumentParser.parse_known_args = watched

sys.argv = [verb, "--help"]
sys.stdout, stdout = io.StringIO(), sys.stdout
try:
    runpy.run_module(verb, run_name="__main__", alter_sys=True)
    status = "returned"
except SystemExit as exit:
    status = exit.code
help_text, sys.stdout = sys.stdout.getvalue(), stdout
print(json.dumps({
    "status": status, "help": help_text, "imported": sorted({name.split(".")[0] for name in sys.modules}),
    "options": dict(describe(parsers[0], verb)) if parsers else {},
}))
"""


@cache
def probe(verb: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "110"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE, verb],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, f"python -m {verb} --help failed:\n{run.stderr}"
    return json.loads(run.stdout)


# Generates with the bundled model; says what was imported before there was a picture.
FIRST_SOUND = """
import json, sys
from audiogen import spectrogram
from audiogen.generate import __main__ as generate

def no_picture(*_):
    print(json.dumps(sorted(sys.modules)))

spectrogram.save_spectrogram = no_picture
words = ["--text", "a dog barks", "--model", "lm_tiny", "--duration", "0.1"]
generate.main([*words, "--device", "cpu", "--out", sys.argv[1]])
from audiogen.train import codec, lm, run, tagger
print(json.dumps(sorted(sys.modules)))
"""


def test_the_first_sound_and_training_on_tokens_wait_for_no_package_that_they_do_not_need(
    tmp_path: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FIRST_SOUND, str(tmp_path / "dog.wav")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0 and (tmp_path / "dog.wav").is_file(), run.stderr
    imported = set(json.loads(run.stdout.splitlines()[0]))
    assert {"torch", "audiogen.text.t5_stack"} <= imported
    # torch imports its compiler, a second, for `normal_` on the meta device
    slow = {"transformers", "tokenizers", "scipy", "matplotlib", "torch._dynamo", "sympy", "httpx"}
    assert not slow & imported
    assert not {"transformers", "diffusers", "torch._dynamo"} & set(json.loads(run.stdout.splitlines()[-1]))


def options() -> str:
    return "".join(f"{line}\n" for verb in VERBS for line in probe(verb)["options"])


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_without_heavy_packages(verb: str) -> None:
    answer = probe(verb)
    assert answer["status"] in (0, None)
    assert answer["help"].startswith("usage:")
    heavy = {"torch", "transformers", "diffusers", "matplotlib", "scipy", "numpy"}
    assert not heavy & set(answer["imported"])


def test_options_are_the_frozen_ones() -> None:
    frozen, found = FROZEN.read_text().splitlines(), options().splitlines()
    gone, new = [line for line in frozen if line not in found], [line for line in found if line not in frozen]
    assert frozen == found, (
        "the command line changed; if that is meant: python tests/test_cli.py > tests/cli_options.txt\n"
        + "\n".join([f"- {line}" for line in gone] + [f"+ {line}" for line in new])
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    assert probe(verb)["options"], "no option found: is the parser built before main parses?"
    assert not [line for line, explained in probe(verb)["options"].items() if not explained]


if __name__ == "__main__":
    sys.stdout.write(options())
