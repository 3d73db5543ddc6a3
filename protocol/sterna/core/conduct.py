"""Whether a frame may come at all: from this sender, in this state, of this attempt and epoch."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from sterna import limits as bounds
from sterna.core.tables import Input, Row, State, Table
from sterna.errors import LocalProtocolError, PeerMisbehaved, RemoteProtocolError, SternaError, remote_error
from sterna.registry import FRAMES, ErrorCode, FrameType, Sender
from sterna.wire.records import Complete, HandBack, Handover, Record, Release, Running


def wrong(code: ErrorCode, detail: str, clause: str, record: Record) -> RemoteProtocolError:
    """The error for a well-formed record that does not fit the conversation."""
    return remote_error(code, detail, clause=clause, frame=record.type)


def check_sender(frame: FrameType, receiver: Sender) -> None:
    """Raises PeerMisbehaved, WRONG_DIRECTION, for a frame that is the receiver's own to send."""
    if FRAMES[frame].sender is receiver:
        detail = f"{frame.name} is for this side to send"
        raise PeerMisbehaved(ErrorCode.WRONG_DIRECTION, detail, clause="CON-4", frame=frame)


def row_of(table: Table, state: State, what: Input, frame: FrameType | None = None) -> Row:
    """The row of an input in a state.

    Args:
        table: the role's.
        state: the machine's.
        what: the input.
        frame: the frame that it is about, if it is none itself.

    Raises:
        RemoteProtocolError: a frame that the state does not allow.
        LocalProtocolError: a call that the state does not allow.
    """
    frame = what if isinstance(what, FrameType) else frame
    row = table.get((state, what))
    if row is None:
        if frame is None:
            raise LocalProtocolError(ErrorCode.INTERNAL, f"{what.value} while {state.value}")
        detail = f"{frame.name} while {state.value}"
        raise PeerMisbehaved(ErrorCode.UNEXPECTED_FRAME, detail, clause="CON-3", frame=frame)
    return row


def check_selected(frame: FrameType, features: Mapping[int, int]) -> None:
    """Raises RemoteProtocolError, NOT_SELECTED, for a frame none of whose features was selected [NEG-7]."""
    needed = FRAMES[frame].features
    if needed and needed.isdisjoint(features):
        detail = f"{frame.name} without {' or '.join(sorted(each.name.lower() for each in needed))}"
        raise remote_error(ErrorCode.NOT_SELECTED, detail, clause="NEG-7", frame=frame)


def is_of_old_attempt(record: Record, current: int) -> bool:
    """Whether a frame belongs to an attempt that is over and must be ignored [CON-24] [CON-25].

    Raises:
        RemoteProtocolError: BAD_ATTEMPT for an attempt that never was.
    """
    attempt = getattr(record, "attempt", current)
    if not 1 <= attempt <= current:
        detail = f"attempt {attempt}, the current one is {current}"
        clause = "CON-23" if attempt else "CON-22"
        if FRAMES[record.type].sender is Sender.DESTINATION:
            clause = "CON-25"
        raise wrong(ErrorCode.BAD_ATTEMPT, detail, clause, record)
    return bool(attempt < current)


def check_epoch(
    record: Handover | HandBack | Running | Complete | Release, expected: int, clause: str
) -> None:
    """Raises RemoteProtocolError, BAD_EPOCH, for a frame of another epoch than this session's."""
    if record.epoch != expected:
        detail = f"epoch {record.epoch}, expected {expected}"
        raise wrong(ErrorCode.BAD_EPOCH, detail, clause, record)


def refusal_items(error: SternaError) -> tuple[str, ...]:
    """What the host's error lists as missing, in words that fit REFUSE [CON-16] [TXT-3] [TXT-4]."""
    listed = getattr(error, "items", ())
    if not isinstance(listed, (tuple, list)):
        return ()
    return tuple(_text(str(item)) for item in listed[: bounds.REFUSE_ITEMS])


def _text(words: str) -> str:
    printable = "".join(each for each in words if not unicodedata.category(each).startswith("C"))
    return printable.encode()[: bounds.TEXT_BYTES].decode(errors="ignore")
