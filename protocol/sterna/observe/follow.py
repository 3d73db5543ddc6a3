"""Follows one session of a recording: frames of both directions, the first thing that is wrong, and the end.

Pure: bytes go in, frames and verdicts come out. What a recording holds is hostile, so whatever the bytes are,
there is a verdict, within bounds; and how they were cut into records changes nothing.

Until HELLO and WELCOME have been seen, both directions are held to the bounds of the handshake, then each to
what its receiver announced; PAGES are understood from GUEST on, as by an endpoint. A direction whose frames
cannot be told apart any more is given up. What follows a frame that may not be there is still decoded: who
reads a recording wants to see how the other side answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Final

from sterna.core.negotiate import Selection
from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.observe.budget import Budget, TooMuchError
from sterna.observe.direction import Direction, Frame, Preface
from sterna.observe.judge import BreachError, Judge
from sterna.observe.outcome import Outcome, Signs
from sterna.observe.recording import OTHER, How, RecordClock, Side
from sterna.observe.summary import Summary, names_unhashed
from sterna.registry import FRAMES, ErrorCode, Sender
from sterna.wire import Buffer
from sterna.wire.records import Abort, Attach, Attached, Guest, Hello, Pages, Refuse, Welcome

_NS: Final = 1e-9
# A region takes 24 bytes in GUEST, and about so many times more in memory.
_KEPT_OF_GUEST: Final = 12
_ANY: Final = Limits(**dict.fromkeys((field.name for field in fields(Limits)), (1 << 64) - 1))


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong with a session.

    Attributes:
        sender: whose bytes they are.
        clause: of spec/protocol.md.
        code: what its receiver has to answer; None if the clause gives it none.
        detail: what exactly.
        frame: type of the frame, None outside of frames.
        sequence: its number, 0 outside of frames.
        offset: of the frame in the sender's bytes, preface included.
        at: where in the frame, from its first byte; None if nowhere.
        time_ns: when its last byte passed.
    """

    sender: Sender
    clause: str
    code: ErrorCode | None
    detail: str
    frame: int | None
    sequence: int
    offset: int
    at: int | None
    time_ns: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A preface or a frame that passed. `fault` is set if it is the first thing that is wrong."""

    time_ns: int
    sender: Sender
    what: Frame | Preface
    fault: Fault | None = None


class Follower:
    """Follows one session.

    Attributes:
        fault: the first thing that is wrong, None so far.
        trouble: why this reader cannot judge what it sees; empty if it can.
        summary: what the session came to so far.
        directions: the bytes of each side.
        alone: whether only one side is known.
        session: the follower of the session of which this is a data connection; None if it is none.
    """

    def __init__(
        self,
        *,
        side: Side = Side.BETWEEN,
        clock: RecordClock = RecordClock.SINCE_START,
        keep_bytes: int = 0,
        budget: Budget | None = None,
        alone: bool = False,
        find: Callable[[bytes], Follower | None] = lambda _: None,
    ) -> None:
        """Begin.

        Args:
            side: where the recording was made.
            clock: what its times are.
            keep_bytes: how much of each frame's raw bytes is to be seen.
            budget: for memory, of all sessions of the recording.
            alone: only one direction is known. Its frames are decoded, whatever the other side announced;
                the conversation is not judged.
            find: the follower of a session, by its id, for a connection that joins it.
        """
        self.fault: Fault | None = None
        self.trouble = ""
        self.summary: Final = Summary()
        self._share: Final = (budget or Budget()).share()
        self.directions: Final = {
            each: Direction(self._share, keep_bytes=keep_bytes, stream=stream)
            for each, stream in ((Sender.SOURCE, None), (Sender.DESTINATION, 0))
        }
        self.alone: Final = alone
        self._judge = None if alone else Judge(self._share)
        if alone:
            for direction in self.directions.values():
                direction.set_limits(_ANY)
        self._signs: Final = Signs(side, set(), {}, {})
        self._timed: Final = clock is not RecordClock.NONE
        self._judging = True
        self._find: Final = find
        self.session: Follower | None = None

    @property
    def stopped(self) -> bool:
        """Whether the session is judged no more: something is wrong, or too much."""
        return self.fault is not None or bool(self.trouble)

    @property
    def ended(self) -> bool:
        """Whether both directions have ended."""
        return len(self._signs.hows) == len(OTHER)

    def feed(self, sender: Sender, data: Buffer, time_ns: int = 0) -> Iterator[Seen]:
        """What ends in the next bytes of a side. Exhaust it before the next call."""
        direction = self.directions[sender]
        try:
            for what in direction.feed(data):
                yield self._seen(sender, what, time_ns)
        except TooMuchError as error:
            self._give_up(error)
        except RemoteProtocolError as error:
            if self._judge is None or not self._judge.over:  # else nobody reads these bytes
                where = direction.offset, direction.reader.last_sequence
                self._wrong(sender, error, where, time_ns)

    def end(self, sender: Sender, how: How, time_ns: int = 0) -> None:
        """Nothing more comes from this side. An end inside a frame is a cut, and nobody's fault."""
        self._signs.hows.setdefault(sender, how)
        direction = self.directions[sender]
        try:
            direction.end()
        except RemoteProtocolError as error:
            if error.code is not ErrorCode.TRUNCATED:
                self._wrong(sender, error, (0, 0), time_ns)

    def close(self) -> None:
        """The session is over: let go of what was kept to judge it. The outcome is still there."""
        self._judging = False
        if self._judge is not None and self.session is None:
            self._judge.over = True
        self._judge = None
        for direction in self.directions.values():
            direction.close()
        self._share.release()

    def outcome(self) -> Outcome:
        """How the session ended, if it is over."""
        self._signs.source_unfinished = self.directions[Sender.SOURCE].unfinished_bytes > 0
        return self._signs.outcome()

    def _seen(self, sender: Sender, what: Frame | Preface, time_ns: int) -> Seen:
        if isinstance(what, Preface):
            return Seen(time_ns, sender, what)
        before = self.fault
        if self._judging and what.record is not None:
            self._check(sender, what, time_ns)
        try:
            self._learn(what)
        except TooMuchError as error:
            self._give_up(error)
            self.summary.frames[sender] += 1  # shown, and not kept
            return Seen(time_ns, sender, what)
        self.summary.add(sender, what, time_ns)
        match what.record:
            case None:
                pass
            case Abort() | Refuse() as words:
                self._signs.last_words.setdefault(sender, words)
            case record:
                if FRAMES[record.type].sender is not OTHER[sender]:
                    self._signs.add(record)
        return Seen(time_ns, sender, what, self.fault if before is None else None)

    def _check(self, sender: Sender, frame: Frame, time_ns: int) -> None:
        if self._judge is None:
            return
        now = time_ns * _NS if self._timed else math.inf

        def blame(error: Exception) -> None:
            self._blame(error, sender, frame, time_ns)

        try:
            if isinstance(frame.record, Attach) and self.summary.hello is None:
                self._join(frame.record)
            if self.session is None:
                self._judge.check(sender, frame, now, blame)
            else:
                self._judge.check_data(sender, frame, now, blame)
        except (TooMuchError, RemoteProtocolError, BreachError) as error:
            blame(error)

    def _blame(self, error: Exception, sender: Sender, frame: Frame, time_ns: int) -> None:
        if isinstance(error, TooMuchError):
            self._give_up(error)
        elif isinstance(error, RemoteProtocolError | BreachError):
            self._wrong(sender, error, (frame.offset, frame.header.sequence), time_ns)

    def _join(self, attach: Attach) -> None:
        """This is a data connection: what its session has agreed on holds here, and its judge judges."""
        session = self._find(attach.session)
        if session is None or session._judge is None or session.summary.guest is None:
            return
        self.session, self._judge = session, session._judge
        for sender, direction in self.directions.items():
            other = session.directions[sender]
            direction.set_limits(other.announced)
            bounds = other.reader.bounds
            assert bounds.regions is not None
            direction.unpacker = other.unpacker
            direction.reader.set_encodings(bounds.encodings, hashed=bounds.hashed)
            direction.reader.set_regions(bounds.regions)

    def _learn(self, frame: Frame) -> None:
        """What frames tell about the frames to come."""
        match frame.record:
            case Hello() as hello if self.alone:  # nothing tells what was selected
                self.directions[Sender.SOURCE].tells_hashes = not names_unhashed(hello)
            case Welcome() as welcome if self.summary.welcome is None and self.summary.hello is not None:
                limits = {
                    Sender.SOURCE: Limits.from_wire(self.summary.hello.limits),
                    Sender.DESTINATION: Limits.from_wire(welcome.limits),
                }
                features = {each.id: each.parameter for each in welcome.features}
                selection = Selection(welcome.version, features, limits[Sender.DESTINATION])
                for sender, direction in self.directions.items():
                    direction.set_limits(limits[OTHER[sender]])
                    direction.look_back(selection.window_log2)
                    direction.reader.set_encodings(selection.encodings, hashed=selection.hashed)
            case Attach() if self.summary.frames[Sender.SOURCE] == 0:
                self.directions[Sender.DESTINATION].reader.set_stream(frame.header.stream)
            case Attached(last_sequence=last) if self.session is not None:
                self.directions[Sender.SOURCE].reader.go_on_from(last + 1)
            case Pages() as table if self.session is not None:
                self.session.summary.carry(table)
            case Guest() as guest if self.summary.guest is None:
                self._share.take(frame.header.body_bytes * _KEPT_OF_GUEST, "the guest's description")
                for direction in self.directions.values():
                    direction.reader.set_regions({region.id: region for region in guest.regions})
            case _:
                pass

    def _give_up(self, error: TooMuchError) -> None:
        if self._judging:
            self.trouble = str(error)
        self._judging = False

    def _wrong(
        self, sender: Sender, error: RemoteProtocolError | BreachError, where: tuple[int, int], time_ns: int
    ) -> None:
        """The first thing that is wrong counts: what follows may be wrong because of it.

        Args:
            sender: whose bytes they are.
            error: what.
            where: offset and sequence number of the frame.
            time_ns: when.
        """
        judging, self._judging = self._judging, False
        if not judging:
            return
        if self._judge is not None:
            self._judge.over = True  # on the session's other connections, too
        coded = error if isinstance(error, RemoteProtocolError) else None
        self.fault = Fault(
            sender,
            error.clause,
            None if coded is None else coded.code,
            error.detail,
            error.frame,
            where[1],
            where[0],
            None if coded is None else coded.offset,
            time_ns,
        )
