"""The pump: what it owes to a machine, to a guest that is slow, and to whoever cancels it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import pytest
import trio
import trio.testing
from trio.abc import Clock

from sterna.core.events import Event, Finished, Outcome, Result
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import TransportError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.memory.bitmap import PageBitmap
from sterna.net.destination import Destination
from sterna.net.line import Line, Signal
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.pump import ANSWERED_S, FLUSH_STALL_S, MAKE_WAY_S, Pump, boottime
from sterna.net.source import Source
from sterna.registry import ErrorCode
from sterna.testing import run_workload
from sterna.wire.records import Runner

STEP_S = 0.01
PARAMETERS = WorkloadParameters.for_memory(256 << 10, 128 << 10)


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


class SlowSource(SimulatedSourceGuest):
    """Every call takes a while before it has its effect, and a while after it."""

    async def start_tracking(self) -> None:
        await trio.sleep(STEP_S)
        await super().start_tracking()
        await trio.sleep(STEP_S)

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        await trio.sleep(STEP_S)
        dirty = await super().collect_dirty()
        await trio.sleep(STEP_S)
        return dirty

    async def stop_tracking(self) -> None:
        await trio.sleep(STEP_S)
        await super().stop_tracking()

    async def pause(self) -> None:
        await trio.sleep(STEP_S)
        await super().pause()
        await trio.sleep(STEP_S)

    async def resume(self) -> None:
        await trio.sleep(STEP_S)
        await super().resume()

    async def save_state(self) -> Sequence[StateSection]:
        await trio.sleep(STEP_S)
        return await super().save_state()

    async def mark_granted(self, epoch: int) -> None:
        await trio.sleep(STEP_S)
        await super().mark_granted(epoch)
        await trio.sleep(STEP_S)

    async def revoke_grant(self, epoch: int) -> None:
        await trio.sleep(STEP_S)
        self.granted_epoch = epoch  # it may not have been made: revoking is legal all the same
        await super().revoke_grant(epoch)

    async def release(self) -> None:
        await trio.sleep(STEP_S)
        await super().release()


class SlowDestination(SimulatedDestinationGuest):
    """Likewise."""

    def __init__(self, rate_bytes_s: float) -> None:
        super().__init__(rate_bytes_s=rate_bytes_s)
        self.asked_to_run = trio.Event()

    async def reserve(self, description: GuestDescription) -> None:
        await trio.sleep(STEP_S)
        await super().reserve(description)
        await trio.sleep(STEP_S)

    async def prepare(self) -> None:
        await trio.sleep(STEP_S)
        await super().prepare()

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        await trio.sleep(STEP_S)
        await super().load_state(sections)
        await trio.sleep(STEP_S)

    async def take_storage(self) -> None:
        pass

    async def run(self, epoch: int, runner: Runner) -> None:
        self.asked_to_run.set()
        await trio.sleep(STEP_S)
        await super().run(epoch, runner)
        await trio.sleep(STEP_S)

    async def discard(self) -> None:
        await trio.sleep(STEP_S)
        await super().discard()


class Pair:
    """Both endpoints around slow guests, each in a cancel scope of its own."""

    def __init__(self) -> None:
        self.guest = SlowSource(PARAMETERS, rate_bytes_s=4e6)
        self.room = SlowDestination(rate_bytes_s=4e6)
        self.ends: tuple[MemoryTransport, MemoryTransport] = memory_transport_pair(latency_s=0.001)
        self.scopes = (trio.CancelScope(), trio.CancelScope())
        self.results: dict[int, Result] = {}
        self.events: list[Event] = []
        options = Options(clock=trio.current_time, grease=False)
        watched = Options(clock=trio.current_time, grease=False, on_event=self.events.append)
        self.source = Source(self.guest, self.ends[0], epoch=1, options=watched)
        self.destination = Destination(lambda _: self.room, self.ends[1], options=options)

    async def run(self, stop_at: float | None = None, which: int = 0) -> float:
        """Migrate; cancel one side from outside after so many seconds. The time that it took."""
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_workload, self.guest, 0.005)
            nursery.start_soon(run_workload, self.room, 0.005)
            async with trio.open_nursery() as both:
                both.start_soon(self._run, 0, self.source.run)
                both.start_soon(self._run, 1, self.destination.run)
                if stop_at is not None:
                    await trio.sleep(stop_at)
                    self.scopes[which].cancel()
            nursery.cancel_scope.cancel()
        return trio.current_time() - started

    async def _run(self, which: int, run: Callable[[], object]) -> None:
        with self.scopes[which]:
            self.results[which] = await run()  # type: ignore[misc]


async def test_slow_guests_move(virtual_time: Clock) -> None:
    pair = Pair()
    seconds = await pair.run()
    assert [result.outcome for result in pair.results.values()] == [Outcome.COMPLETED] * 2
    assert seconds < 1
    assert isinstance(pair.events[-1], Finished)


def moments() -> list[float]:
    """Every part of a slow migration, and a little more: each call of a guest is hit before and in it."""
    return [0.0003 + 0.004 * step for step in range(70)]


@pytest.mark.slow
async def test_a_source_that_is_cancelled_while_its_guest_is_busy(virtual_time: Clock) -> None:
    """Whatever the guest was asked for, it is set running again, unless HANDOVER may have left [CON-62]."""
    granted = set()
    for moment in moments():
        pair = Pair()
        await pair.run(moment, 0)
        granted.add(pair.guest.granted_epoch)
        if pair.guest.granted_epoch is None:
            assert pair.guest.running, moment
            assert pair.guest.machine.throttle == 0
            assert not pair.room.has_run
        else:
            assert not pair.guest.running, moment
    assert granted == {None, 2}


@pytest.mark.slow
async def test_a_destination_that_is_cancelled_while_its_guest_is_busy(virtual_time: Clock) -> None:
    """Nothing takes back a permission that was received [ONE-30]: it goes on until the guest runs."""
    ran = set()
    for moment in moments():
        pair = Pair()
        await pair.run(moment, 1)
        ran.add(pair.room.has_run)
        outcome = pair.results[0].outcome if 0 in pair.results else None
        if pair.guest.granted_epoch is None:
            assert outcome is Outcome.ROLLED_BACK, moment
            assert pair.guest.running
            assert not pair.room.has_run
        else:
            assert not pair.guest.running, moment
            if not pair.room.has_run:
                # HANDOVER was on its way when the destination was cancelled.
                assert outcome is Outcome.UNDECIDED, moment
                assert pair.room.discarded
        assert pair.room.running == pair.room.has_run
    assert ran == {False, True}


async def test_a_destination_is_not_interrupted_once_it_has_the_permission(virtual_time: Clock) -> None:
    """`run` is slow; a cancellation in the middle of it waits for its end."""
    pair = Pair()

    async def cancel_in_run() -> None:
        await pair.room.asked_to_run.wait()
        pair.scopes[1].cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_in_run)
        await pair.run()
    assert pair.room.running


async def test_a_guest_that_never_answers_does_not_hold_up_a_cancellation_for_ever(
    virtual_time: Clock,
) -> None:
    pair = Pair()

    async def hang() -> None:
        await trio.sleep_forever()

    pair.guest.resume = hang  # type: ignore[method-assign]
    assert await pair.run(0.05, 0) < 60


async def test_a_callback_that_raises_does_not_end_a_migration(
    virtual_time: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who only watches decides nothing; the first error is logged, and the callback is not called again."""
    pair = Pair()
    calls: list[Event] = []

    def on_event(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("an embedder's own")

    pair.source = Source(
        pair.guest, pair.ends[0], epoch=1, options=Options(clock=trio.current_time, on_event=on_event)
    )
    heard: list[Event] = []
    pages = pair.source._pages
    pages.on_event = heard.append  # type: ignore[method-assign]
    await pair.run()
    assert [result.outcome for result in pair.results.values()] == [Outcome.COMPLETED] * 2
    assert len(calls) == 1
    assert len(heard) > 5, "what has to know how the session goes is told on"
    assert "on_event" in caplog.text


async def test_who_keeps_the_time_may_break_and_the_session_still_ends(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For the machine the connection is lost then, and the guest stays where it runs."""
    pair = Pair()

    async def break_down(pump: Pump) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Pump, "_keep_time", break_down)
    await pair.run()
    assert {result.outcome for result in pair.results.values()} == {Outcome.ROLLED_BACK}
    assert "a bug" in caplog.text


async def test_nothing_begins_beside_a_session_that_is_over(virtual_time: Clock) -> None:
    pair = Pair()
    await pair.run()
    pump = pair.source._pump
    assert pump is not None
    began: list[str] = []

    async def begin() -> None:
        began.append("late")

    pump.start(begin)
    await trio.testing.wait_all_tasks_blocked()
    assert not began


def test_the_clock_is_one_that_goes_on_while_the_host_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= boottime() <= time.clock_gettime(time.CLOCK_BOOTTIME)


RESET = TransportError(ErrorCode.CONNECTION_LOST, "reset")


class Idle:
    """A machine that has nothing to say, and whose guest waits or does not."""

    state = SourceState.MOVED
    result = None
    prompt_request = None
    guest_stands = False

    def __init__(self, *, guest_waits: bool) -> None:
        self.guest_waits = guest_waits

    def poll_event(self) -> None:
        return None

    def poll_timeout(self) -> None:
        return None


async def seconds_of(pump: Pump, until: Signal) -> float:
    before = trio.current_time()
    await pump.make_way(until)
    return trio.current_time() - before


async def test_data_connections_make_way_for_a_while(virtual_time: Clock) -> None:
    """[PCY-9] [PCY-13]"""
    machine, signal = Idle(guest_waits=False), Signal()
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    control = pump._lines[0].transport
    pump.kick()
    assert await seconds_of(pump, signal) == 0
    assert control.eager_until == -math.inf
    machine.guest_waits = True
    pump.kick()
    assert control.eager_until > 0
    signal.set()  # for nothing
    assert await seconds_of(pump, signal) == pytest.approx(MAKE_WAY_S)
    pump.kick()
    assert await seconds_of(pump, signal) == 0  # it has waited for so long


@pytest.mark.parametrize("how", ["kick", "took"])
async def test_they_go_on_when_the_guest_does(virtual_time: Clock, how: str) -> None:
    machine = Idle(guest_waits=True)
    machine.state = DestinationState.FETCHING
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    pump.kick()
    line, waited = pump._lines[0], []

    async def make_way() -> None:
        waited.append(await seconds_of(pump, line.to_send))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_way)
        await trio.sleep(MAKE_WAY_S / 4)
        pump.took()  # something else
        machine.guest_waits = False
        getattr(pump, how)()
    assert waited == [pytest.approx(MAKE_WAY_S / 4)]


async def test_at_the_source_they_do_so_until_the_page_is_there(virtual_time: Clock) -> None:
    """At most half of the time [PCY-13]."""
    machine, signal = Idle(guest_waits=False), Signal()
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)

    async def asked_and_answered() -> float:
        for machine.guest_waits in (True, False):
            pump.kick()
        return await seconds_of(pump, signal)

    assert await asked_and_answered() == pytest.approx(ANSWERED_S)
    assert await asked_and_answered() == 0
    await trio.sleep(ANSWERED_S)
    assert await asked_and_answered() == pytest.approx(ANSWERED_S)


async def test_what_is_said_in_a_blackout_and_what_ends_it_leaves_at_once(virtual_time: Clock) -> None:
    machine = Idle(guest_waits=False)
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    urgent: list[bool] = []
    pump._lines[0].hurry = lambda: urgent.append(pump.is_urgent)
    for machine.guest_stands in (False, True, True, False, False):
        pump.kick()
    assert urgent == [True, True, True]
    assert not pump.is_urgent


async def test_who_is_told_may_ask_for_the_end_and_hears_of_it_in_its_turn() -> None:
    machine, told = Idle(guest_waits=False), []
    events = deque(["decided", "phase"])
    machine.poll_event = lambda: events.popleft() if events else None

    def on_event(event: object) -> None:
        told.append(event)
        if event == "decided":
            events.append("finished")
            pump.kick()

    pump = Pump(machine, memory_transport_pair()[0], lambda _: None, on_event=on_event)
    pump.kick()
    assert told == ["decided", "phase", "finished"]


@pytest.mark.parametrize(("lost", "waits_s"), [(None, FLUSH_STALL_S), (RESET, 0)])
async def test_what_a_lost_connection_owes_is_not_waited_for(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch, lost: TransportError | None, waits_s: float
) -> None:
    """Behind the peer's proper end it may still leave."""
    monkeypatch.setattr(MemoryTransport, "owes", True)
    machine = Idle(guest_waits=False)
    machine.has_unsent, machine.connection_lost = False, lambda *_: None
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    pump.lost(pump._lines[0], lost)
    pump._left = Signal()
    began = trio.current_time()
    await pump._flush()
    assert trio.current_time() - began == waits_s


class Faulting:
    """A guest that waits for pages from time to time; and its machine, which asks for them."""

    def __init__(self, machine: Idle) -> None:
        self.machine = machine
        self.faults: list[int] = []
        self.did: list[str] = []

    def tell(self) -> bool:
        told = bool(self.faults)
        self.machine.guest_waits |= told
        self.did += [f"asks for {page}" for page in self.faults]
        self.faults.clear()
        return told

    def see_to(self) -> None:
        self.did.append("goes on")


class Silent(Idle):
    """Has nothing to say on its data connection, or may have."""

    may = False

    def is_held(self, stream: int) -> bool:
        return True

    def may_transmit(self, stream: int) -> bool:
        return self.may

    def poll_transmit(self, now: float, stream: int) -> list[bytes]:
        return []


async def test_a_sender_is_not_woken_for_nothing(virtual_time: Clock) -> None:
    """Every page that comes would wake two of them at a destination, which has nothing to say there."""
    machine = Silent(guest_waits=False)
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    line = pump._lines[1] = Line(pump, 1, memory_transport_pair()[0])
    for machine.may in (False, True):
        pump.kick(1)
        with trio.move_on_after(1.0) as waited:
            await line.to_send.wait()
        assert waited.cancelled_caught is not machine.may


async def test_a_guest_is_heard_in_the_midst_of_a_batch(virtual_time: Clock) -> None:
    """[PCY-9]"""
    machine = Idle(guest_waits=False)
    pump = Pump(machine, memory_transport_pair()[0], lambda _: None)
    control = pump._lines[0]
    control.take_now = lambda: None
    pump._glance()  # there is no such guest yet
    guest = Faulting(machine)
    pump.attend(guest)
    control.hurry = lambda: guest.did.append("hurry")
    pump._glance()
    assert guest.did == []
    guest.faults = [7]
    pump._glance()
    assert guest.did == ["asks for 7", "hurry"]
    assert control.transport.eager_until > 0
    guest.faults = [8]
    pump.kick()
    assert guest.did[2:] == ["asks for 8", "hurry", "goes on", "hurry"]
    guest.did.clear()
    pump.ask()
    assert guest.did == ["hurry", "goes on", "hurry"]
    control.take_now = lambda: 56  # what has come is looked at by a kick
    guest.faults = [9]
    pump._glance()
    assert guest.faults
