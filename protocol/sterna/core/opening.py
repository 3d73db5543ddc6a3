"""How a source comes to a session: it opens one, takes a lost one up again, or asks what has become of it.

The session outlives connections: memory with its entries and rounds, the ticket to take it up again, and the
account of it are what a carry is made of. What is done in a session is for the machine that is built on this.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from sterna import limits as bounds
from sterna.core.carry import SourceCarry, Ticket
from sterna.core.conduct import wrong
from sterna.core.events import (
    CollectDirty,
    OpenStreams,
    SessionOpened,
    SessionResumed,
    StartTracking,
    StreamAttached,
)
from sterna.core.lanes import Lane
from sterna.core.negotiate import VERSIONS, check_room, check_welcome, offer
from sterna.core.policy import Decision, PolicySettings, with_store
from sterna.core.resuming import HeldReport
from sterna.core.sending import Sending
from sterna.core.serving import Serving
from sterna.core.session import Config, Session
from sterna.core.style import check_batch
from sterna.core.tables import SOURCE, SourceInput, SourceState
from sterna.errors import LocalProtocolError, SternaError
from sterna.memory.pages import PageSource
from sterna.memory.regions import RegionTable
from sterna.registry import ErrorCode, FrameType, Mode, Phase, Sender
from sterna.wire.records import (
    NO_ID,
    NO_RUNNER,
    NO_TOKEN,
    Attach,
    Attached,
    FeatureOffer,
    Guest,
    Held,
    Hello,
    Record,
    Runner,
    Welcome,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig(Config):
    """A migration as its source sees it. `guest_id` and `epoch` name the guest and its newest claim.

    Attributes:
        expected_state_bytes: about what the state will have; None is the most, which GUEST says.
    """

    guest: Guest
    guest_id: bytes
    epoch: int = 0
    runner: Runner = NO_RUNNER
    expected_state_bytes: int | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)
    batch_bytes: int = bounds.LARGE_BATCH_BYTES
    features: tuple[FeatureOffer, ...] = field(default_factory=offer)


class Opening(Session):
    """The part of a source's machine that gets it into a session. Commands: `start`, `ask`."""

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(
            config,
            now,
            role=Sender.SOURCE,
            table=SOURCE,
            idle=SourceState.IDLE,
            lost=SourceInput.LOST,
            cut=SourceInput.LINK_LOST,
        )
        self._job = config
        self._memory = Sending(RegionTable(config.guest.regions), pages)
        self._hello: Hello | None = None
        self._not_ready = 0
        self._sealed = b""
        self._token = NO_TOKEN
        self._decision: Decision | None = None
        self._ticket: Ticket | None = None
        self._report: HeldReport | None = None
        self._serving: Serving | None = None

    @classmethod
    def resumed(cls, config: SourceConfig, pages: PageSource, carry: SourceCarry, now: float) -> Self:
        """A machine that takes up a lost session on a new connection; `start` as ever."""
        machine = cls(config, pages, now)
        machine._ticket, machine._selection = carry.ticket, carry.ticket.selection
        machine._token = carry.ticket.welcome.token
        machine._memory, machine._account = carry.memory, carry.account
        machine._not_ready, machine._decision = carry.not_ready, carry.decision
        machine._sealed, machine._serving = carry.sealed, carry.serving
        machine._lanes.marks = carry.marks
        if carry.moved:
            machine._attempt = carry.attempt  # that of HANDOVER, for ever [PCY-8]
            machine._step(SourceInput.SERVES_ON, now)
        else:
            machine._attempt = carry.attempt + 1  # the loss has ended that one [RES-8]
        return machine

    @property
    def carry(self) -> SourceCarry:
        """What the next machine goes on with, of one that ended as SUSPENDED or PARTED."""
        assert self._state in {SourceState.SUSPENDED, SourceState.PARTED}
        return self._carried()

    def _carried(self) -> SourceCarry:
        assert self._ticket is not None
        return SourceCarry(
            self._ticket,
            self._attempt,
            self._memory,
            self._account,
            self._not_ready,
            self._decision,
            self._serving,
            self._sealed,
            {stream: self._lanes.mark(stream) for stream in range(1, self._ticket.streams + 1)},
            moved=self._state is not SourceState.SUSPENDED,
        )

    @property
    def digest(self) -> bytes:
        """Memory digest of the pause image; empty before SEAL."""
        return self._sealed

    def start(self, now: float, *, store_s: float = 0.0) -> None:
        """Open the session, or take it up again: preface and HELLO.

        Args:
            now: the time.
            store_s: how long the lease store took to answer; the policy counts it. 0 without one.

        Raises:
            LocalProtocolError: it was started already or is over, or the configuration fits no HELLO. Nothing
                has changed.
        """
        self._job = replace(self._job, policy=with_store(self._job.policy, store_s))
        if self._ticket is None:
            self._begin(SourceInput.START, self._greeting(Mode.OPEN), now)
            return
        hello = self._ticket.next_hello()
        self._begin(SourceInput.START_RESUME, hello, now)
        self._ticket = self._ticket.of_generation(hello.generation)

    def give_up(self, error: SternaError, now: float) -> None:
        """Nobody takes the session up again: the guest stays where it runs.

        Without permission to run elsewhere that is here; after RUNNING it is there, and the image is kept.
        """
        self._fail(error, now, tell=False)

    def ask(self, session: bytes, token: bytes, now: float) -> None:
        """Ask who owns the guest, by a session of which HANDOVER may have left [ONE-60].

        The configuration is that of the opening. The guest is not touched.

        Raises:
            LocalProtocolError: as for `start`.
        """
        hello = replace(self._greeting(Mode.VERDICT), session=session, token=token)
        self._begin(SourceInput.START_VERDICT, hello, now)

    def _greeting(self, mode: Mode) -> Hello:
        job, config = self._job, self._config
        limits = config.limits.to_wire()
        return Hello(mode, VERSIONS, job.features, limits, job.guest_id, job.epoch, job.runner, config.agent)

    def _begin(self, what: SourceInput, hello: Hello, now: float) -> None:
        self._require(what)
        self._hello = hello
        self._send(hello)
        self._step(what, now)

    # ---- WELCOME ----

    def _on_welcome(self, record: Welcome, now: float) -> None:
        assert self._hello is not None
        if record.session == NO_ID or record.generation or record.complete_round or record.held_frames:
            raise wrong(ErrorCode.BAD_VALUE, "a WELCOME of mode resume", "WEL-4", record)
        selection = check_welcome(self._hello, record)
        check_room(self._job.guest, selection.limits)
        check_batch(selection)
        self._welcomed(selection, now)
        self._memory.agreed(hashed=selection.hashed)
        self._account.session, self._token = record.session, record.token
        self._ticket = Ticket(self._hello, record, selection)
        self._emit(SessionOpened(record.session, record.agent, record.version, selection.features))
        self._described(self._job.guest.regions)
        try:
            self._send(self._job.guest)
        except LocalProtocolError as error:
            if error.code is not ErrorCode.LIMIT_CONTROL:
                raise
            raise LocalProtocolError(ErrorCode.LIMIT_MISMATCH, error.detail, clause="LIM-6") from error
        self._step(FrameType.WELCOME, now)
        self.ping(now)

    def _on_welcome_back(self, record: Welcome, now: float) -> None:
        ticket = self._ticket
        assert ticket is not None
        if self._state is SourceState.RETURNING and self._serving is None:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "no page was stale", "PCY-21", record)
        ticket.check_welcome(record, ticket.generation)
        if self._state is SourceState.RETURNING:
            self._account.guest_runs(now)  # else it is told who owns the guest [RES-15]
        served = self._memory if self._serving is None else self._serving
        self._report = served.report(record)
        self._welcomed(ticket.selection, now)
        self._described(self._job.guest.regions)
        self._step(FrameType.WELCOME, now)
        self.ping(now)
        self._compare(record, now)

    def _on_held(self, record: Held, now: float) -> None:
        assert self._report is not None
        self._report.add(record)
        self._step(FrameType.HELD, now)
        self._compare(record, now)

    def _compare(self, record: Record, now: float) -> None:
        """With the last HELD it is known what the destination may lack [RES-9]."""
        assert self._report is not None
        if self._report.owed:
            return
        if self._serving is not None:
            self._serving.resume(self._report, record)
            missing = self._serving.pages_owed
        else:
            self._memory.resume(self._report)
            missing = self._memory.pages_missing
        self._account.taken_up()
        assert self._ticket is not None
        streams = self._ticket.streams
        again = streams and self._serving is None
        self._step(SourceInput.STREAMS_GRANTED if again else SourceInput.COMPARED, now)
        self._emit(SessionResumed(self._account.resumed, self._report.complete, missing))
        if streams:
            self._ask(OpenStreams(streams))
        if not again:
            self._go_on()

    # ---- data connections ----

    @property
    def demand_attach(self) -> Attach | None:
        """What a demand connection begins with; None if there can be none, or can be none now [PCY-26].

        Once it has come to its end there is no other, so its generation is the first.
        """
        ticket, opens = self._ticket, self._hello is not None and self._hello.mode is Mode.OPEN
        if ticket is None or not opens or self._is_deaf or self.phase is Phase.DESCRIBE:
            return None
        index = ticket.demand_index
        return None if index is None else Attach(ticket.session, self._token, index, generation=0)

    def _on_streams(self, streams: Iterable[int], now: float) -> None:
        """They are there: each begins with ATTACH [STR-2]."""
        for stream in streams:
            mark = self._lanes.mark(stream)
            lane = Lane(stream, now, mark=replace(mark, generation=mark.generation + 1))
            self._equip(lane)
            lane.outbox.send(Attach(self._account.session, self._token, stream - 1, lane.generation))
            self._lanes.add(lane)

    def _data_frame(self, record: Record, lane: Lane, now: float) -> None:
        if not isinstance(record, Attached):
            super()._data_frame(record, lane, now)
        assert isinstance(record, Attached)
        self._require(FrameType.ATTACHED)
        if lane.attached:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "a second ATTACHED", "STR-3", record)
        if (record.index + 1, record.generation) != (lane.stream, lane.generation):
            raise wrong(ErrorCode.BAD_VALUE, "ATTACHED of another connection", "ATT-6", record)
        if record.last_sequence > lane.sequence:
            detail = f"frame {record.last_sequence} applied, the last one was {lane.sequence}"
            raise wrong(ErrorCode.BAD_VALUE, detail, "ATT-6", record)
        lane.outbox.writer.go_on_from(record.last_sequence + 1)
        self._attached(lane)
        self._step(FrameType.ATTACHED, now)
        self._emit(StreamAttached(lane.stream, lane.generation))
        if self._serving is None and all(each.attached for each in self._lanes.data):
            self._all_attached(now)

    def _all_attached(self, now: float) -> None:
        """Pages may travel on every connection, before RUNNING."""
        before = self._state
        self._step(SourceInput.ATTACHED_ALL, now)
        self._memory.share_out(len(self._lanes.data))
        if before is not SourceState.REPLACING:
            self._ask(StartTracking() if before is SourceState.ATTACHING else CollectDirty())

    @abstractmethod
    def _go_on(self) -> None:
        """The session was taken up again, and what the destination lacks is known."""
