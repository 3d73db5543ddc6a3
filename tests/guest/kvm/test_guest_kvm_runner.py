from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from sterna.errors import GuestError
from sterna.guest import guest_thread
from sterna.guest.guest_thread import GRANT_PAGES, Wish
from sterna.guest.kvm.layout import BEAT, DOORBELL
from sterna.guest.kvm.machine import KvmMachine
from sterna.guest.kvm.runner import VcpuRunner
from sterna.guest.schedule import WorkloadParameters
from sterna.linux.kvm_vcpu import KICK, REGISTERS, PortAccess, Register, Vcpu

pytestmark = pytest.mark.needs("kvm")

MIB = 1 << 20
WITHIN_S = 30.0


@pytest.fixture
def machine() -> Iterator[KvmMachine]:
    before = signal.signal(KICK, lambda number, frame: None)
    made = KvmMachine(4 * MIB, 1)
    made.begin(WorkloadParameters.for_memory(4 * MIB, MIB, seed=9, cold_every=4))
    yield made
    made.close()
    signal.signal(KICK, before)


class Watched:
    """A runner, and what it has told."""

    def __init__(self, machine: KvmMachine, rate_pages_s: float = 0.0) -> None:
        self.vcpu = machine.vcpus[0]
        self.events: list[tuple[str, int]] = []
        self.told = threading.Event()
        self.runner = VcpuRunner(self.vcpu, rate_pages_s, self.note)

    def note(self, event: str) -> None:
        self.events.append((event, self.runner.count))
        self.told.set()

    def until(self, satisfied: Callable[[], bool]) -> None:
        """Polled with a bound in steps, not in luck."""
        pause = threading.Event()
        for _ in range(int(WITHIN_S / 0.001)):
            if satisfied():
                return
            pause.wait(0.001)
        raise AssertionError("it does not come to that")

    def park(self) -> tuple[int, ...]:
        self.runner.tell_to_park()
        self.runner.wait_parked()
        return REGISTERS.unpack(self.vcpu.registers())


@pytest.fixture
def watched(machine: KvmMachine) -> Iterator[Watched]:
    found = Watched(machine)
    yield found
    found.runner.stop()


def test_it_runs_when_it_is_told_to_and_stops_likewise(watched: Watched) -> None:
    assert watched.runner.count == 0
    assert not watched.events
    watched.runner.run("run")
    assert watched.told.wait(WITHIN_S)
    event, count = watched.events[0]
    assert event == "run"
    assert count > 0
    registers = watched.park()
    assert watched.runner.count == registers[Register.R15] >= count
    assert watched.runner.first_write_ns <= watched.runner.last_write_ns
    assert REGISTERS.unpack(watched.vcpu.registers()) == registers
    watched.runner.run("resume")
    watched.until(lambda: "resume" in dict(watched.events))
    assert watched.runner.count > registers[Register.R15]


def test_the_first_write_of_a_guest_that_stopped_at_its_doorbell_stands_alone(machine: KvmMachine) -> None:
    """Its time is what the blackout is measured by."""
    watched = Watched(machine, 1e-6)  # a page, and then none for days
    watched.runner.run("run")
    assert watched.told.wait(WITHIN_S)
    assert watched.events[0] == ("run", 1)
    watched.park()
    assert watched.runner.count == 1
    watched.runner.stop()


def test_an_event_that_was_not_told_goes_first(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VcpuRunner, "_set", lambda self, wish: None)
    watched.runner.run("run")
    monkeypatch.undo()
    watched.runner.run("resume")
    assert watched.told.wait(WITHIN_S)
    assert watched.events[0][0] == "run"


def test_a_rate_is_kept(machine: KvmMachine) -> None:
    """In its own terms: the bucket never has more than its time has earned, and what it holds."""
    watched = Watched(machine, 10_000.0)
    watched.runner.run("run")
    watched.until(lambda: watched.runner.running_s > 0.5)
    watched.park()
    most = watched.runner.running_s * 10_000 + 0.1 * 10_000 + 2
    assert 0 < watched.runner.count <= most
    (start, first), (end, last) = watched.runner.samples
    assert 0 <= start < end
    assert first < last == watched.runner.count
    assert {"run", "beat"} <= {event for event, _ in watched.events}
    watched.runner.stop()


def test_throttling_takes_a_share_of_the_rate(machine: KvmMachine) -> None:
    watched = Watched(machine, 10_000.0)
    watched.runner.throttle(0.99)
    watched.runner.run("run")
    watched.until(lambda: watched.runner.running_s > 0.3)
    watched.park()
    assert watched.runner.count <= watched.runner.running_s * 100 + 100 * 0.1 + 3
    watched.runner.stop()


def test_throttling_at_full_speed_sleeps_between_grants(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(VcpuRunner, "_sleep", lambda self, seconds: slept.append(seconds))
    watched.runner.throttle(0.5)
    watched.runner.run("run")
    watched.until(lambda: watched.runner.count > 10 * GRANT_PAGES)
    watched.park()
    assert len(slept) > 5
    assert min(slept) > 0


@pytest.mark.parametrize(
    "access", [PortAccess(DOORBELL + 1, False, 4, 0), PortAccess(BEAT + 1, True, 4, 0)], ids=["in", "out"]
)
def test_an_access_to_another_port_ends_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, access: PortAccess
) -> None:
    monkeypatch.setattr(Vcpu, "run", lambda self: access)
    watched.runner.run("run")
    watched.until(lambda: watched.runner.failure is not None)
    with pytest.raises(GuestError, match=f"a vCPU failed: an access to port {access.port:#x}"):
        watched.park()
    with pytest.raises(GuestError, match="a vCPU failed"):
        watched.runner.run()


def test_a_guest_that_fails_says_how(machine: KvmMachine) -> None:
    machine.maps[1].array[0x1000:0x1002] = [0x0F, 0x0B]  # the program begins with ud2
    watched = Watched(machine)
    watched.runner.run("run")
    watched.until(lambda: watched.runner.failure is not None)
    with pytest.raises(GuestError, match="a vCPU failed: exit 8: shutdown"):
        watched.park()
    watched.runner.stop()


def test_one_that_does_not_stop_is_told_of(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_thread, "_STOP_WITHIN_S", 0.01)
    watched.runner.run("run")
    assert watched.told.wait(WITHIN_S)
    monkeypatch.setattr(Vcpu, "kick", lambda self, thread: None)
    monkeypatch.setattr(
        VcpuRunner, "_wish", property(lambda self: Wish.RUN, lambda self, wish: None), raising=False
    )
    with pytest.raises(GuestError, match="does not stop"):
        watched.park()
    monkeypatch.undo()
    watched.runner.tell_to_park()
    watched.runner.wait_parked()


def test_one_that_was_let_go_on_before_it_had_parked_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kick was of a wish that is taken back: it must not end every turn from then on."""
    seen, go_on, run = threading.Event(), threading.Event(), Vcpu.run

    def kicked(self: Vcpu) -> PortAccess | None:
        access = run(self)
        if access is None:
            seen.set()
            go_on.wait(WITHIN_S)
        return access

    monkeypatch.setattr(Vcpu, "run", kicked)
    watched.runner.run("run")
    assert watched.told.wait(WITHIN_S)
    watched.vcpu.kick(watched.runner._thread)
    assert seen.wait(WITHIN_S)
    watched.runner.tell_to_park()
    watched.runner.run()
    before = watched.runner.count
    go_on.set()
    watched.until(lambda: watched.runner.count > before + 4 * GRANT_PAGES)
    watched.park()


def test_stopping_ends_the_thread(machine: KvmMachine) -> None:
    watched = Watched(machine)
    watched.runner.run("run")
    assert watched.told.wait(WITHIN_S)
    watched.runner.stop()
    assert not watched.runner._thread.is_alive()
    assert watched.runner.failure is None
