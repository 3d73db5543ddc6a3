from __future__ import annotations

import json

import pytest

from sterna.cli.exits import MEANINGS, Exit, exit_of, exit_of_code, exit_of_outcome, exits, gravest
from sterna.core.events import Outcome
from sterna.errors import (
    ConfigError,
    GuestError,
    LocalProtocolError,
    PeerAborted,
    TransportError,
    remote_error,
)
from sterna.registry import ErrorCode


def test_every_code_has_its_meaning() -> None:
    assert list(MEANINGS) == list(Exit)


def test_every_registry_error_has_an_exit_code() -> None:
    for code in ErrorCode:
        assert exit_of_code(code) not in {Exit.OK, Exit.USAGE, Exit.INTERRUPTED}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (remote_error(ErrorCode.BAD_SEQUENCE, clause="HDR-5"), Exit.PROTOCOL),
        (remote_error(ErrorCode.LIMIT_BULK, clause="LIM-1"), Exit.PROTOCOL),
        (remote_error(ErrorCode.NO_COMMON_VERSION, clause="NEG-1"), Exit.REFUSED),
        (PeerAborted(ErrorCode.FULL), Exit.REFUSED),
        (PeerAborted(ErrorCode.LIMIT_MEMORY), Exit.REFUSED),
        (PeerAborted(0xFFFF), Exit.REFUSED),
        (LocalProtocolError(ErrorCode.INTERNAL), Exit.INTERNAL),
        (TransportError(ErrorCode.PEER_SILENT), Exit.TRANSPORT),
        (GuestError("it is gone"), Exit.GUEST),
        (LocalProtocolError(ErrorCode.NOT_CONVERGING), Exit.ROLLED_BACK),
        (LocalProtocolError(ErrorCode.CANCELLED), Exit.ROLLED_BACK),
        (LocalProtocolError(ErrorCode.TOO_LATE), Exit.FAILED),
        (LocalProtocolError(ErrorCode.UNDECIDED), Exit.UNDECIDED),
        (LocalProtocolError(ErrorCode.GUEST_LOST), Exit.LOST),
        (ConfigError("no such file"), Exit.USAGE),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (ZeroDivisionError(), Exit.INTERNAL),
    ],
)
def test_exit_codes_of_exceptions(error: BaseException, expected: Exit) -> None:
    assert exit_of(error) is expected


def test_of_a_group_the_gravest_counts() -> None:
    undecided = LocalProtocolError(ErrorCode.UNDECIDED)
    group = ExceptionGroup("", [TransportError(ErrorCode.CONNECTION_LOST), ExceptionGroup("", [undecided])])
    assert gravest(group) is undecided
    assert exit_of(group) is Exit.UNDECIDED
    assert exit_of(BaseExceptionGroup("", [group, KeyboardInterrupt()])) is Exit.INTERRUPTED


@pytest.mark.parametrize(
    ("outcome", "code", "expected"),
    [
        (Outcome.COMPLETED, None, Exit.OK),
        (Outcome.MOVED, ErrorCode.CONNECTION_LOST, Exit.OK),
        (Outcome.MOVED, ErrorCode.GUEST_LOST, Exit.LOST),
        (Outcome.MOVED, ErrorCode.MEMORY_MISMATCH, Exit.FAILED),
        (Outcome.STRANDED, ErrorCode.CONNECTION_LOST, Exit.GUEST),
        (Outcome.STRANDED, ErrorCode.GUEST_LOST, Exit.LOST),
        (Outcome.ROLLED_BACK, ErrorCode.CONNECTION_LOST, Exit.TRANSPORT),
        (Outcome.ROLLED_BACK, None, Exit.ROLLED_BACK),
        (Outcome.UNDECIDED, ErrorCode.CONNECTION_LOST, Exit.UNDECIDED),
        (Outcome.GUEST_FAILED, ErrorCode.GUEST_FAILED, Exit.GUEST),
    ],
)
def test_exit_codes_of_outcomes(outcome: Outcome, code: ErrorCode | None, expected: Exit) -> None:
    assert exit_of_outcome(outcome, code) is expected


@pytest.mark.parametrize("code", [ErrorCode.UNDECIDED, ErrorCode.GUEST_LOST, ErrorCode.INTERNAL])
def test_no_word_of_a_peer_loses_a_guest_that_runs_on_here(code: ErrorCode) -> None:
    """[CON-62] [ONE-20] An ABORT may bear any code. Before HANDOVER the guest is here, whatever it says."""
    assert exit_of_outcome(Outcome.ROLLED_BACK, code, by_peer=True) is Exit.REFUSED
    assert exit_of_outcome(Outcome.UNDECIDED, code, by_peer=True) is Exit.UNDECIDED
    assert exit_of_outcome(Outcome.ROLLED_BACK, code) is exit_of_code(code)  # our own


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    exits()
    out, err = capsys.readouterr()
    assert out == ""
    assert "undecided" in err
    exits(json=True)
    table = json.loads(capsys.readouterr().out)["exits"]
    assert {"code": 130, "name": "interrupted", "meaning": "interrupted"} in table
