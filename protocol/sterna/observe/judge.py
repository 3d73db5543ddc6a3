"""Whether what two sides say to each other is a conversation of this protocol.

The judge takes decoded frames in the order in which they were seen, and finds the first one that may not be
there or does not say what it must. It holds no opinion of its own: states come from the tables, counts and
digests from the functions of the machines, so that what it calls wrong, an endpoint would too. Beyond that it
sees both sides, and so finds what no endpoint can: a ROUND that did not wait for ROUND_ACK, or a good page
that was rejected.

It does not matter where on the way the frames were seen. A session alternates: neither side sends anything
that moves the other before the other has answered. What may cross (PING, PONG, PROGRESS, ABORT) moves nobody
but by ending the session.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from sterna.core.conduct import check_epoch, check_selected, check_sender, is_of_old_attempt, wrong
from sterna.core.heartbeat import Heartbeat
from sterna.core.negotiate import check_room, check_welcome, usable_limits
from sterna.core.style import check_batch, selected_styles
from sterna.core.tables import DestinationState
from sterna.errors import LocalProtocolError, RemoteProtocolError, SternaError, remote_error
from sterna.limits import Limits
from sterna.observe.budget import Share, TooMuchError
from sterna.observe.direction import Frame
from sterna.observe.image import Image
from sterna.observe.lanes import Blame, Lanes, Waiting, is_ahead
from sterna.observe.places import Places
from sterna.observe.recording import OTHER
from sterna.registry import ErrorCode, Feature, FrameType, Mode, Sender, Style
from sterna.wire import NO_ID
from sterna.wire.records import (
    Abort,
    Accept,
    Attach,
    Attached,
    Complete,
    DirtyBitmap,
    Guest,
    HandBack,
    Handover,
    Hello,
    Loaded,
    NotReady,
    PageRequest,
    Pages,
    Ping,
    Pong,
    Progress,
    Record,
    Refuse,
    Release,
    Round,
    RoundAck,
    RoundEnd,
    Running,
    Seal,
    State,
    Switchover,
    Welcome,
)

# Unanswered PINGs that are remembered; of a side that sends more, no PONG is called unsolicited.
PINGS_MAX: Final = 4096

# What must not follow these, by which clause.
_LAST_WORDS: Final = {FrameType.ABORT: "ABT-1", FrameType.REFUSE: "CON-67", FrameType.BYE: "PNG-3"}


class BreachError(SternaError):
    """A clause that binds a sender and gives receivers no code to answer with."""

    def __init__(self, clause: str, detail: str, frame: FrameType) -> None:
        super().__init__(f"{detail} [{clause}]")
        self.clause = clause
        self.detail = detail
        self.frame = frame


class Judge:
    """Judges one session.

    Attributes:
        hello: what the source opened the session with.
        welcome: how the destination took it.
        image: the guest's memory and state, from ACCEPT on.
        places: where the two sides may be.
        over: whether a side has ended the session by ABORT or REFUSE: what still comes was under way.
    """

    def __init__(self, share: Share) -> None:
        self.hello: Hello | None = None
        self.welcome: Welcome | None = None
        self.image: Image | None = None
        self.places: Final = {side: Places(side) for side in OTHER}
        self.over = False
        self._share: Final = share
        self._lanes: Lanes | None = None
        self._guest: Guest | None = None
        self._limits = dict.fromkeys(OTHER, Limits())
        self._attempt = 1
        self._styles: frozenset[Style] = frozenset()
        self._features: dict[int, int] = {}
        self._running = False
        self._last_words: dict[Sender, FrameType] = {}
        self._beats: Final = {side: _Beats() for side in OTHER}

    def check(self, sender: Sender, frame: Frame, now: float, blame: Blame = lambda _: None) -> None:
        """Judge the next frame of the control connection. After an exception there is no use in asking again.

        Args:
            sender: whose it is.
            frame: a frame of known type.
            now: when, in seconds; infinite if nobody knows.
            blame: told instead, if the frame has to wait and is found to be wrong later.

        Raises:
            RemoteProtocolError: what the receiver must answer it with.
            BreachError: the sender must not send it, whatever the receiver does.
            TooMuchError: it begins more than this reader can follow.
        """
        record = frame.record
        assert record is not None
        if sender in self._last_words:
            last = self._last_words[sender]
            detail = f"{record.type.name} after {last.name}"
            raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, _LAST_WORDS[last], record)
        if self.over:
            return
        check_sender(record.type, OTHER[sender])
        if record.type in _LAST_WORDS:
            self._last_words[sender] = record.type
        match record:
            case Abort():
                self.over = True
            case Ping() | Pong() | Progress():
                self._beat(sender, record, now)
            case _:
                self._take_turn(Waiting(sender, frame, now, blame), record)

    def check_data(self, sender: Sender, frame: Frame, now: float, blame: Blame) -> None:
        """As `check`, for a frame of one of the session's data connections."""
        record, lanes = frame.record, self._lanes
        assert record is not None
        assert self.welcome is not None
        if self.over:
            return
        if lanes is None:
            detail = "a data connection before ACCEPT, or of a session without any"
            raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, "STR-4", record)
        check_sender(record.type, OTHER[sender])
        match record:
            case Attach():
                lanes.attach(record, frame.header.stream, self.welcome)
            case Attached():
                lanes.attached(record, frame.header.stream)
            case Pages() if self._is_ahead(record):
                lanes.passed(frame)
                lanes.keep(lanes.early, Waiting(sender, frame, now, blame))
            case Pages():
                lanes.passed(frame)
                self._say(sender, record, frame)
            case Abort():
                pass  # it ends this connection; what it means for the session is said there
            case _:
                raise wrong(ErrorCode.UNEXPECTED_FRAME, "on a data connection", "STR-3", record)
        self._go_on(lanes)

    # ---- what has to wait ----

    def _take_turn(self, waiting: Waiting, record: Record) -> None:
        lanes = self._lanes
        late = lanes is not None and (lanes.put_off or (isinstance(record, RoundEnd) and lanes.lacks(record)))
        if lanes is not None and late:
            if waiting.sender is Sender.DESTINATION:
                detail = f"{record.type.name} before the pages that ROUND_END counts"
                raise BreachError("RND-4", detail, record.type)
            lanes.keep(lanes.put_off, waiting)
            return
        self._say(waiting.sender, record, waiting.frame)
        if isinstance(record, Welcome):
            self._select(waiting.now)
        if lanes is not None and isinstance(record, Round) and self.image is not None:
            for early in lanes.due(self._attempt, self.image.round.number):
                self._say_late(early)

    def _go_on(self, lanes: Lanes) -> None:
        """What the lanes have reached may be acted on."""
        while lanes.put_off:
            first = lanes.put_off[0].frame.record
            if isinstance(first, RoundEnd) and lanes.lacks(first):
                return
            self._say_late(lanes.put_off.popleft())

    def _say_late(self, waiting: Waiting) -> None:
        record = waiting.frame.record
        assert record is not None
        try:
            self._say(waiting.sender, record, waiting.frame)
        except (RemoteProtocolError, BreachError, TooMuchError) as error:
            self.over = True  # the first thing that is wrong counts
            waiting.blame(error)

    def _say(self, sender: Sender, record: Record, frame: Frame) -> None:
        if self._lanes is not None:
            self._check_stream(self._lanes, record, frame)
        self._move(sender, record)
        self._check_content(record, frame)

    def _check_stream(self, lanes: Lanes, record: Record, frame: Frame) -> None:
        if isinstance(record, Round) and not lanes.all_attached:
            raise BreachError("STR-2", "ROUND before ATTACHED on each data connection", record.type)
        if isinstance(record, Pages) and not frame.header.stream and not self._running:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "on the control connection", "STR-1", record)

    def _is_ahead(self, record: Pages) -> bool:
        return (
            self.image is not None
            and not self._running
            and is_ahead(record, self._attempt, self.image.round.number)
        )

    # ---- whose turn it is ----

    def _move(self, sender: Sender, record: Record) -> None:
        if isinstance(record, Round) and record.attempt == self._attempt + 1 and self.image is not None:
            self._take_back(self.image, record)
            return
        self._check_attempt(sender, record)
        receiver = OTHER[sender]
        if isinstance(record, Attach) and self.hello is None:
            raise TooMuchError("a data connection, of a session that began on another connection")
        if isinstance(record, Refuse) and self.hello is None:
            self.over = True  # whom a destination does not want it need not hear first [CON-8]
            return
        if not self.places[receiver].hears(record.type):
            where = f"{record.type.name} while the {receiver.name.lower()} is: {self.places[receiver].name}"
            raise wrong(ErrorCode.UNEXPECTED_FRAME, where, "CON-3", record)
        check_selected(record.type, self._features)
        if isinstance(record, Refuse):
            self.over = True
        else:
            self.places[sender].sends(record.type)  # it may: the tables of both sides agree

    def _check_attempt(self, sender: Sender, record: Record) -> None:
        if is_of_old_attempt(record, self._attempt):
            # Its receiver ignores it, and waits for one that will not come.
            clause = "CON-23" if sender is Sender.SOURCE else "CON-25"
            detail = f"{record.type.name} of an attempt before the current one, {self._attempt}"
            raise wrong(ErrorCode.BAD_ATTEMPT, detail, clause, record)

    def _take_back(self, image: Image, record: Round) -> None:
        """The source has taken the attempt back, which it may until HANDOVER has left [CON-58]."""
        if not self.places[Sender.DESTINATION].voids():
            where = f"a new attempt while the destination is: {self.places[Sender.DESTINATION].name}"
            raise wrong(ErrorCode.BAD_ATTEMPT, where, "CON-23", record)
        self.places[Sender.SOURCE].takes_back()
        self._attempt += 1
        image.take_back()

    def _beat(self, sender: Sender, record: Ping | Pong | Progress, now: float) -> None:
        if self.welcome is None:
            raise BreachError("CON-2", f"{record.type.name} before WELCOME", record.type)
        mine, other = self._beats[sender], self._beats[OTHER[sender]]
        match record:
            case Ping():
                mine.asked(record)
            case Pong():
                other.check_answer(record)
            case _:
                mine.check_progress(record, now)

    # ---- what it says ----

    def _check_content(self, record: Record, frame: Frame) -> None:
        match record:
            case Hello():
                self.hello = record
            case Welcome():
                self._on_welcome(record)
            case Guest():
                self._on_guest(record)
            case Accept():
                self._on_accept(record)
            case Switchover():
                assert self.image is not None
                self.image.switch(record, self._styles)
            case NotReady():
                self._attempt += 1
            case Loaded() | Complete():
                self._check_digest(record)
            case Handover():
                self._check_epoch(record, 0, "HND-1")
            case Running():
                self._check_epoch(record, 1, "RUN-1")
                self._running = True
            case HandBack():
                self._check_epoch(record, 1, "HND-2")
            case Release():
                self._check_epoch(record, 1, "CMP-4")
            case _ if self.image is not None:
                self._check_image(self.image, record, frame)
            case _:
                pass  # REFUSE, and BYE, say nothing that could be wrong

    def _check_image(self, image: Image, record: Record, frame: Frame) -> None:
        match record:
            case Round():
                last = DestinationState.BLACKOUT in self.places[Sender.DESTINATION].states
                image.begin(record, last=last)
            case Pages() if self._running:
                image.follow(record, frame)
            case Pages():
                image.take(record, frame)
            case DirtyBitmap():
                image.declare(record)
            case PageRequest():
                image.request(record)
            case RoundEnd():
                image.end(record, self._limits[Sender.SOURCE])
            case RoundAck():
                image.acknowledge(record)
            case State():
                image.state(record)
            case Seal():
                image.seal(record)
            case _:
                pass

    def _on_welcome(self, record: Welcome) -> None:
        hello = self.hello
        assert hello is not None  # or it would not be the destination's turn
        if hello.mode is Mode.RESUME:
            raise TooMuchError("a session that is taken up again, and that began on another connection")
        if hello.mode is not Mode.OPEN:
            detail = f"a session of mode {hello.mode.name.lower()}"
            raise wrong(ErrorCode.UNSUPPORTED, detail, "CON-10", record)
        if record.session == NO_ID or record.generation or record.complete_round or record.held_frames:
            raise wrong(ErrorCode.BAD_VALUE, "a WELCOME of mode resume", "WEL-4", record)
        selection = check_welcome(hello, record)
        check_batch(selection)
        self._styles = selected_styles(selection)
        self._features = dict(selection.features)
        self._limits[Sender.DESTINATION] = selection.limits
        self._limits[Sender.SOURCE] = usable_limits(hello.limits, FrameType.HELLO)
        self.welcome = record

    def _select(self, now: float) -> None:
        assert self.welcome is not None
        for beats in self._beats.values():
            beats.progress.select({each.id: each.parameter for each in self.welcome.features}, now)

    def _on_guest(self, record: Guest) -> None:
        self._guest = record
        try:
            check_room(record, self._limits[Sender.DESTINATION])
        except LocalProtocolError as error:
            raise wrong(error.code, error.detail, error.clause, record) from error

    def _on_accept(self, record: Accept) -> None:
        assert self._guest is not None
        if record.data_streams > self._features.get(Feature.DATA_STREAMS, 0):
            raise wrong(ErrorCode.NOT_SELECTED, "more data streams than were selected", "ACC-3", record)
        if record.data_streams:
            self._lanes = Lanes(record.data_streams, self._share)
        limits = self._limits[Sender.DESTINATION]
        image = Image(self._guest, limits, self._share, hashed=Feature.UNHASHED not in self._features)
        if record.reserved_bytes < image.table.size_bytes:
            detail = f"{record.reserved_bytes} bytes reserved of {image.table.size_bytes}"
            raise wrong(ErrorCode.BAD_VALUE, detail, "CON-17", record)
        self.image = image

    def _check_digest(self, record: Loaded | Complete) -> None:
        if isinstance(record, Complete):
            self._check_epoch(record, 1, "CMP-4")
        assert self.image is not None
        if isinstance(record, Complete) and self.image.pages_missing:
            raise BreachError("CON-57", "COMPLETE before the last page has followed", record.type)
        if record.digest != self.image.digest:
            code, clause = ErrorCode.DIGEST_MISMATCH, "CON-53"
            if isinstance(record, Complete):
                code, clause = ErrorCode.MEMORY_MISMATCH, "CMP-1"
            detail = f"{record.digest.hex()} instead of {self.image.digest.hex()}"
            raise wrong(code, detail, clause, record)

    def _check_epoch(
        self, record: Handover | HandBack | Running | Complete | Release, more: int, clause: str
    ) -> None:
        assert self.hello is not None
        check_epoch(record, self.hello.epoch + more, clause)


class _Beats:
    """PING, PONG and PROGRESS of one side."""

    def __init__(self) -> None:
        self.progress: Final = Heartbeat()
        self._last: Progress | None = None
        self._unanswered: Counter[int] = Counter()
        self._lost_count = False

    def asked(self, record: Ping) -> None:
        """It has sent a PING."""
        self._unanswered[record.id] += 1
        if len(self._unanswered) > PINGS_MAX:
            self._unanswered.clear()
            self._lost_count = True

    def check_answer(self, record: Pong) -> None:
        """The other side has answered one.

        Raises:
            RemoteProtocolError: UNSOLICITED.
        """
        if self._unanswered[record.id] > 1:
            self._unanswered[record.id] -= 1
        elif not self._unanswered.pop(record.id, 0) and not self._lost_count:
            detail = f"PONG {record.id} without PING"
            raise remote_error(ErrorCode.UNSOLICITED, detail, clause="PNG-2", frame=FrameType.PONG)

    def check_progress(self, record: Progress, now: float) -> None:
        """It has told its progress.

        Raises:
            RemoteProtocolError: NOT_SELECTED, or LIMIT_RATE.
            BreachError: it runs backwards.
        """
        self.progress.heard_progress(now)
        last, self._last = self._last, record
        if last is not None and (record.round < last.round or record.bulk_bytes < last.bulk_bytes):
            detail = f"PROGRESS of round {record.round} and {record.bulk_bytes} bytes after {last.round}"
            raise BreachError("CON-80", f"{detail} and {last.bulk_bytes}", record.type)
