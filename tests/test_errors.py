"""How the command line ends: the exit status, and one line for a user's mistake."""

import os
from collections.abc import Sequence

import pytest

from audiogen.errors import InputError, run_command


def test_an_input_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise InputError("seconds is -1;\n  it must be above 0")

    assert run_command(main) == 2
    assert capsys.readouterr().err == "error: seconds is -1; it must be above 0\n"


def test_statuses() -> None:
    def interrupted(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    def unread(argv: Sequence[str] | None) -> int:
        raise BrokenPipeError

    assert [run_command(lambda argv: None), run_command(lambda argv: 1)] == [0, 1]
    assert [run_command(interrupted), run_command(unread)] == [130, 141]


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
