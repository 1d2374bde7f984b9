"""How the command line ends: the exit status, and one line for a user's mistake."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from audiogen.__main__ import VERBS
from audiogen.errors import LONGEST_TEXT, InputError, one_line, plain_text, run_command

ROOT = Path(__file__).resolve().parent.parent


def test_an_input_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise InputError("seconds is -1;\n  it must be above 0")

    assert run_command(main) == 2
    assert capsys.readouterr().err == "error: seconds is -1; it must be above 0\n"


def test_a_message_has_no_control_characters_of_a_file_and_an_end() -> None:
    assert (
        one_line("unknown key \x1b[2J\udcff,\n did you mean é?")
        == r"unknown key \x1b[2J\udcff, did you mean é?"
    )
    assert len(one_line("x" * 1_000_000)) < 1010


def test_statuses() -> None:
    def interrupted(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    def unread(argv: Sequence[str] | None) -> int:
        raise BrokenPipeError

    assert [run_command(lambda argv: None), run_command(lambda argv: 1)] == [0, 1]
    assert [run_command(interrupted), run_command(unread)] == [130, 141]


def test_sigterm_undoes_what_is_begun_and_another_signal_ends_that_too() -> None:
    undone = []

    def main(argv: Sequence[str] | None) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            undone.append(True)
        return 0

    def disguised(argv: Sequence[str] | None) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object") from None  # safetensors does so
        return 0

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run_command(main) == 143 and undone
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert run_command(disguised) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class HalfMade:
    """An object whose making is interrupted, and which asks at its end for what it has not got."""

    def __init__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        self.place = 0

    def __del__(self) -> None:
        print(self.place)


def test_what_an_interrupt_left_half_made_goes_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_command(lambda argv: print(HalfMade())) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/a"),
            "/tmp/a: No space left on device; make space and run the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/tmp/b"), "/tmp/b: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "the output: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_one_line_wherever_it_shows(
    raised: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise raised

    assert run_command(main) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_a_package_that_is_not_installed_is_one_line(verb: str) -> None:
    words = {
        "codec": ["encode", "a", "-o", "b"],
        "evaluate": ["files"],
        "data": ["scan", "nosuch"],
        "convert": ["lm_tiny", "-o", "a"],
    }
    module = f"audiogen.{verb}" if verb else "audiogen"
    alone = [sys.executable, "-S", "-m", module, *words.get(verb, [])]  # -S: the standard library alone
    ran = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert "is missing; activate" in ran.stderr or (verb == "serve" and "pip install" in ran.stderr)


def test_a_module_of_ours_that_is_missing_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda argv: importlib.import_module("audiogen.nosuch"))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0)


def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def main(argv: Sequence[str] | None) -> None:
        seen.append(os.environ["OMP_WAIT_POLICY"])

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_command(main)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    run_command(main)
    assert seen == ["ACTIVE", "PASSIVE"]


@pytest.mark.parametrize("text", ["a \udcff dog", "\ud83d", "a\0dog", "x" * 1_000_000])
def test_what_is_no_text_is_one_short_line(text: str) -> None:
    with pytest.raises(
        InputError, match="^--text '.*(which is no text; write it in UTF-8|at most 100000)"
    ) as caught:
        plain_text(text, "--text")
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_one_spelling_of_a_text() -> None:
    assert plain_text("cafe\u0301 🐶") == plain_text("caf\u00e9 🐶") == "caf\u00e9 🐶"
    assert len(plain_text("é" * LONGEST_TEXT)) == LONGEST_TEXT


def test_a_name_that_is_not_utf_8_can_be_printed() -> None:
    program = "from audiogen.errors import run_command; run_command(lambda argv: print('caf\\udce9.wav'))"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    assert subprocess.check_output([sys.executable, "-c", program], env=environment) == b"caf\xe9.wav\n"
