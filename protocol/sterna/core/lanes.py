"""The connections of a session, and what is known of each: frames in and out, and what has to wait.

A *lane* is one of them. Lane 0 is the control connection; the others, 1 to 16, carry PAGES and nothing else
[STR-1] [STR-3]. Lanes know no order among each other, so a frame may come before what it belongs to has come
on another lane. It is then *held*: the lane is read no further until its time has come [STR-13] [RND-4].

A data lane comes and goes with its connection, and its numbers go on: its `Mark` outlives it [HDR-6].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sterna.core.negotiate import Selection
from sterna.core.outbox import Outbox
from sterna.limits import Limits
from sterna.wire import FrameReader
from sterna.wire.framing import Event as WireEvent
from sterna.wire.records import Region


@dataclass(frozen=True, slots=True)
class Mark:
    """What is left of a data lane when its connection is gone.

    Attributes:
        generation: of its newest connection, -1 before the first.
        sequence: source: of the last frame that it queued; destination: of the last that it applied or
            skipped. ATTACH does not count [ATT-4].
    """

    generation: int = -1
    sequence: int = 0


class Lane:
    """One connection.

    Attributes:
        stream: its number.
        reader: what comes.
        outbox: what goes.
        held: an event whose time has not come; nothing behind it is read.
        waited: more was not queued the last time, because something was queued already.
        received_bytes: all that has come.
        left: when the connection last took a byte, or was given one while it had none.
        generation, sequence: see `Mark`.
        attached: whether pages may go on it.
    """

    def __init__(
        self,
        stream: int,
        now: float,
        *,
        reader: FrameReader | None = None,
        outbox: Outbox | None = None,
        mark: Mark = Mark(),
    ) -> None:
        self.stream = stream
        self.reader = FrameReader(stream=stream) if reader is None else reader
        self.outbox = Outbox(stream=stream) if outbox is None else outbox
        self.held: WireEvent | None = None
        self.waited = False
        self.left = now
        self.received_bytes = 0
        self.generation, self.sequence = mark.generation, mark.sequence
        self.attached = False

    @property
    def mark(self) -> Mark:
        """What the next connection of this number begins with."""
        return Mark(self.generation, self.sequence)

    def equip(self, own: Limits, selection: Selection) -> None:
        """What the two sides have agreed on."""
        self.reader.set_limits(own)
        self.reader.set_encodings(selection.encodings, hashed=selection.hashed)
        self.outbox.writer.set_limits(selection.limits)
        self.outbox.writer.set_encodings(selection.encodings, hashed=selection.hashed)

    def describe(self, regions: Iterable[Region]) -> None:
        """The regions that page tables are held to."""
        by_id = {region.id: region for region in regions}
        self.reader.set_regions(by_id)
        self.outbox.writer.set_regions(by_id)

    def forget(self) -> None:
        """Let go of guest memory: of the places to read into, and of pages that were to be sent."""
        self.reader, self.held = FrameReader(stream=self.stream), None
        if self.stream:
            self.outbox.disconnect()


class Lanes:
    """Those of one session, by number. The control connection is there from the start.

    Attributes:
        control: the control connection.
        marks: of data connections that are gone.
    """

    def __init__(self, control: Lane) -> None:
        self.control = control
        self.marks: Mapping[int, Mark] = {}
        self._by_stream = {control.stream: control}
        self._sent_bytes = 0  # on data connections that are gone

    def __iter__(self) -> Iterator[Lane]:
        return iter(tuple(self._by_stream.values()))

    def __contains__(self, stream: int) -> bool:
        return stream in self._by_stream

    def __getitem__(self, stream: int) -> Lane:
        return self._by_stream[stream]

    def get(self, stream: int) -> Lane | None:
        """A lane, None if there is no such connection (any more)."""
        return self._by_stream.get(stream)

    def add(self, lane: Lane) -> None:
        """A connection has come; one that had the number before is gone."""
        self.remove(lane.stream)
        self._by_stream[lane.stream] = lane

    def remove(self, stream: int) -> None:
        """A data connection is gone."""
        lane = self._by_stream.pop(stream, None)
        if lane is not None:
            self._sent_bytes += lane.outbox.sent_bytes
            self.marks = {**self.marks, stream: lane.mark}

    def mark(self, stream: int) -> Mark:
        """Of the newest connection that had this number."""
        lane = self.get(stream)
        return self.marks.get(stream, Mark()) if lane is None else lane.mark

    @property
    def data(self) -> list[Lane]:
        """The data connections."""
        return [lane for lane in self if lane.stream]

    @property
    def sent_bytes(self) -> int:
        """What has left, on all of them."""
        return self._sent_bytes + sum(lane.outbox.sent_bytes for lane in self)

    @property
    def has_unsent(self) -> bool:
        """Whether something waits to leave."""
        return any(lane.outbox.has_unsent for lane in self)

    @property
    def stalled_since(self) -> float | None:
        """Of the connections that have bytes to take, when the slowest last took one; None without any."""
        since = None
        for lane in self._by_stream.values():
            if lane.outbox.in_flight_bytes and (since is None or lane.left < since):
                since = lane.left
        return since
