"""Recording beside a migration: everything that passed is there, and no file can harm what it records."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from net_support import tcp_pair
from trio.testing import wait_all_tasks_blocked

import sterna
from sterna.errors import ConfigError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net import recorder as module
from sterna.net.memory import memory_transport_pair
from sterna.net.recorder import Recorder, record
from sterna.net.tcp import TcpTransport
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended
from sterna.observe.recording import (
    CONNECTIONS_MAX,
    DirectionEnded,
    How,
    Passed,
    RecordClock,
    RecordingClosed,
    RecordingItem,
    RecordingReader,
    Side,
)
from sterna.registry import Sender

S, D = Sender.SOURCE, Sender.DESTINATION
PARAMETERS = WorkloadParameters(seed=1, pages=256, hot_pages=64, block_pages=16)


def items(path: Path) -> list[RecordingItem]:
    return list(RecordingReader(io.BytesIO(path.read_bytes())))


def passed(path: Path, sender: Sender, connection: int = 1) -> bytes:
    found = (each for each in items(path) if isinstance(each, Passed))
    return b"".join(each.data for each in found if (each.sender, each.connection) == (sender, connection))


def ends(path: Path) -> list[tuple[Sender, How]]:
    return [(each.sender, each.how) for each in items(path) if isinstance(each, DirectionEnded)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.rec"


async def receive(transport, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        buffer = memoryview(bytearray(count - len(data)))
        data += buffer[: await transport.receive_into(buffer)]
    return bytes(data)


async def test_what_passes_is_recorded(path: Path) -> None:
    a, b = memory_transport_pair()
    sent: list[int] = []
    async with record(path, Side.SOURCE, pytest.fail, now_ns=lambda: 5) as recorder:
        near = recorder.wrap(a)
        assert near.peer == a.peer
        big = bytes(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, [b"one", b"", memoryview(b"two"), big], sent.append)
            assert await receive(b, 6 + len(big)) == b"onetwo" + big
        await b.send([b"back"])
        assert await receive(near, 4) == b"back"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.close)
            nursery.start_soon(b.close)
    assert passed(path, S) == b"onetwo" + big
    assert passed(path, D) == b"back"
    assert ends(path) == [(S, How.PROPERLY), (D, How.CLOSED_HERE)]
    assert isinstance(items(path)[-1], RecordingClosed)
    assert sum(sent) == near.bytes_sent == 6 + len(big)
    assert near.bytes_received == 4


async def test_memory_that_changes_while_it_is_sent(path: Path) -> None:
    """[REC-15] What was recorded is what arrived, not what was meant."""
    a, b = memory_transport_pair(capacity_bytes=1000)
    memory = bytearray(b"x" * 10_000)
    async with record(path, Side.DESTINATION, pytest.fail) as recorder:
        near = recorder.wrap(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send, [memory])
            await wait_all_tasks_blocked()
            memory[:] = b"y" * len(memory)
            arrived = await receive(b, len(memory))
        near.abort()
    assert passed(path, D) == arrived
    assert ends(path) == [(D, How.LOST), (S, How.CLOSED_HERE)]


async def test_how_the_peer_ends_is_recorded(path: Path) -> None:
    pairs = [memory_transport_pair() for _ in range(2)]
    async with record(path, Side.SOURCE, pytest.fail) as recorder:
        near = [recorder.wrap(a) for a, _ in pairs]
        pairs[0][1].abort()
        with pytest.raises(TransportError):
            await near[0].receive_into(memoryview(bytearray(1)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pairs[1][1].close)
            assert await near[1].receive_into(memoryview(bytearray(1))) == 0
            await near[1].close()
        near[0].abort()
        near[0].abort()
    found = [each for each in items(path) if isinstance(each, DirectionEnded)]
    assert [(each.connection, each.sender, each.how) for each in found] == [
        (1, D, How.LOST),
        (2, D, How.PROPERLY),
        (2, S, How.PROPERLY),
        (1, S, How.LOST),
    ]
    assert "connection_lost" in found[0].text


async def test_a_real_connection(path: Path) -> None:
    near, far = (TcpTransport(sock) for sock in tcp_pair())
    async with record(path, Side.SOURCE, pytest.fail) as recorder:
        wrapped = recorder.wrap(near)
        await wrapped.send([b"over ", b"TCP"])
        assert await receive(far, 8) == b"over TCP"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wrapped.close)
            nursery.start_soon(far.close)
    assert passed(path, S) == b"over TCP"
    times = [each.time_ns for each in items(path)]
    assert times == sorted(times)


@pytest.mark.parametrize("side", [Side.SOURCE, Side.DESTINATION])
async def test_a_recorded_migration_verifies(path: Path, side: Side) -> None:
    """[REC-6] Two endpoints, at whichever of which it is recorded: the order is one that can be followed."""
    guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=4_000_000)
    near, far = memory_transport_pair()
    async with record(path, side, pytest.fail) as recorder:
        ends = [near, far]
        ends[side - 1] = recorder.wrap(ends[side - 1])
        source = sterna.Source(guest, ends[0])
        destination = sterna.Destination(lambda _: SimulatedDestinationGuest(), ends[1])
        async with trio.open_nursery() as writing:
            writing.start_soon(write, guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(destination.run)
                nursery.start_soon(source.run)
            writing.cancel_scope.cancel()
    assert source.result is not None
    assert source.result.outcome == "completed"
    with path.open("rb") as file:
        reader = RecordingReader(file)
        follower = Follower(side=reader.side, clock=reader.clock)
        for item in reader:
            match item:
                case Passed(_, sender, time_ns, data):
                    list(follower.feed(sender, data, time_ns))
                case DirectionEnded(_, sender, time_ns, how):
                    follower.end(sender, how, time_ns)
                case RecordingClosed():
                    break
    assert follower.fault is None
    assert follower.outcome().ended is Ended.COMPLETED
    assert follower.summary.pages >= PARAMETERS.pages


async def write(guest: SimulatedSourceGuest) -> None:
    while True:
        guest.advance(0.001)
        await trio.lowlevel.checkpoint()


class Pipe:
    """A file that takes what a reader reads: nothing, until `drain`."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.file = os.fdopen(writing, "wb", buffering=0)

    async def read(self) -> bytes:
        """What is in it next; empty at the end."""
        await trio.lowlevel.wait_readable(self.reading)
        return os.read(self.reading, 1 << 20)

    async def read_all(self, data: bytearray) -> None:
        while part := await self.read():
            data += part


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)  # first: it ends a write that waits
    made.file.close()


def recorder_on(file: io.FileIO, told: list[str]) -> Recorder:
    return Recorder(file, Side.SOURCE, told.append, lambda: 0, RecordClock.VIRTUAL)  # type: ignore[arg-type]


async def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    """[REC-14]"""
    told: list[str] = []
    a, b = memory_transport_pair()
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230 - blocks for nobody
        recorder = recorder_on(full, told)
        near = recorder.wrap(a)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            for _ in range(20):
                await near.send([b"data"])
                assert await receive(b, 4) == b"data"
                await trio.lowlevel.checkpoint()
            await recorder.close()
        near.abort()
        assert recorder.wrap(b) is b  # nothing more is recorded
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert "the migration does not" in told[0]


async def test_a_slow_disk_ends_the_recording_and_nothing_else(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[REC-14] It is waited for, for a bounded time; what was recorded before is good."""
    monkeypatch.setattr(module, "SPOOL_BYTES", 200_000)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    told: list[str] = []
    data = bytearray()
    a, b = memory_transport_pair()
    recorder = recorder_on(pipe.file, told)
    near = recorder.wrap(a)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        for _ in range(20):
            await near.send([bytes(50_000)])
            await receive(b, 50_000)
        assert "slower than the connection" in told[0]
        nursery.start_soon(pipe.read_all, data)
        await recorder.close()
    *_, last = RecordingReader(io.BytesIO(data))
    assert last == RecordingClosed(0, gave_up=True, text="the file is slower than the connection")
    assert len(told) == 1


async def test_a_disk_that_is_slow_for_a_while(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection waits for it, and goes on."""
    monkeypatch.setattr(module, "SPOOL_BYTES", 100_000)
    monkeypatch.setattr(module, "PATIENCE_S", 1e9)
    a, b = memory_transport_pair()
    recorder = recorder_on(pipe.file, [])
    near = recorder.wrap(a)
    data = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)

        async def send() -> None:
            for _ in range(20):
                await near.send([bytes(50_000)])
            await recorder.close()

        nursery.start_soon(send)
        nursery.start_soon(receive, b, 1_000_000)
        await wait_all_tasks_blocked()
        assert near.bytes_sent < 500_000  # it waits
        nursery.start_soon(pipe.read_all, data)
    assert not recorder.failure
    recorded = [each.data for each in RecordingReader(io.BytesIO(data)) if isinstance(each, Passed)]
    assert b"".join(recorded) == bytes(1_000_000)


async def test_a_disk_that_hangs_at_the_end(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """[REC-14] Nobody waits for it for ever."""
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    told: list[str] = []
    recorder = recorder_on(pipe.file, told)
    near = recorder.wrap(memory_transport_pair()[0])
    await near.send([bytes(500_000)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        await recorder.close()
    assert "did not take the last bytes" in told[0]
    near.abort()  # nothing is recorded of it any more


class Told(io.FileIO):
    """A file that tells when it is closed."""

    def __init__(self, descriptor: int, closed: threading.Event) -> None:
        super().__init__(descriptor, "wb")
        self.was_closed = closed

    def close(self) -> None:
        super().close()
        self.was_closed.set()


async def test_a_thread_that_hangs_keeps_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it still writes must not come to whatever is opened next [REC-14]."""
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    closed = threading.Event()
    reading, writing = os.pipe()

    async def use() -> None:
        recorder = recorder_on(Told(writing, closed), [])
        near = recorder.wrap(memory_transport_pair()[0])
        await near.send([bytes(500_000)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            await recorder.close()
        near.abort()

    await use()
    gc.collect()
    assert not closed.is_set()
    os.close(reading)  # the write ends
    assert await trio.to_thread.run_sync(closed.wait, 60.0)


async def test_a_slow_disk_that_hangs_at_the_end(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is told once."""
    monkeypatch.setattr(module, "SPOOL_BYTES", 100_000)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    told: list[str] = []
    recorder = recorder_on(pipe.file, told)
    near = recorder.wrap(memory_transport_pair()[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        for _ in range(8):
            await near.send([bytes(50_000)])
        await recorder.close()
    assert len(told) == 1


async def test_a_transport_that_goes_on_behind_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transport does; if one did, its endpoint would not suffer for it."""
    a, _ = memory_transport_pair()
    counts = iter([0, 3])

    async def odd(_view: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        return next(counts)

    monkeypatch.setattr(a, "receive_into", odd)
    async with record(path, Side.SOURCE, pytest.fail) as recorder:
        near = recorder.wrap(a)
        assert await near.receive_into(memoryview(bytearray(9))) == 0
        assert await near.receive_into(memoryview(bytearray(9))) == 3
        near.abort()
    assert ends(path) == [(D, How.PROPERLY), (S, How.LOST)]


async def test_more_connections_than_a_recording_holds(path: Path) -> None:
    """[REC-8]"""
    told: list[str] = []
    async with record(path, Side.DESTINATION, told.append) as recorder:
        for _ in range(CONNECTIONS_MAX + 1):
            near, far = memory_transport_pair()
            await recorder.wrap(near).send([b"x"])
            assert await far.receive_into(memoryview(bytearray(9))) == 1
    (told_once,) = told
    assert "is not recorded" in told_once
    with path.open("rb") as file:
        numbers = {item.connection for item in RecordingReader(file) if isinstance(item, Passed)}
    assert numbers == set(range(1, CONNECTIONS_MAX + 1))


async def test_connections_are_numbered_as_they_begin(path: Path) -> None:
    """[REC-7]"""
    pairs = [memory_transport_pair() for _ in range(2)]
    async with record(path, Side.SOURCE, pytest.fail) as recorder:
        first, second = (recorder.wrap(near) for near, _ in pairs)
        await second.send([b"2"])
        await first.send([b"1"])
    with path.open("rb") as file:
        items = [item for item in RecordingReader(file) if isinstance(item, Passed)]
    assert [(item.connection, bytes(item.data)) for item in items] == [(1, b"2"), (2, b"1")]


async def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        async with record(tmp_path / "no" / "x.rec", Side.SOURCE, pytest.fail):
            raise AssertionError
