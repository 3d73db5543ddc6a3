"""Guests that hang, answer nonsense or want their memory back: both endpoints end, and say what is so."""

from __future__ import annotations

import math
import mmap
from collections.abc import Awaitable, Callable

import pytest
import trio
from endpoint_support import Migration
from trio.abc import Clock

from sterna.core.events import Decided, Event, Outcome, Pause, Prepare, Result
from sterna.core.policy import PolicySettings
from sterna.core.records import Record
from sterna.errors import ConfigError, GuestError, LocalProtocolError, TransportError
from sterna.guest.api import GuestDescription
from sterna.guest.embedded import PAGE_BYTES, EmbeddedGuest
from sterna.memory.bitmap import PageBitmap
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.pump import OVERTAKEN_S, UNDO_S
from sterna.net.source import Source
from sterna.net.transport import Peer
from sterna.registry import ErrorCode, Phase, StateKind, Style
from sterna.wire.records import Runner, StateSection


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


async def hang(*_: object) -> None:
    await trio.sleep_forever()


def answer(value: object) -> Callable[..., Awaitable[object]]:
    async def method(*_: object) -> object:
        await trio.lowlevel.checkpoint()
        return value

    return method


# ---- guests that hang ----


@pytest.mark.parametrize("method", ["start_tracking", "collect_dirty", "pause", "save_state", "mark_granted"])
async def test_a_source_guest_that_hangs(virtual_time: Clock, method: str) -> None:
    """The destination's deadline ends it [CON-74]; the call is cut off, and the guest set running again."""
    migration = Migration(tick_s=0.5)
    setattr(migration.guest, method, hang)
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    result = migration.results["source"]
    assert (result.code, result.by_peer) == (ErrorCode.PHASE_DEADLINE, True)
    assert migration.guest.granted_epoch is None
    assert migration.seconds < 60 + OVERTAKEN_S + 5


@pytest.mark.parametrize("method", ["reserve", "prepare", "load_state"])
async def test_a_destination_guest_that_hangs(virtual_time: Clock, method: str) -> None:
    migration = Migration(tick_s=0.5)
    setattr(migration.room, method, hang)
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    result = migration.results["destination"]
    assert (result.code, result.by_peer) == (ErrorCode.PHASE_DEADLINE, True)
    assert migration.room.discarded
    assert migration.seconds < 60 + OVERTAKEN_S + 5


@pytest.mark.parametrize("method", ["stop_tracking", "throttle", "resume"])
async def test_a_guest_that_is_never_set_running_again(virtual_time: Clock, method: str) -> None:
    """Somebody has to look after it; the endpoint ends and says so."""
    migration = Migration(tick_s=0.5)
    setattr(migration.guest, method, hang)
    migration.guest.fail_on["save_state"] = GuestError("no")
    await migration.run()
    assert migration.outcomes == (Outcome.GUEST_FAILED, Outcome.ROLLED_BACK)
    assert not migration.guest.running
    assert migration.seconds < UNDO_S + 10


async def test_a_room_that_is_never_freed(virtual_time: Clock) -> None:
    migration = Migration(tick_s=0.5)
    migration.room.discard = hang  # type: ignore[method-assign]
    migration.room.fail_on["prepare"] = GuestError("no")
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert migration.seconds < UNDO_S + 10


async def test_an_image_that_is_never_freed(virtual_time: Clock) -> None:
    """The destination stops waiting for RELEASE; the source ends, too."""
    migration = Migration(tick_s=0.5)
    migration.guest.release = hang  # type: ignore[method-assign]
    await migration.run()
    assert migration.outcomes == (Outcome.COMPLETED, Outcome.MOVED)
    assert migration.seconds < 30 + UNDO_S + 10


@pytest.mark.parametrize("what", ["run", "claim", "persist"])
async def test_a_permission_is_used_however_long_it_takes(virtual_time: Clock, what: str) -> None:
    """[ONE-30]: the source has long ended as undecided when the guest begins to run."""

    class Slow(LocalHost):
        async def claim(self, epoch: int, runner: Runner) -> Runner:
            await trio.sleep(1000 * (what == "claim"))
            return runner

        async def persist(self, record: Record) -> None:
            await trio.sleep(1000 * (what == "persist" and record.kind == "start"))

    migration = Migration(tick_s=0.5, destination_host=Slow())
    run = migration.room.run

    async def slow_run(epoch: int, runner: Runner) -> None:
        await trio.sleep(1000 * (what == "run"))
        await run(epoch, runner)

    migration.room.run = slow_run  # type: ignore[method-assign]
    await migration.run()
    assert migration.outcomes == (Outcome.UNDECIDED, Outcome.MOVED)
    assert migration.seconds >= 1000


@pytest.mark.parametrize(
    ("side", "method"),
    [
        ("source", "pause"),
        ("source", "mark_granted"),
        ("source", "resume"),
        ("source", "release"),
        ("destination", "reserve"),
        ("destination", "load_state"),
        ("destination", "run"),
        ("destination", "discard"),
    ],
)
async def test_an_outside_cancellation_is_not_held_up_for_ever(
    virtual_time: Clock, side: str, method: str
) -> None:
    """The guest that hangs is given up in the end, and the other endpoint hears of it."""
    migration = Migration()
    called = trio.Event()

    async def hang_there(*_: object) -> None:
        called.set()
        await trio.sleep_forever()

    setattr(migration.guest if side == "source" else migration.room, method, hang_there)
    if method in {"resume", "discard"}:
        migration.guest.fail_on["save_state"] = GuestError("no")
    with trio.fail_after(UNDO_S + OVERTAKEN_S + 1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(migration, "destination" if side == "source" else "source").run)
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(getattr(migration, side).run)
                await called.wait()
                cancelled.cancel_scope.cancel()
    here, there = migration.source.result, migration.destination.result
    assert here is not None
    assert there is not None
    migration.results = {"source": here, "destination": there}
    migration.check()
    expected = {
        "resume": (Outcome.GUEST_FAILED, Outcome.ROLLED_BACK),
        "release": (Outcome.COMPLETED, Outcome.MOVED),
        "run": (Outcome.UNDECIDED, Outcome.UNDECIDED),
    }
    assert migration.outcomes == expected.get(method, (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK))


# ---- answers that make no sense ----


@pytest.mark.parametrize(
    ("method", "value", "code"),
    [
        ("collect_dirty", None, ErrorCode.GUEST_FAILED),
        ("collect_dirty", {9: PageBitmap(64)}, ErrorCode.GUEST_FAILED),
        ("collect_dirty", {0: PageBitmap(63)}, ErrorCode.GUEST_FAILED),
        ("collect_dirty", {0: "pages"}, None),
        ("save_state", None, ErrorCode.GUEST_FAILED),
        ("save_state", [b"state"], ErrorCode.GUEST_FAILED),
        ("save_state", [StateSection(StateKind.WORKLOAD, 1, bytes(1 << 20))] * 2, None),
    ],
)
async def test_a_source_guest_that_answers_nonsense(
    virtual_time: Clock, method: str, value: object, code: ErrorCode | None
) -> None:
    migration = Migration()
    setattr(migration.guest, method, answer(value))
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert code in {None, migration.results["source"].code}
    assert not migration.results["source"].by_peer


@pytest.mark.parametrize(
    "memory",
    [memoryview(bytes(64 * PAGE_BYTES)), memoryview(bytearray(63 * PAGE_BYTES)), b"", None],
    ids=["read-only", "too small", "no memoryview", "nothing"],
)
async def test_a_destination_guest_with_unusable_memory_is_a_refusal(
    virtual_time: Clock, memory: object
) -> None:
    """It is found out before a page is sent [CON-14]."""
    migration = Migration()
    migration.room.memory = lambda _: memory  # type: ignore[method-assign,assignment,return-value]
    await migration.run()
    result = migration.results["source"]
    assert (result.code, result.by_peer, result.phase) == (ErrorCode.GUEST_FAILED, True, Phase.DESCRIBE)
    assert migration.room.discarded


async def test_no_room_can_be_made(virtual_time: Clock) -> None:
    migration = Migration()
    migration.destination._make_guest = lambda _: 1 // 0  # type: ignore[assignment,return-value]
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert migration.destination.description is not None
    assert not migration.room.calls


@pytest.mark.parametrize("size", [0, 63])
def test_a_source_without_its_memory_is_never_made(size: int) -> None:
    guest = EmbeddedGuest(bytearray(64 * PAGE_BYTES))
    guest._memory = memoryview(bytearray(size * PAGE_BYTES))
    with pytest.raises(ValueError, match="region 1"):
        Source(guest, memory_transport_pair()[0])


class Stop(BaseException):
    """Like KeyboardInterrupt, but it does not end pytest."""


@pytest.mark.parametrize("method", ["pause", "save_state", "collect_dirty"])
async def test_what_is_no_error_passes_through_when_the_guest_runs_again(
    virtual_time: Clock, method: str
) -> None:
    migration = Migration()
    migration.guest.fail_on[method] = Stop()  # type: ignore[assignment]
    with pytest.RaisesGroup(Stop, flatten_subgroups=True, allow_unwrapped=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(migration.destination.run)
            await migration.source.run()
    assert migration.guest.running
    assert migration.source.result is not None
    assert migration.source.result.outcome is Outcome.ROLLED_BACK


# ---- memory is given back ----

SIZE = 512 * PAGE_BYTES


class Mapped(EmbeddedGuest):
    """Its memory is a mapping of its own, which it unmaps: that raises BufferError if anybody holds views."""

    def __init__(self, fill: bytes) -> None:
        self.map = mmap.mmap(-1, SIZE)
        self.map.write(fill * SIZE)
        super().__init__(memoryview(self.map))

    def free(self) -> None:
        self._memory.release()
        self.map.close()

    async def release(self) -> None:
        self.free()

    async def discard(self) -> None:
        self.free()


class Mapping:
    """A migration of mapped memory over a slow link."""

    def __init__(self) -> None:
        self.here, self.there = Mapped(b"\1"), Mapped(b"\0")
        self.ends: tuple[MemoryTransport, MemoryTransport] = memory_transport_pair(rate_bytes_s=10e6)
        options = Options(clock=trio.current_time)
        self.source = Source(self.here, self.ends[0], options=options)
        self.destination = Destination(lambda _: self.there, self.ends[1], options=options)

    async def run(self, then: Callable[[], object] = lambda: None) -> tuple[Result, Result]:
        """`then` is called in the middle of a batch."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.run)
            nursery.start_soon(self.destination.run)
            await trio.sleep(0.1)
            assert SIZE // 4 < self.ends[1].bytes_received < SIZE
            then()
        assert self.source.result is not None
        assert self.destination.result is not None
        return self.source.result, self.destination.result


async def test_a_guest_that_has_left_can_be_unmapped_in_release(virtual_time: Clock) -> None:
    mapping = Mapping()
    results = await mapping.run()
    assert [result.outcome for result in results] == [Outcome.COMPLETED] * 2
    assert mapping.here.map.closed
    assert mapping.there.map[:] == b"\1" * SIZE
    mapping.there.free()  # with endpoints and results at hand


@pytest.mark.parametrize("failure", ["cut", "cancelled here", "cancelled there", "stalled", "vanished"])
async def test_what_was_reserved_can_be_unmapped_in_discard(virtual_time: Clock, failure: str) -> None:
    """[CON-63], in the middle of a batch that is received into that memory."""
    mapping = Mapping()
    ways: dict[str, Callable[[], object]] = {
        "cut": lambda: mapping.ends[0].cut_after(1),
        "cancelled here": mapping.source.cancel,
        "cancelled there": mapping.destination.cancel,
        "stalled": mapping.ends[0].stall,
        "vanished": mapping.ends[0].vanish,
    }
    results = await mapping.run(ways[failure])
    assert [result.outcome for result in results] == [Outcome.ROLLED_BACK] * 2
    assert mapping.there.map.closed
    mapping.here.free()


async def test_memory_can_be_unmapped_after_a_cancellation_from_outside(virtual_time: Clock) -> None:
    mapping = Mapping()
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await mapping.destination.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapping.source.run)
        nursery.start_soon(run)
        await trio.sleep(0.1)
        scope.cancel()
    assert mapping.there.map.closed
    mapping.here.free()


async def test_nothing_arrives_in_memory_that_was_discarded(virtual_time: Clock) -> None:
    """A deadline or a command may end a session while the connection still brings pages."""
    mapping = Mapping()
    images: list[bytes] = []

    async def discard() -> None:
        images.append(mapping.there.map[:])

    mapping.there.discard = discard  # type: ignore[method-assign]
    await mapping.run(mapping.destination.cancel)
    assert images == [mapping.there.map[:]]


# ---- how an endpoint is used ----


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_what_was_cancelled_before_it_began(virtual_time: Clock, side: str) -> None:
    """[CON-71]: the other side hears of it all the same."""
    migration = Migration()
    getattr(migration, side).cancel("never mind")
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert {result.code for result in migration.results.values()} == {ErrorCode.CANCELLED}
    getattr(migration, side).cancel("again")  # long over: nothing to cancel


async def test_a_source_that_is_cancelled_while_its_host_decides(virtual_time: Clock) -> None:
    class Undecided(LocalHost):
        async def may_send(self, description: GuestDescription, peer: Peer) -> None:
            migration.source.cancel("never mind")

    migration = Migration(source_host=Undecided())
    await migration.run()
    assert {result.code for result in migration.results.values()} == {ErrorCode.CANCELLED}


@pytest.mark.parametrize("policy", [None, PolicySettings()])
async def test_predicted_downtime_counts_the_host_s_lease_store(
    virtual_time: Clock, policy: PolicySettings | None
) -> None:
    """[ONE-64] Twice, and whoever has made the policy."""

    class WithStore(LocalHost):
        store_s = 0.25

    foreseen_s = []
    for host in (LocalHost(), WithStore()):
        events: list[Event] = []
        await Migration(source_host=host, source_options={"policy": policy, "on_event": events.append}).run()
        decided = [each.decision for each in events if isinstance(each, Decided)]
        foreseen_s.append(decided[-1].predicted_downtime_s)
    assert foreseen_s[1] - foreseen_s[0] >= 0.4


async def test_a_host_that_raises_what_it_must_not_leaves_nothing_open(virtual_time: Clock) -> None:
    class Broken(LocalHost):
        async def may_send(self, description: GuestDescription, peer: Peer) -> None:
            raise RuntimeError("a bug")

    migration = Migration(source_host=Broken())
    with pytest.raises(RuntimeError, match="a bug"):
        await migration.source.run()
    assert migration.near.closed
    assert migration.guest.calls == []


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_endpoint_is_for_one_session(virtual_time: Clock, side: str) -> None:
    """A second run would roll back a guest that has left."""
    migration = Migration()
    await migration.run()
    calls = list(migration.guest.calls)
    with pytest.raises(LocalProtocolError, match="run\\(\\) comes once"):
        await getattr(migration, side).run()
    with pytest.raises(LocalProtocolError) as caught:
        getattr(migration, side).cancel()
    assert caught.value.code is ErrorCode.TOO_LATE
    assert migration.guest.calls == calls


async def test_the_clocks_run_from_run_on(virtual_time: Clock) -> None:
    """An endpoint that was made an hour ago has not waited for an hour."""
    migration = Migration(tick_s=0.5)
    await trio.sleep(3600)

    async def come_late() -> None:
        await trio.sleep(8)
        await migration.source.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(migration.destination.run)
        nursery.start_soon(come_late)
    result = migration.destination.result
    assert result is not None
    assert result.outcome is Outcome.COMPLETED
    assert 8 <= result.seconds < 10


@pytest.mark.parametrize("cap", [65535.0, 0.0, -1.0, math.inf, math.nan])
def test_a_cap_that_no_chunk_passes_in_time(cap: float) -> None:
    with pytest.raises(ConfigError, match="bandwidth cap"):
        Options(bandwidth_bytes_s=cap)


async def test_requests_of_the_other_role_fail(virtual_time: Clock) -> None:
    migration = Migration()
    with pytest.raises(GuestError, match="Prepare is not for a source"):
        await migration.source._perform(Prepare(Style.STOP_AND_COPY))
    migration.destination.guest = migration.room
    with pytest.raises(GuestError, match="Pause is not for a destination"):
        await migration.destination._perform(Pause())


# ---- bugs ----


class UnforeseenError(Exception):
    """What nobody expects."""


@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("where", ["send", "receive_into"])
async def test_a_bug_ends_in_a_result(
    virtual_time: Clock, caplog: pytest.LogCaptureFixture, side: str, where: str
) -> None:
    """The guest runs on, the log has the traceback, the peer loses its connection."""
    migration = Migration()
    end = getattr(migration, side)
    right, calls = getattr(end, where), 0

    async def wrong(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise UnforeseenError
        return await right(*arguments)

    setattr(end, where, wrong)
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    result = migration.results["source" if side == "near" else "destination"]
    assert result.code is ErrorCode.INTERNAL
    assert isinstance(result.error, TransportError)
    assert isinstance(result.error.__cause__, UnforeseenError)
    assert "UnforeseenError" in caplog.text


async def test_memory_that_is_taken_away_in_the_middle(
    virtual_time: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedder's mistake, of which the destination must not suffer more than of a lost connection."""
    migration = Migration()

    def encode(*_: object, **__: object) -> None:
        raise ValueError("operation forbidden on released memoryview object")

    migration.source._pages.encode = encode  # type: ignore[method-assign,assignment]
    await migration.run()
    assert migration.results["source"].code is ErrorCode.INTERNAL
    assert "released memoryview" in caplog.text
