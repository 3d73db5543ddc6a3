"""Data connections at a destination: how one finds its session, and what has to wait for what [9].

A connection tells by its first frame what it is. If that is ATTACH, the machine that was called on it asks
its host for the session, and hands the connection over to the machine that has that: there it becomes a lane.

Lanes know no order among each other. PAGES may come before the ROUND that they are of, and stay unread until
that has come [STR-13]; ROUND_END may come before the pages that it counts, and is put off until the lanes
have reached the numbers that it states [RND-4]. Meanwhile nothing else of the conversation is acted on, but
PING is answered.

A demand connection comes by the same door and becomes no lane: the machine lets it in, and knows nothing of
what is said there. Whatever that is, it brings the session nothing that it waits for [PCY-30] [PCY-31].
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from sterna.core.conduct import wrong
from sterna.core.events import Join, Outcome, Result, StreamAttached
from sterna.core.lanes import Lane, Mark
from sterna.core.refusing import Refusing
from sterna.core.tables import DestinationInput, DestinationState
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire import FrameReceived, FrameWriter, PagesAnnounced
from sterna.wire.framing import Event as WireEvent
from sterna.wire.records import (
    Abort,
    Attach,
    Attached,
    Pages,
    Ping,
    Pong,
    Progress,
    RoundEnd,
)

# The image is sealed: pages come only if some were declared stale, and not all of these have come.
_SEALED: Final = frozenset(
    {
        DestinationState.LOADING, DestinationState.LOADED, DestinationState.RECORDING,
        DestinationState.CLAIMING, DestinationState.COMMITTING, DestinationState.STARTING,
        DestinationState.HANDING_BACK, DestinationState.FETCHING, DestinationState.COMPLETING,
        DestinationState.RUNNING, DestinationState.RELEASED,
    }
)  # fmt: skip


class Joining(Refusing):
    """The part of a destination's machine that knows of data connections."""

    _attach: Attach | None = None
    _put_off: RoundEnd | None = None  # until the lanes have reached what it states
    _demand = Mark()  # of the newest demand connection

    # ---- of the machine that is called ----

    @property
    def door(self) -> tuple[Attach, Lane]:
        """Of a machine that ended as JOINED: what its session's machine is to `join`."""
        assert self._state is DestinationState.JOINED
        assert self._attach is not None
        return self._attach, self._lanes.control

    @property
    def called(self) -> Lane:
        """The connection that it was called on."""
        return self._lanes.control

    def _on_attach(self, record: Attach, now: float) -> None:
        self._attach = record
        self._step(FrameType.ATTACH, now)
        self._ask(Join(record))

    @property
    def _reads_on(self) -> bool:
        """What follows ATTACH is for the session's machine."""
        return self._state is not DestinationState.JOINING

    def _on_joined(self, now: float) -> None:
        self._step(DestinationInput.JOINED, now)
        self._result = Result(Outcome.JOINED)

    # ---- of the session's machine ----

    def is_demand(self, attach: Attach) -> bool:
        """Whether it is a demand connection that begins so: one to `join_demand`, and not to `join`."""
        return self._ticket is not None and attach.index == self._ticket.demand_index

    def check_join(self, attach: Attach, door: Lane) -> None:
        """Whether a connection may join this session. Who comes with it is for the host [STR-4].

        Raises:
            SternaError: why not; nothing has changed, here or on the connections that are there.
        """
        if self._is_deaf or self._ticket is None:
            raise LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session", clause="ATT-3")
        stream = door.reader.stream or 0
        if self.is_demand(attach):
            self._ticket.check_attach(attach, stream, self._demand)
            if self._sink is None or self._ticket.generation:
                detail = "a demand connection before ACCEPT, or of a session that was resumed"
                raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, "PCY-26", attach)
        else:
            self._ticket.check_attach(attach, stream, self._lanes.mark(stream))
            resumed = self._ticket.generation > 0
            joins = DestinationInput.STREAM_REJOINS if resumed else DestinationInput.STREAM_JOINS
            self._require(joins, FrameType.ATTACH)
        if not door.reader.is_drained:
            raise wrong(ErrorCode.BAD_SEQUENCE, "a frame between ATTACH and ATTACHED", "ATT-5", attach)

    def join(self, attach: Attach, door: Lane, now: float) -> int:
        """A data connection is this session's now; its number. An older one of that number is gone [STR-6].

        Raises:
            SternaError: as for `check_join`.
        """
        assert not self.is_demand(attach)
        self.check_join(attach, door)
        stream = attach.index + 1
        applied = self._lanes.mark(stream).sequence
        door.outbox.writer = FrameWriter(stream=stream)
        mark = Mark(attach.generation, applied)
        lane = Lane(stream, now, reader=door.reader, outbox=door.outbox, mark=mark)
        if self._fetching is not None:
            self._fetching.drop(stream)
        self._account.bytes_received += door.received_bytes
        lane.reader.go_on_from(applied + 1)
        self._equip(lane)
        lane.outbox.send(Attached(attach.index, attach.generation, applied))
        self._lanes.add(lane)
        self._attached(lane)
        self._emit(StreamAttached(stream, attach.generation))
        return stream

    def join_demand(self, attach: Attach, door: Lane, now: float) -> int:
        """A demand connection may be used as soon as what is queued has left; its number [PCY-26].

        Nothing of it concerns this machine any more. An older one has to be closed [STR-6].

        Raises:
            SternaError: as for `check_join`.
        """
        assert self.is_demand(attach)
        self.check_join(attach, door)
        self._demand = Mark(attach.generation)
        self._account.bytes_received += door.received_bytes
        stream = attach.index + 1
        door.outbox.writer, door.left = FrameWriter(stream=stream), now
        door.outbox.send(Attached(attach.index, attach.generation, 0))
        return stream

    @property
    def _streams(self) -> int:
        return 0 if self._ticket is None else self._ticket.streams

    @property
    def _needs_data_lanes(self) -> bool:
        fetching = self._follows.fetching
        return self._state not in _SEALED or (fetching is not None and not fetching.is_complete)

    # ---- order ----

    def _must_wait(self, event: WireEvent, lane: Lane) -> bool:
        if lane.stream:
            return isinstance(event, PagesAnnounced) and self._is_ahead(event.record)
        if self._put_off is None or not isinstance(event, FrameReceived):
            return False
        return not isinstance(event.record, Ping | Pong | Progress | Abort)

    def _is_ahead(self, table: Pages) -> bool:
        """Whether its ROUND is still to come [STR-13]."""
        if self.phase is Phase.AFTER or table.attempt < self._attempt:
            return False
        return table.attempt > self._attempt or table.round > self._round.number

    def _end_round(self, record: RoundEnd, now: float) -> None:
        """Act on ROUND_END, as soon as that may be done."""
        self._put_off = record if self._lacks(record) else None
        if self._put_off is None:
            self._on_round_end(record, now)

    def _lacks(self, record: RoundEnd) -> bool:
        """Whether a data connection has not reached its number. Another may be stated, but never comes."""
        return any(
            stream and stream in self._lanes and self._lanes[stream].sequence < sequence
            for stream, sequence in record.last_sequences
        )

    def _pages_have_come(self, now: float) -> None:
        """What was put off may be due."""
        if self._put_off is not None:
            self._end_round(self._put_off, now)

    @abstractmethod
    def _on_round_end(self, record: RoundEnd, now: float) -> None:
        """All pages of the round are there that were announced."""
