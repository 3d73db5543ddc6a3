"""Exit codes: one table, one mapping from errors, and `sterna exits` that shows the table.

A script wants to know whose trouble it was, and above all where the guest is now. With 3, 4, 5 and 7 it runs
on at the source; 6 is a guest in trouble, which may be on either side; with 8 and 9 somebody has to look.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from sterna.cli.units import Json
from sterna.errors import ConfigError, PeerAborted, SternaError
from sterna.registry import ERRORS, ErrorClass, ErrorCode

if TYPE_CHECKING:
    from sterna.core.events import Outcome


class Exit(IntEnum):
    """What a command's exit code means; `MEANINGS` has the sentences."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PROTOCOL = 3
    REFUSED = 4
    TRANSPORT = 5
    GUEST = 6
    ROLLED_BACK = 7
    UNDECIDED = 8
    LOST = 9
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


MEANINGS: Final[dict[Exit, str]] = {
    Exit.OK: "done",
    Exit.FAILED: "a check failed: the audit, a digest, or what was asked for came too late",
    Exit.USAGE: "the command line, or a file that it names, is wrong",
    Exit.PROTOCOL: "the protocol was broken; the text says by whom",
    Exit.REFUSED: "the peers do not fit together, or one of them refuses",
    Exit.TRANSPORT: "the connection, TLS, or a deadline",
    Exit.GUEST: "the guest, its holder, or a durable record failed, or a guest that has moved lacks pages, "
    "or is not known to run",
    Exit.ROLLED_BACK: "cancelled, or not converging: the guest runs on at the source",
    Exit.UNDECIDED: "it is not known who owns the guest; it stays paused until the peer or an operator says",
    Exit.LOST: "the guest is lost",
    Exit.INTERNAL: "a bug in Sterna",
    Exit.INTERRUPTED: "interrupted",
}

_BY_CLASS: Final = {
    ErrorClass.MISBEHAVED: Exit.PROTOCOL,
    ErrorClass.INCOMPATIBLE: Exit.REFUSED,
    ErrorClass.LIMIT: Exit.PROTOCOL,
    ErrorClass.LOCAL: Exit.REFUSED,
    ErrorClass.TRANSPORT: Exit.TRANSPORT,
    ErrorClass.LIFECYCLE: Exit.ROLLED_BACK,
}
# What a peer may say of itself, or of a guest, and what only this side's records, or its own code, can know.
_HEARSAY: Final = frozenset({ErrorCode.UNDECIDED, ErrorCode.GUEST_LOST, ErrorCode.INTERNAL})
# Codes that mean something else to the operator than their class says.
_BY_CODE: Final = {
    ErrorCode.MEMORY_MISMATCH: Exit.FAILED,
    ErrorCode.LIMIT_REGIONS: Exit.REFUSED,
    ErrorCode.LIMIT_MEMORY: Exit.REFUSED,
    ErrorCode.LIMIT_STATE: Exit.REFUSED,
    ErrorCode.LIMIT_MISMATCH: Exit.REFUSED,
    ErrorCode.GUEST_FAILED: Exit.GUEST,
    ErrorCode.STATE_REJECTED: Exit.GUEST,
    ErrorCode.RECORD_FAILED: Exit.GUEST,
    ErrorCode.INTERNAL: Exit.INTERNAL,
    ErrorCode.TOO_LATE: Exit.FAILED,
    ErrorCode.UNDECIDED: Exit.UNDECIDED,
    ErrorCode.GUEST_LOST: Exit.LOST,
}


def exit_of_code(code: ErrorCode) -> Exit:
    """Exit code of a registry error."""
    return _BY_CODE.get(code, _BY_CLASS[ERRORS[code].kind])


def exit_of(error: BaseException) -> Exit:
    """Exit code of an exception that ended a command; of a group, the one that matters most."""
    match gravest(error):
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case ConfigError():
            return Exit.USAGE
        case PeerAborted() as said if said.code is ErrorCode.INTERNAL:
            return Exit.REFUSED  # the peer's trouble, or a code from a later registry: no bug of ours
        case SternaError() as known:
            return exit_of_code(known.code)
        case _:
            return Exit.INTERNAL


def gravest(error: BaseException) -> BaseException:
    """The exception of a group that explains the others; any other exception is its own explanation."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    # The highest code: an interrupt has cut the rest short, a bug or an undecided guest outweighs a cut link.
    return max((gravest(inner) for inner in error.exceptions), key=exit_of)


def exit_of_outcome(outcome: Outcome, code: ErrorCode | None, *, by_peer: bool = False) -> Exit:
    """Exit code of a migration's end.

    Args:
        outcome: which says where the guest is.
        code: why; None if there is nothing to blame.
        by_peer: the peer has said so. Who runs the guest, or has lost it, is its to say once it has it only.
    """
    match outcome.value:
        case "undecided":
            return Exit.UNDECIDED
        case "completed" | "moved" | "stranded" if code is ErrorCode.GUEST_LOST:
            return Exit.LOST
        case "moved" if code is ErrorCode.MEMORY_MISMATCH:
            return Exit.FAILED  # it runs, but not with what was sent [ONE-40]
        case "completed" | "moved":
            return Exit.OK
        case "guest_failed" | "stranded":
            return Exit.GUEST
        case _ if by_peer and code in _HEARSAY:
            return Exit.REFUSED
        case _:
            return Exit.ROLLED_BACK if code is None else exit_of_code(code)


def exits(*, json: Json = False) -> None:
    """Print the table of exit codes."""
    from sterna.cli.output import Output

    output = Output(json=json)
    output.table(
        ("code", "name", "meaning"),
        [(str(int(code)), code.name.lower(), text) for code, text in MEANINGS.items()],
    )
    output.result(
        {
            "exits": [
                {"code": int(code), "name": code.name.lower(), "meaning": text}
                for code, text in MEANINGS.items()
            ]
        }
    )
