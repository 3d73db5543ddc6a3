"""A destination's session, as far as it outlives connections and attempts: taken up again, taken back, kept.

The room, its pages, their entries and rounds belong to the session, and are what a carry is made of. State,
an open round and requests under way belong to the attempt or to the connection, and end with these. A
resumption that cannot be admitted must not touch what is kept: until the host has given the carry there is
nothing here that could be freed, and from then on a failure gives it back [RES-4].
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import cast

from sterna.core.bitmap_frames import held_frames
from sterna.core.carry import DestinationCarry, Ticket
from sterna.core.conduct import wrong
from sterna.core.events import Admission, Installed, Outcome, Persist, Readmit, Request, SessionResumed
from sterna.core.fetching import Fetching
from sterna.core.following import Following
from sterna.core.holdings import Holdings
from sterna.core.lanes import Lane
from sterna.core.rounds import IncomingRound
from sterna.core.session import Config, Session
from sterna.core.state import StateAssembler
from sterna.core.style import selected_styles
from sterna.core.tables import DESTINATION, DestinationInput, DestinationState
from sterna.errors import RemoteProtocolError, SternaError
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink
from sterna.memory.regions import RegionTable
from sterna.registry import ErrorCode, FrameType, Sender
from sterna.wire.records import Guest, Held, Hello, Refuse, Round, Runner, Verdict


class Readmission(Session):
    """The part of a destination's machine that knows what is left of a session when its link is lost."""

    def __init__(self, config: Config, now: float) -> None:
        super().__init__(
            config,
            now,
            role=Sender.DESTINATION,
            table=DESTINATION,
            idle=DestinationState.IDLE,
            lost=DestinationInput.LOST,
            cut=DestinationInput.LINK_LOST,
        )
        self._hello: Hello | None = None
        self._admission: Admission | None = None
        self._guest: Guest | None = None
        self._sink: PageSink | None = None
        self._regions = RegionTable(())
        self._digest = MemoryDigest(self._regions)
        self._states = StateAssembler(0, 0, 0)
        self._round = IncomingRound(0, self._regions, now, last=False)
        self._holdings = Holdings(self._regions)
        self._bulk_bytes = 0
        self._sealed = b""
        self._ticket: Ticket | None = None
        self._held: deque[Held] = deque()  # what a resumption is still to be told
        self._carry: DestinationCarry | None = None
        self._follows = Following(self._regions)
        self._fetching: Fetching | None = None  # once the guest runs, and until it lacks nothing any more
        self._void: tuple[Request, ...] = ()  # of an attempt that is over; answers mean nothing

    @property
    def digest(self) -> bytes:
        """Memory digest of the pause image; empty before SEAL."""
        return self._sealed

    @property
    def ticket(self) -> Ticket | None:
        """What the session can be taken up again with; None before WELCOME."""
        return self._ticket

    @property
    def position(self) -> tuple[int, int] | None:
        """Attempt and round of pages that follow the guest [PCY-8]; None if none does, or not yet."""
        fetching = self._follows.fetching
        return None if fetching is None else fetching.position

    @property
    def runner(self) -> Runner:
        """Who will run the guest here, once the host has let it in."""
        assert self._admission is not None
        return self._admission.runner

    @property
    def carry(self) -> DestinationCarry:
        """What the next machine goes on with, of one that ended as SUSPENDED or PARTED."""
        assert self._state in {DestinationState.SUSPENDED, DestinationState.PARTED}
        assert self._carry is not None
        return self._carry

    # ---- attempts ----

    def _begins_attempt(self, record: Round) -> bool:
        """Whether a ROUND begins an attempt that this side does not know of [CON-58] [RES-8]."""
        if self._state is DestinationState.RESUMED:
            return record.attempt >= self._attempt
        begins = record.attempt == self._attempt + 1
        return begins and (self._state, DestinationInput.NEW_ATTEMPT) in DESTINATION

    def _on_new_attempt(self, record: Round, now: float) -> None:
        """What the attempt before it was about to do is void; the pages stay [CON-59] [CON-60]."""
        back = self._state is DestinationState.RESUMED
        late = record.round <= self._round.number
        if late or (record.round != self._round.number + 1 and not back):
            detail = f"round {record.round} after {self._round.number}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "RES-8" if back else "CON-20", record)
        self._step(FrameType.ROUND if back else DestinationInput.NEW_ATTEMPT, now)
        self._attempt = record.attempt
        self._sealed = b""
        self._expect_state()
        self._void = self._requests.taken
        self._requests.withdraw()
        self._open_round(record, now)

    def _is_void(self, request: Request) -> bool:
        """Whether nothing hangs on its answer: its attempt is over, or it will be asked for again."""
        return request in self._void or (isinstance(request, Persist) and request.early)

    def _expect_state(self) -> None:
        """None of it has come."""
        assert self._guest is not None
        limits, guest = self._config.limits, self._guest
        most_bytes = min(limits.state_bytes, guest.state_bytes)
        self._states = StateAssembler(most_bytes, limits.state_sections, guest.vcpus)

    # ---- connections ----

    def _on_readmitted(self, answer: object, now: float) -> None:
        """The session goes on where it was, less the round that was open [RES-5] [RES-6]."""
        if isinstance(answer, Verdict):  # it was handed over here [RES-15]
            self._on_answered(answer, now)
            return
        carry, hello = cast("DestinationCarry", answer), self._hello
        assert hello is not None
        self._adopt(carry, now)
        try:
            carry.ticket.check_hello(hello)
        except RemoteProtocolError as error:  # the host has let in what it should not
            self._fail(error, now, words=self._refusal(error))
            return
        self._ticket = carry.ticket.of_generation(hello.generation)
        selection = carry.ticket.selection
        self._held.extend(self._frames_held(selection.limits.control_bytes))
        complete = self._holdings.complete
        self._send(carry.ticket.next_welcome(hello, complete, len(self._held)))
        runs = carry.fetching is not None
        self._step(DestinationInput.REJOINED if runs else DestinationInput.ADMITTED, now)
        self._welcomed(selection, now)
        self._described(carry.guest.regions)
        self._account.taken_up()
        missing = self._digest.stale_pages
        self._emit(SessionResumed(self._account.resumed, complete, missing))
        if carry.fetching is not None and carry.fetching.is_complete:
            # The process before has installed the last page, and not come to say so.
            while self._held:
                self._send(self._held.popleft())
            self._all_installed(now)

    def _frames_held(self, control_bytes: int) -> Iterator[Held]:
        """After RUNNING: the pages that were installed, under the number that PAGES carry [RES-13]."""
        if self._fetching is None:
            return self._holdings.frames(control_bytes)
        return held_frames(self._holdings.newest + 1, self._fetching.held(), control_bytes, rejected=False)

    def _adopt(self, carry: DestinationCarry, now: float) -> None:
        self._ticket = carry.ticket
        self._guest, self._sink, self._admission = carry.guest, carry.sink, carry.admission
        lost, self._account = self._account, carry.account
        if lost.error is not None:
            self._account.failed(lost.error, lost.failed_in)
        self._attempt = carry.attempt
        self._regions, self._digest, self._holdings = carry.digest.table, carry.digest, carry.holdings
        self._bulk_bytes = carry.bulk_bytes
        # With a style in which pages follow, an attempt before may have made the guest wait for some.
        self._follows = Following(self._regions, held=bool(selected_styles(carry.ticket.selection)))
        self._round = IncomingRound(carry.holdings.newest, self._regions, now, last=False)
        self._expect_state()
        self._fetching, self._sealed = carry.fetching, carry.sealed
        self._lanes.marks = carry.marks
        if carry.fetching is not None:
            self._follows.fetching = carry.fetching
            carry.fetching.ask_again()

    def _do_not_readmit(self, error: SternaError, now: float) -> None:
        self._account.failed(error, self.phase)
        self._send(self._refusal(error))
        self._over = True
        self._step(DestinationInput.NOT_ADMITTED, now)
        self._finish(Outcome.ROLLED_BACK, now, epoch=self._epoch)

    def _while_suspending(self, request: Request, answer: object, now: float) -> None:
        """What was begun is done, and what it did is void; the room stays [RES-14].

        Not so what is installed while the guest runs: that counts [RES-13].
        """
        if isinstance(request, Installed):
            assert self._fetching is not None
            for pages in request.pages:
                self._fetching.installed(pages)
        if isinstance(request, Readmit) and answer is not None and not isinstance(answer, Verdict):
            self._adopt(cast("DestinationCarry", answer), now)
        self._rest(now)

    def _rest(self, now: float) -> None:
        """Nothing of the session may be under way any more when its carry is given."""
        if self._requests.taken or (self._fetching is not None and self._requests):
            return
        if self._fetching is not None and self._state is DestinationState.SUSPENDING:
            self._step(DestinationInput.REJOINED, now)
        if self._fetching is not None and self._fetching.is_complete:
            self._all_installed(now)
            return
        if self._sink is None:  # the host had found no session yet
            self._step(DestinationInput.NOT_ADMITTED, now)
            self._finish(Outcome.ROLLED_BACK, now, epoch=self._epoch)
            return
        assert self._ticket is not None
        assert self._admission is not None
        assert self._guest is not None
        self._carry = DestinationCarry(
            ticket=self._ticket,
            attempt=self._attempt,
            admission=self._admission,
            guest=self._guest,
            sink=self._sink,
            digest=self._digest,
            holdings=self._holdings,
            account=self._account,
            bulk_bytes=self._bulk_bytes,
            fetching=self._fetching,
            sealed=self._sealed,
            marks={stream: self._lanes.mark(stream) for stream in range(1, self._ticket.streams + 1)},
        )
        self._step(DestinationInput.QUIET, now)
        self._suspend()

    def _more(self, lane: Lane, now: float) -> None:
        if lane.stream:
            return
        if self._held:
            self._send(self._held.popleft())
        if self._fetching is not None:
            self._request_pages(self._fetching, now)

    def _request_pages(self, fetching: Fetching, now: float) -> None:
        while self._may_request and (request := fetching.next_request()) is not None:
            self._step(DestinationInput.FAULTED, now)
            self._send(request)

    @property
    def _may_request(self) -> bool:
        """Behind a resumption the pages that are held come first [RES-13]."""
        return self._state is DestinationState.FETCHING and not self._held

    # ---- for the rest of the machine ----

    @abstractmethod
    def _all_installed(self, now: float) -> None:
        """The guest lacks no page any more."""

    @abstractmethod
    def _open_round(self, record: Round, now: float) -> None:
        """A round begins."""

    @abstractmethod
    def _on_answered(self, answer: object, now: float) -> None:
        """The host answers with a verdict."""

    @abstractmethod
    def _refusal(self, error: SternaError) -> Refuse:
        """What a peer that is not taken is told."""

    @property
    def _epoch(self) -> int:
        return 0 if self._hello is None else self._hello.epoch
