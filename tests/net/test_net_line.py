"""Migrations over several connections: every one is a pair of memory transports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from endpoint_support import PARAMETERS
from net_support import receive_exactly
from resume_net_support import NAMES, Resuming
from trio.abc import Clock
from trio.testing import wait_all_tasks_blocked

from sterna.core import shares
from sterna.core.events import Outcome, StreamAttached, Suspended
from sterna.errors import TransportError
from sterna.net import line as lines
from sterna.net import streams as net_streams
from sterna.net.kept import KeptSession
from sterna.net.line import HURRY_BYTES, LITTLE_BYTES, UNIT_BUFFERS, Line
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.rate import RateLimiter
from sterna.registry import ErrorCode

NEVER = 1 << 40


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    return autojump_clock


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * 4096)


def migration(streams: int | None, **changes) -> Resuming:
    options = {"streams": streams}
    return Resuming(
        **{"cuts": (NEVER,), "source_options": dict(options), "destination_options": dict(options)} | changes
    )


@pytest.mark.parametrize("streams", [1, 4])
async def test_a_migration_over_data_connections(virtual_time, streams):
    """[STR-1] [STR-2] [same-memory]"""
    moved = await migration(streams).run()
    moved.check_moved()
    moved.check_moved()
    attached = [event for event in moved.events if isinstance(event, StreamAttached)]
    assert sorted(event.stream for event in attached) == list(range(1, streams + 1))
    assert [other.result.outcome for other in moved.others] == [Outcome.JOINED] * streams
    assert all(other.took_up for other in moved.others)


@pytest.mark.parametrize(("rtt_s", "count"), [(None, 0), (0.01, 3)])
async def test_both_sides_leave_the_number_to_the_link(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch, rtt_s: float | None, count: int
) -> None:
    monkeypatch.setattr(net_streams, "window_bytes", lambda: 4 << 20)
    monkeypatch.setattr(MemoryTransport, "rtt_s", rtt_s)
    moved = await migration(None).run()
    moved.check_moved()
    assert len(moved.others) == moved.source.result.streams == count


async def test_connections_that_are_worn_out_are_replaced_in_the_middle_of_a_round(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[TLS-18] [STR-12] [STR-6] Each by itself, again and again, and nothing is sent once more for it."""
    error = TransportError(ErrorCode.UNSUPPORTED, "the key is used up")
    worn = property(lambda self: error if self.bytes_sent > 100_000 else None)
    monkeypatch.setattr(MemoryTransport, "worn", worn)
    options = {"streams": 2, "batch_bytes": 16384}
    moved = await migration(2, parameters=replace(PARAMETERS, pages=192), source_options=options).run()
    moved.check_moved()
    assert moved.source.result.resumed == moved.destination.result.resumed == 0
    assert moved.source.result.bytes_sent < 2 * 192 * 4096
    attached = [event for event in moved.events if isinstance(event, StreamAttached)]
    newest = {event.stream: event.generation for event in attached}
    assert min(newest.values()) > 1
    assert len(moved.others) == sum(newest.values()) + 2
    assert [other.result.outcome for other in moved.others] == [Outcome.JOINED] * len(moved.others)
    assert all(near.closed for near in moved.nears)


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_data_connection_that_is_cut(virtual_time: Clock, stream: int) -> None:
    """[STR-14] [STR-5] [STR-15]"""
    cuts = [NEVER] * 3
    cuts[stream] = 60_000
    moved = await migration(2, cuts=(*cuts, NEVER)).run()
    moved.check_moved()
    assert moved.source.result.resumed == moved.destination.result.resumed == 1
    assert [other.result.outcome for other in moved.others].count(Outcome.JOINED) == 4


async def test_a_receiver_that_is_slower_for_minutes(virtual_time: Clock) -> None:
    """Nobody keeps more than a batch of each connection for it [CON-77]."""
    streams, batch_bytes = 4, 16384
    options = {"streams": streams, "batch_bytes": batch_bytes, "grease": False}
    moved = migration(
        streams,
        parameters=replace(PARAMETERS, pages=384),
        rate_bytes_s=0,
        source_options=options,
        link={"identities": NAMES, "rate_bytes_s": 2e3, "capacity_bytes": 8192},
    )
    waiting: list[int] = []

    async def watch() -> None:
        await trio.sleep(1.0)
        while len(moved.results) < 2:
            lanes = [lane for side in (moved.source, moved.destination) for lane in side._machine._lanes]
            waiting.append(sum(lane.outbox.queued_bytes - lane.outbox.sent_bytes for lane in lanes))
            await trio.sleep(1.0)

    await moved.run(watch)
    moved.check_moved()
    assert moved.seconds > 180
    assert batch_bytes < max(waiting) < (streams + 1) * 1.1 * batch_bytes


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_stream_that_stands_still_beside_fast_ones(virtual_time: Clock, resumes: bool) -> None:
    """[CON-77] [STR-14] The others do not hide it, and what they have brought is not sent once more."""
    options = {"streams": 2, "batch_bytes": 16384} | ({} if resumes else {"resume_s": 0})
    moved = migration(
        2,
        parameters=replace(PARAMETERS, pages=192),
        rate_bytes_s=0,
        source_options=options,
        link={"identities": NAMES, "rate_bytes_s": 2e6, "capacity_bytes": 8192},
    )

    async def stall() -> None:
        for _ in range(10_000):
            await trio.sleep(0.001)
            if len(moved.nears) == 2 and moved.nears[1].bytes_sent > 60_000:
                moved.others[1].transport.stall()
                return

    await moved.run(stall)
    if resumes:
        moved.check_moved()
        assert moved.source.result.resumed == 1
        assert moved.source.result.bytes_sent < 1.5 * 192 * 4096
        (lost,) = (event.error for event in moved.events if isinstance(event, Suspended))
    else:
        lost = moved.source.result.error
        assert moved.guest.running
    assert lost.code is ErrorCode.PEER_STALLED, lost


async def test_data_connections_that_cannot_be_made(virtual_time: Clock) -> None:
    """The guest stays, and both sides know why."""
    failed = await migration(3, refuse=1).run()
    assert failed.source.result.outcome is Outcome.ROLLED_BACK
    assert failed.source.result.code is ErrorCode.CONNECT_FAILED
    assert failed.destination.result.code is ErrorCode.CONNECT_FAILED
    assert failed.guest.running


class Taking:
    """A transport that takes a little at once, or what it is told to; and remembers how."""

    def __init__(self) -> None:
        self.worn, self.wears = None, False
        self.between = None
        self.owes = False
        self.takes = True
        self.taken: list[str] = []

    def send_now(self, buffers, on_sent) -> bool:
        if self.takes:
            self.taken.append(f"now {b''.join(buffers)[:9].decode()}")
            on_sent(sum(map(len, buffers)))
        return self.takes

    async def send(self, buffers, on_sent=None) -> None:
        self.owes = False
        self.taken.append(f"sent {b''.join(buffers)[:9].decode()}")


class Talking:
    """A machine that has these units to say, and its driver."""

    limiter: RateLimiter | None = None

    def __init__(self) -> None:
        self.machine = self
        self.is_urgent = True
        self.units: list[bytes] = []
        self.sent = self.looked = 0

    def clock(self) -> float:
        return 0.0

    def poll_transmit(self, now, stream) -> list[bytes]:
        self.looked += 1
        return [self.units.pop(0)] if self.units else []

    def transmitted(self, count, now, stream) -> None:
        self.sent += count

    def took(self) -> None:
        pass

    left = took

    async def make_way(self, until) -> None:
        pass

    def idle(self, stream) -> None:
        pass


async def test_an_idle_sender_is_woken_only_for_something():
    driver, transport = Talking(), Taking()
    line = Line(driver, 0, transport)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.tasks[1])
        await wait_all_tasks_blocked()
        looked = driver.looked
        line.look()
        await wait_all_tasks_blocked()
        assert driver.looked == looked + 1  # here, and no other time by the sender
        driver.units.append(b"something")
        line.look()
        line.look()  # it has what it has to send
        await wait_all_tasks_blocked()
        assert transport.taken == ["sent something"]
        transport.owes = True
        line.look()
        await wait_all_tasks_blocked()
        assert transport.taken == ["sent something", "sent "]
        nursery.cancel_scope.cancel()


async def test_what_is_urgent_and_little_needs_no_turn():
    driver, transport = Talking(), Taking()
    line = Line(driver, 0, transport)
    driver.units.append(b"waits")
    line.hurry()  # the sender is not idle: it may be in the middle of something
    assert transport.taken == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.tasks[1])
        await wait_all_tasks_blocked()
        assert transport.taken == ["sent waits"]
        driver.units += [b"soon", b"next"]
        line.hurry()
        assert (transport.taken[-2:], driver.sent) == (["now soon", "now next"], 8)
        driver.units += [b"more"] * (lines.HURRIES + 2)
        line.hurry()  # others want their turn
        assert len(driver.units) == 2
        line.look()
        await wait_all_tasks_blocked()
        assert driver.units == []
        driver.units.append(bytes(HURRY_BYTES + 1))
        line.hurry()  # too much: the sender has it
        driver.units.append(b"behind")
        line.hurry()
        line.to_send.set()
        await wait_all_tasks_blocked()
        assert transport.taken[-2:] == ["sent " + "\0" * 9, "sent behind"]
        driver.units.append(b"nobody")
        driver.is_urgent = False
        line.hurry()
        line.to_send.set()
        await wait_all_tasks_blocked()
        assert transport.taken[-1] == "sent nobody"
        driver.is_urgent = True
        driver.units.append(b"no room")
        transport.takes, transport.owes = False, True
        line.hurry()
        line.to_send.set()
        await wait_all_tasks_blocked()
        assert transport.taken[-1] == "sent no room"
        transport.owes = True
        line.to_send.set()
        await wait_all_tasks_blocked()
        assert (transport.taken[-1], transport.owes) == ("sent ", False)
        nursery.cancel_scope.cancel()


async def test_a_push_is_looked_up_from_before_it_is_encoded_and_before_it_leaves():
    """What a guest waits for must not wait for either."""
    driver, transport = Talking(), Taking()
    transport.between = lambda: transport.taken.append(f"looked, {driver.looked} encoded")
    line = Line(driver, 1, transport)
    driver.units += [b"pages" * LITTLE_BYTES]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.tasks[1])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert transport.taken[:3] == ["looked, 0 encoded", "looked, 1 encoded", "sent pagespage"]


async def test_little_frames_leave_with_the_one_behind_them():
    driver, transport = Talking(), Taking()
    line = Line(driver, 0, transport)
    much = b"x" * (LITTLE_BYTES + 1)
    driver.units += [b"a", b"b", much, b"c", *([b"d"] * UNIT_BUFFERS)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.tasks[1])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert transport.taken == ["sent abxxxxxxx", "sent c" + "d" * (UNIT_BUFFERS - 1), "sent d"]


async def test_a_unit_that_was_cut_short_does_not_end_properly(virtual_time: Clock) -> None:
    """Cancelled between two parts that a cap has made of it: what has come must not pass for all of it."""
    near, far = memory_transport_pair()
    driver = Talking()
    driver.limiter = RateLimiter(10_000)
    driver.units.append(b"x" * 1000)
    line = Line(driver, 0, near)
    with trio.move_on_after(0.055):
        await line.tasks[1]()
    await near.close()
    assert driver.sent == near.bytes_sent == 500
    with pytest.raises(TransportError):
        await receive_exactly(far, 1000)


@pytest.mark.parametrize("units", [1, 3])
async def test_whole_units_end_properly_under_a_cap(virtual_time: Clock, units: int) -> None:
    near, far = memory_transport_pair()
    driver = Talking()
    driver.limiter = RateLimiter(10_000)
    driver.units += [b"x" * 3000] * units
    line = Line(driver, 0, near)
    with trio.move_on_after(10):
        await line.tasks[1]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.close)
        place, count = memoryview(bytearray(20_000)), 0
        while came := await far.receive_into(place):
            count += came
        await far.close()
    assert count == units * 3000


class Hearing(Taking):
    """A transport that hears these, the empty one meaning that it has to be asked in the other way."""

    def __init__(self, *heard: bytes | None) -> None:
        super().__init__()
        self.heard = list(heard)

    async def until_heard(self) -> bool:
        await trio.lowlevel.checkpoint()
        return bool(self.heard)

    def receive_now(self, view: memoryview) -> int | None:
        data = self.heard.pop(0)
        if data is not None:
            view[: len(data)] = data
        return None if data is None else len(data)

    async def receive_into(self, view: memoryview) -> int:
        self.taken.append("asked")
        return 0


class Heard(Talking):
    """A machine that takes all that comes, and wants a look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.kicks = False, 0
        self.came: list[bytes] = []
        self.place = memoryview(bytearray(64))

    def is_held(self, stream: int) -> bool:
        return self.held

    def owed_bytes(self, stream: int) -> int:
        return 0

    def get_buffer(self, stream: int) -> memoryview:
        return self.place

    def get_buffers(self, stream: int) -> list[memoryview]:
        return [self.place]

    def buffer_updated(self, count: int, now: float, stream: int) -> bool:
        self.came.append(bytes(self.place[:count]))
        return True

    def kick(self, stream: int) -> None:
        self.kicks += 1

    def lost(self, line: Line, error: object) -> None:
        assert error is None


async def test_what_has_come_is_taken_at_once():
    driver, transport = Heard(), Hearing(b"request", None)
    line = Line(driver, 0, transport)
    line.is_prompt = True
    assert line.take_now() == 7
    assert (driver.came, driver.kicks) == ([b"request"], 1)
    assert line.take_now() is None
    driver.held, transport.heard = True, [b"later"]
    assert line.take_now() is None
    driver.held = False
    assert line.take_now() == 5


@pytest.mark.parametrize("end", [(), (b"",)])
async def test_a_prompt_receiver_keeps_no_place_while_it_waits(end):
    driver, transport = Heard(), Hearing(None, b"one", None, b"two", *end)
    line = Line(driver, 0, transport)
    line.is_prompt = True
    await line.tasks[0]()
    assert (driver.came, transport.taken) == ([b"one", b"two"], ["asked"])


class Pouring(Taking):
    """A transport that has pieces one after the other, up to an empty one without a wait."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self.pieces = list(pieces)

    receives_more = True

    def receive_more(self, views: Sequence[memoryview]) -> int:
        data = self.pieces.pop(0)
        views[0][: len(data)] = data
        return len(data)

    async def receive_into(self, view: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        self.taken.append(f"owed {self.owed_bytes}")
        return self.receive_more([view])


@pytest.mark.parametrize(
    ("what", "turns"),
    [("nothing", 2), ("news", 4), ("held", 1)],
)
async def test_pieces_that_bring_no_news_need_no_turn(what: str, turns: int) -> None:
    class Filling(Heard):
        def owed_bytes(self, stream: int) -> int:
            return 1000 - 10 * len(self.came)

        def buffer_updated(self, count: int, now: float, stream: int) -> bool:
            super().buffer_updated(count, now, stream)
            self.held = what == "held"
            return what == "news"

    driver, transport = Filling(), Pouring(b"one", b"two", b"three", b"", b"")
    line = Line(driver, 0, transport)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.tasks[0])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert driver.came == [b"one", b"two", b"three"][: 1 if what == "held" else 3]
    assert driver.kicks == (3 if what == "news" else 0)
    assert len(transport.taken) == turns
    assert transport.taken[:2] == ["owed 1000", "owed 970" if what == "nothing" else "owed 990"][:turns]


async def test_a_data_connection_is_not_let_go_of_before_the_control_connection(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end could be there before the ABORT that was sent ahead of it, and pass for a loss [STR-14]."""
    join, closed = KeptSession.join, []

    def joined(kept: KeptSession, *arguments: object) -> trio.Event:
        needed = join(kept, *arguments)
        control = kept._pump._lines[0].transport

        async def watch() -> None:
            await needed.wait()
            closed.append(control.closed)

        trio.lowlevel.spawn_system_task(watch)
        return needed

    monkeypatch.setattr(KeptSession, "join", joined)
    moved = await migration(2).run()
    moved.check_moved()
    assert closed == [True, True]
