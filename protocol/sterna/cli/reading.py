"""What `sterna inspect` and `sterna verify` share: where recordings come from, and what sessions came to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, BinaryIO, Final

from cyclopts import Parameter

from sterna.cli.events import Fields
from sterna.cli.units import Size
from sterna.core.words import count_text, duration_text, size_text
from sterna.errors import ConfigError
from sterna.observe.budget import BUDGET_BYTES
from sterna.observe.describe import frame_name
from sterna.observe.follow import Fault, Follower
from sterna.observe.outcome import code_name
from sterna.observe.recording import OTHER, RecordingReader
from sterna.observe.summary import RoundSeen
from sterna.registry import ERRORS, Sender

STDIN: Final = "-"

# A recording is read in large steps; records themselves may be small.
_BUFFER_BYTES: Final = 1 << 20

File = Annotated[str, Parameter(allow_leading_hyphen=True)]
Memory = Annotated[
    Size, Parameter(help="keep at most this much of guests, batches and state in memory, to check them.")
]
DEFAULT_MEMORY: Final = BUDGET_BYTES


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """A file, or stdin for ``-``.

    Raises:
        ConfigError: it cannot be read.
    """
    if file == STDIN:
        with _told(file):
            yield sys.stdin.buffer
        return
    with _told(file):
        stream = open(file, "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed below
    with stream, _told(file):
        yield stream


@contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def recording_fields(reader: RecordingReader) -> Fields:
    """Where a recording was made."""
    return {
        "side": reader.side.name.lower(),
        "clock": reader.clock.name.lower(),
        "started_ns": reader.started_ns,
    }


def side_name(sender: Sender) -> str:
    """A side, as everywhere in text and JSON."""
    return sender.name.lower()


def fault_fields(fault: Fault) -> Fields:
    """What is wrong, for programs."""
    return {
        "clause": fault.clause,
        "code": None if fault.code is None else fault.code.name.lower(),
        "text": fault.detail,
        "from": side_name(fault.sender),
        "frame": None if fault.frame is None else frame_name(fault.frame),
        "sequence": fault.sequence,
        "offset": fault.offset,
        "offset_in_frame": fault.at,
        "time_ns": fault.time_ns,
    }


def fault_text(fault: Fault) -> str:
    """The same for people."""
    what = fault.detail or ("" if fault.code is None else ERRORS[fault.code].text)
    code = "" if fault.code is None else f"{fault.code.name.lower()}: "
    inside = "" if fault.at is None else f", {fault.at} bytes into it"
    frame = "bytes" if fault.frame is None else f"{frame_name(fault.frame)} (frame {fault.sequence})"
    return (
        f"{code}{what} [{fault.clause}]: {frame} of the {side_name(fault.sender)}, "
        f"at byte {fault.offset} of what it sent{inside}, after {seconds_text(fault.time_ns)}"
    )


UNHASHED: Final = "pages without hashes (--unverified): nobody can tell whether they are what was sent"


def seconds_text(time_ns: int) -> str:
    """A time of a recording."""
    return f"{time_ns / 1e9:.6f} s"


def session_fields(connection: int, follower: Follower) -> Fields:
    """What a session came to, for programs."""
    summary = follower.summary
    guest = summary.guest
    blackout_ns = summary.blackout_ns
    return {
        "connection": connection,
        "ok": not follower.stopped,
        **_outcome_fields(follower),
        "fault": None if follower.fault is None else fault_fields(follower.fault),
        "trouble": follower.trouble or None,
        "guest": None
        if guest is None or summary.hello is None
        else {"id": summary.hello.guest.hex(), "name": guest.name},
        "frames": {side_name(each): summary.frames[each] for each in OTHER},
        "skipped": summary.skipped,
        "bytes": {side_name(each): follower.directions[each].bytes for each in OTHER},
        "unfinished_bytes": {side_name(each): follower.directions[each].unfinished_bytes for each in OTHER},
        "rounds": [_round_fields(each) for each in summary.rounds],
        "round_count": summary.round_count,
        "pages": summary.pages,
        "bulk_bytes": summary.bulk_bytes,
        "rejected_pages": summary.rejected,
        "digest": summary.digest.hex() or None,
        "hashed": summary.hashed,
        "seconds_blackout": None if blackout_ns is None else blackout_ns / 1e9,
    }


def _outcome_fields(follower: Follower) -> Fields:
    """How it ended. What one side said alone has no end."""
    if follower.alone:
        return dict.fromkeys(("outcome", "runs", "by", "code", "text"))
    outcome = follower.outcome()
    return {
        "outcome": str(outcome.ended),
        "runs": None if outcome.runs is None else str(outcome.runs),
        "by": None if outcome.by is None else side_name(outcome.by),
        "code": None if outcome.code is None else code_name(outcome.code),
        "text": outcome.text,
    }


def _round_fields(seen: RoundSeen) -> Fields:
    return {
        "round": seen.number,
        "last": seen.last,
        "pages": seen.pages,
        "bytes": seen.bulk_bytes,
        "rejected_pages": seen.rejected,
        "seconds": seen.seconds,
    }


def session_lines(connection: int, follower: Follower) -> Iterator[str]:
    """What a session came to, for people."""
    summary = follower.summary
    yield f"connection {connection}: {'one side of it' if follower.alone else follower.outcome().text}"
    if summary.guest is not None and summary.hello is not None:
        guest = summary.guest
        memory_bytes = sum(region.size_bytes for region in guest.regions)
        yield f"  guest {guest.name!r}, {size_text(memory_bytes)}, id {summary.hello.guest.hex()}"
    for side in OTHER:
        frames, direction = summary.frames[side], follower.directions[side]
        rest = direction.unfinished_bytes
        behind = f", of which {size_text(rest)} are no whole frame" if rest else ""
        if direction.bytes:
            size = size_text(direction.bytes)
            yield f"  from the {side_name(side)}: {count_text(frames, 'frame')}, {size}{behind}"
    if summary.hashed is False:
        yield f"  {UNHASHED}"
    if summary.skipped:
        yield f"  of unknown type, and skipped: {count_text(summary.skipped, 'frame')}"
    for seen in summary.rounds:
        yield f"  {_round_text(seen)}"
    if summary.round_count > len(summary.rounds):
        yield f"  and {count_text(summary.round_count - len(summary.rounds), 'more round')}"
    if summary.blackout_ns is not None:
        yield f"  READY to RUNNING, as seen here: {duration_text(summary.blackout_ns / 1e9)}"


def _round_text(seen: RoundSeen) -> str:
    name = "paused guest" if seen.last else f"round {seen.number}"
    took = "without end" if seen.seconds is None else f"in {duration_text(seen.seconds)}"
    rejected = f", {count_text(seen.rejected, 'page')} rejected" if seen.rejected else ""
    return f"{name}: {count_text(seen.pages, 'page')}, {size_text(seen.bulk_bytes)} {took}{rejected}"
