from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sterna.errors import GuestError
from sterna.guest import guest_thread
from sterna.guest.guest_thread import Wish
from sterna.guest.journal import boottime_ns
from sterna.guest.process_runner import WorkloadRunner
from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.guest.workload import Workload

WITHIN_S = 30.0
MIB = 1 << 20


class Watch:
    """What the runner tells, and waiting for it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.told = threading.Condition()

    def __call__(self, event: str) -> None:
        with self.told:
            self.events.append(event)
            self.told.notify_all()

    def wait(self, event: str, times: int = 1) -> None:
        with self.told:
            assert self.told.wait_for(lambda: self.events.count(event) >= times, WITHIN_S), self.events


class Rig:
    def __init__(self, rate_bytes_s: int) -> None:
        parameters = WorkloadParameters.for_memory(4 * MIB, 2 * MIB, seed=3, cold_every=8)
        self.workload = Workload(parameters, bytearray(4 * MIB))
        self.workload.fill()
        self.watch = Watch()
        self.runner = WorkloadRunner(self.workload, rate_bytes_s, self.watch)


@pytest.fixture(params=[0, 64 * MIB], ids=["flat out", "64 MiB/s"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.runner.stop()
    assert not rig.runner._thread.is_alive()


def test_runs_parks_and_runs_on(rig: Rig) -> None:
    runner, workload = rig.runner, rig.workload
    assert runner.rates() == (0.0, 0.0)
    before = boottime_ns()
    runner.run("run")
    rig.watch.wait("beat", 2)
    runner.park()
    count = workload.count
    assert before < runner.first_write_ns <= runner.last_write_ns <= boottime_ns()
    assert count > 1
    last = runner.last_write_ns
    runner.park()
    assert (workload.count, runner.last_write_ns) == (count, last)
    assert workload.audit().errors == workload.errors == 0
    runner.run("resume")
    rig.watch.wait("resume")
    runner.park()
    assert workload.count > count
    assert runner.first_write_ns > last
    rate, distinct = runner.rates()
    assert rate >= distinct > 0
    assert runner.running_s > 0


def test_a_run_without_a_name_moves_no_time(rig: Rig) -> None:
    """An audit stops the workload too; the blackout is not measured by it."""
    rig.runner.run("run")
    rig.watch.wait("run")
    rig.runner.park()
    first = rig.runner.first_write_ns
    rig.runner.run()
    rig.watch.wait("beat")
    rig.runner.park()
    assert rig.runner.first_write_ns == first
    assert rig.watch.events[0] == "run"
    assert set(rig.watch.events) <= {"run", "beat"}


def test_a_throttled_workload_runs_on_and_can_be_parked(rig: Rig) -> None:
    rig.runner.throttle(0.99)
    rig.runner.run("run")
    rig.watch.wait("beat", 2)
    rig.runner.throttle(0.0)
    rig.watch.wait("beat", 4)
    rig.runner.park()
    assert rig.workload.audit().errors == 0


class Clock:
    """Monotonic time that passes only where the runner sleeps, and a nanosecond a look."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1e-9
        return self.now

    def thread_time(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("rate", "share", "expected"),
    [(8 * MIB, 0.0, 8 * MIB), (8 * MIB, 0.75, 2 * MIB), (4096, 0.0, 4096), (1 << 30, 0.0, 1 << 30)],
)
def test_the_rate_is_what_was_asked_for(
    rate: int, share: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time, so that a loaded machine does not matter."""
    clock = Clock()
    monkeypatch.setattr(guest_thread, "time", clock)
    rig = Rig(rate)
    seconds = 20.0 if rate < MIB else 1.0

    def sleep(duration: float) -> None:
        assert duration >= 0
        clock.now += duration
        if clock.now >= 100.0 + seconds:
            rig.runner._wish = Wish.PARK

    monkeypatch.setattr(rig.runner, "_sleep", sleep)
    rig.runner.throttle(share)
    rig.runner.run("run")
    with rig.runner._condition:
        assert rig.runner._condition.wait_for(lambda: rig.workload.count and rig.runner._parked, WITHIN_S)
    written = rig.workload.count * PAGE_BYTES / seconds
    assert abs(written - expected) <= 0.02 * expected + 2 * PAGE_BYTES
    measured, distinct = rig.runner.rates()
    assert abs(measured - expected) <= 0.25 * expected  # over the last second, beats being 0.1 s apart
    assert 0 < distinct <= measured
    rig.runner.stop()


def test_a_held_up_thread_catches_up_on_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(guest_thread, "time", clock)
    rig = Rig(8 * MIB)
    counts: list[int] = []

    def sleep(_: float) -> None:
        counts.append(rig.workload.count)
        clock.now += 5.0  # held up for seconds
        if len(counts) == 3:
            rig.runner._wish = Wish.PARK

    monkeypatch.setattr(rig.runner, "_sleep", sleep)
    rig.runner.run("run")
    with rig.runner._condition:
        assert rig.runner._condition.wait_for(lambda: len(counts) == 3 and rig.runner._parked, WITHIN_S)
    assert counts[2] - counts[1] <= 0.1 * 8 * MIB / PAGE_BYTES + 2
    rig.runner.stop()


def test_a_workload_that_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.workload, "write", fail)
    rig.runner.run("run")
    rig.runner._thread.join(WITHIN_S)
    with pytest.raises(GuestError, match="ZeroDivisionError"):
        rig.runner.park()
    with pytest.raises(GuestError):
        rig.runner.run()


def test_a_workload_that_does_not_stop_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-10]: a pause that was refused does not happen later, when nobody would resume it."""
    monkeypatch.setattr(guest_thread, "_STOP_WITHIN_S", 0.001)
    rig = Rig(0)
    entered, go = threading.Event(), threading.Event()
    write = rig.workload.write

    def hang(pages: int) -> None:
        entered.set()
        assert go.wait(WITHIN_S)
        write(pages)

    monkeypatch.setattr(rig.workload, "write", hang)
    rig.runner.run("run")
    assert entered.wait(WITHIN_S)
    with pytest.raises(GuestError, match="does not stop"):
        rig.runner.park()
    go.set()
    rig.watch.wait("beat", 2)
    monkeypatch.setattr(guest_thread, "_STOP_WITHIN_S", WITHIN_S)
    rig.runner.park()
    rig.runner.stop()
    assert not rig.runner._thread.is_alive()


def test_an_event_is_told_though_it_was_parked_before_it_had_written(rig: Rig) -> None:
    """An audit right after `run` must not take the blackout's end away."""
    with rig.runner._condition:  # the thread does not get to see this
        rig.runner._event = "run"
    rig.runner.park()
    rig.runner.run()
    rig.watch.wait("run")
    rig.runner.park()
    assert rig.runner.first_write_ns > 0
    rig.runner.run("resume")
    rig.watch.wait("resume")
    assert rig.watch.events.count("run") == 1


class Gate:
    """Lets a workload through when a test says so."""

    def __init__(self) -> None:
        self.entered: list[tuple[int, int]] = []
        self.waits = threading.Semaphore(0)
        self.opened = threading.Semaphore(0)
        self.good = True

    def enter(self, first: int, count: int) -> bool:
        self.entered.append((first, count))
        self.waits.release()
        assert self.opened.acquire(timeout=WITHIN_S)
        return self.good


class GatedRig(Rig):
    def __init__(self) -> None:
        super().__init__(0)
        self.runner.stop()
        self.gate = Gate()
        self.runner = WorkloadRunner(self.workload, 0, self.watch, self.gate)  # type: ignore[arg-type]

    def waits(self) -> None:
        assert self.gate.waits.acquire(timeout=WITHIN_S)


@pytest.fixture
def gated() -> Iterator[GatedRig]:
    rig = GatedRig()
    yield rig
    rig.runner.tell_to_stop()
    for _ in range(4):
        rig.gate.opened.release()
    rig.runner.stop()
    assert not rig.runner._thread.is_alive()


def test_a_pause_does_not_wait_for_a_page(gated: GatedRig) -> None:
    """[HOL-44] Nor does a page that comes end the pause; the write that waited is done after it."""
    runner, workload, gate = gated.runner, gated.workload, gated.gate
    runner.run("run")
    gated.waits()
    runner.park()
    gate.opened.release()
    assert workload.count == 0
    runner.park()
    assert workload.count == 0
    runner.run("resume")
    gated.waits()
    gate.opened.release()
    gated.watch.wait("run")
    assert workload.count >= 1
    assert gate.entered[0] == gate.entered[1]
    assert runner.first_write_ns > 0


def test_paused_and_resumed_while_it_waits(gated: GatedRig) -> None:
    """It begins anew, so that what is told of a resume is told after a write."""
    runner, gate = gated.runner, gated.gate
    runner.run("run")
    gated.waits()
    runner.park()
    runner.run()
    gate.opened.release()
    gated.waits()
    assert gated.workload.count == 0
    gate.opened.release()
    gated.watch.wait("run")


def test_blocks_are_those_of_the_workload(gated: GatedRig) -> None:
    runner, gate, size = gated.runner, gated.gate, gated.workload.parameters.block_pages
    runner.run("run")
    for _ in range(3):
        gated.waits()
        gate.opened.release()
    gated.waits()
    assert [count for _, count in gate.entered] == [1, size - 1, size, size]
    runner.gate = None
    gate.opened.release()
    gated.watch.wait("beat", 2)
    assert len(gate.entered) == 4
    assert gated.workload.errors == 0


def test_a_page_that_never_came_ends_the_workload(gated: GatedRig) -> None:
    gated.gate.good = False
    gated.runner.run("run")
    gated.waits()
    gated.gate.opened.release()
    gated.runner._thread.join(WITHIN_S)
    assert gated.workload.count == 0
    with pytest.raises(GuestError, match="failed"):
        gated.runner.park()
