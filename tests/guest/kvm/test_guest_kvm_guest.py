from __future__ import annotations

import contextlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holder_support import serving
from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, SourceGuest
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.kvm import guest as module
from sterna.guest.kvm.description import describe
from sterna.guest.kvm.guest import KvmGuest
from sterna.guest.kvm.runner import VcpuRunner
from sterna.guest.process import ProcessSettings
from sterna.guest.schedule import WorkloadParameters
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm_vcpu import KICK, REGISTERS, Register
from sterna.registry import Architecture, ErrorCode
from sterna.testing import check_guest
from sterna.wire.records import Disk, Nic, Region, Runner

pytestmark = pytest.mark.needs("kvm")

MIB = 1 << 20
MEMORY = 8 * MIB
RATE = 32 * MIB
GUEST_ID = bytes(range(16))
HERE, THERE = Runner("here", b"h" * 16), Runner("there", b"t" * 16)
WITHIN_S = 30.0


def source(vcpus: int = 2, journal: Path | None = None, rate: int = RATE) -> KvmGuest:
    guest = KvmGuest(ProcessSettings(rate, journal=None if journal is None else str(journal)))
    parameters = WorkloadParameters.for_memory(MEMORY, 2 * MIB, seed=9, cold_every=4)
    guest.create(describe("test", GUEST_ID, MEMORY, vcpus), parameters)
    return guest


def room(journal: Path | None = None, rate: int = RATE) -> KvmGuest:
    return KvmGuest(ProcessSettings(rate, journal=None if journal is None else str(journal)))


def figure(guest: KvmGuest, name: str) -> int | float:
    value = guest.status()[name]
    assert isinstance(value, int | float)
    return value


def wait_until(satisfied: Callable[[], bool]) -> None:
    """Poll with a bound in steps, not in luck."""
    done = threading.Event()
    for _ in range(int(WITHIN_S / 0.001)):
        if satisfied():
            return
        done.wait(0.001)
    raise AssertionError("the guest does not come to that")


def wait_for_writes(guest: KvmGuest, above: int = 0) -> None:
    wait_until(lambda: figure(guest, "writes") > above)


@contextlib.contextmanager
def closing(*guests: KvmGuest) -> Iterator[None]:
    try:
        yield
    finally:
        for guest in guests:
            guest.close()


async def audit_over(guest: SourceGuest | DestinationGuest) -> int:
    assert isinstance(guest, HolderSourceGuest | HolderDestinationGuest)
    found = await guest.connection.audit()
    errors, running = found["errors"], found["errors_while_running"]
    assert isinstance(errors, int)
    assert isinstance(running, int)
    return errors + running


@pytest.mark.slow
async def test_conformance_through_holders(tmp_path: Path) -> None:
    names = map(str, itertools.count())
    async with contextlib.AsyncExitStack() as stack:

        async def connection(guest: KvmGuest, state: HeldState) -> HolderConnection:
            engine = HolderEngine(guest, state=state, epoch=int(state is HeldState.RUNNING))
            path = tmp_path / next(names)
            stack.enter_context(serving(path, engine))
            return await stack.enter_async_context(await connect_holder(path))

        async def make_source() -> SourceGuest:
            guest = source()
            guest.run(1, HERE)
            return await HolderSourceGuest.open(await connection(guest, HeldState.RUNNING))

        async def make_destination() -> DestinationGuest:
            return HolderDestinationGuest(await connection(room(), HeldState.EMPTY))

        await check_guest(make_source, make_destination, audit=audit_over)


def migrate(here: KvmGuest, there: KvmGuest, epoch: int, runner: Runner) -> None:
    """By copying everything while the guest is paused."""
    there.reserve(here.description)
    there.prepare()
    here.pause()
    for number, file in here.memory().items():
        there._here.maps[number].array[:] = here._here.maps[number].array
        assert file.size_bytes == there.memory()[number].size_bytes
    there.load_state(here.save_state())
    here.mark_granted(epoch)
    there.run(epoch, runner)


def test_a_guest_moves_and_finds_nothing_wrong(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    here, there = source(journal=journal), room(journal)
    with closing(here, there):
        here.run(1, HERE)
        wait_for_writes(here)
        migrate(here, there, 2, THERE)
        before = int(figure(here, "writes"))
        here.release()
        wait_for_writes(there, before)
        found = there.audit()
        assert found["errors"] == found["errors_while_running"] == found["register_mismatches"] == 0
        assert found["time_backwards"] == 0
        # The guest has measured by itself how long it stood, and what it says is between two looks of ours.
        jump_ns = int(str(found["time_jump_ns"]))
        assert 0 < jump_ns <= figure(there, "all_ran_ns") - figure(here, "idle_since_ns") + 10**9
        assert found["pages_checked"] == MEMORY // 4096
        assert found["writes"] == found["generations"] or found["registers_good"]
        status = there.status()
        assert status["sections"] == 21
        assert figure(there, "registers_checked") > 400
        assert figure(there, "first_write_ns") > figure(here, "last_write_ns") > 0
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line[4] for line in lines if line[4] != "beat"] == ["run", "pause", "granted", "run", "end"]
    counts = [line[0] for line in lines if line[4] in {"run", "beat"}]
    assert counts == sorted(set(counts))
    assert [line[1] for line in lines] == sorted(line[1] for line in lines)


def test_a_state_is_the_same_while_the_guest_is_paused() -> None:
    guest = source()
    with closing(guest):
        guest.run(1, HERE)
        wait_for_writes(guest)
        guest.pause()
        first = guest.save_state()
        assert guest.save_state() == first
        guest.resume()
        wait_for_writes(guest, int(figure(guest, "writes")))
        guest.pause()
        assert guest.save_state() != first
        assert sum(len(section.data) for section in first) <= guest.description.state_bytes


def test_an_audit_of_a_paused_guest_leaves_it_paused() -> None:
    guest = source()
    with closing(guest):
        guest.run(1, HERE)
        wait_for_writes(guest)
        assert guest.audit()["errors"] == 0
        wait_for_writes(guest, int(figure(guest, "writes")))
        guest.pause()
        before = figure(guest, "writes")
        assert guest.audit()["errors"] == 0
        assert figure(guest, "writes") == before
        assert guest.status()["paused"] is True


def test_pages_that_others_have_written_are_found_by_the_audit_and_by_the_guest() -> None:
    guest = source()
    with closing(guest):
        guest._here.ram.map.array[5 * 4096 + 100] ^= 1
        found = guest.audit()
        assert found["errors"] == 1
        guest.run(1, HERE)
        wait_for_writes(guest, 4 * MEMORY // 4096)
        assert figure(guest, "errors") == guest.audit()["errors_while_running"] == 1


def test_throttle_and_tracking_are_legal_when_there_is_nothing() -> None:
    guest = room()
    with closing(guest):
        guest.throttle(0.5)
        guest.stop_tracking()
        guest.discard()
        assert guest.status().keys() == {"journal_failure", "holder_cpu_s"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"architecture": Architecture.SYNTHETIC}, ErrorCode.ARCHITECTURE),
        ({"vcpus": 0}, ErrorCode.REFUSED),
        ({"vcpus": 17}, ErrorCode.REFUSED),
        ({"nics": (Nic(bytes(6), "eth0"),)}, ErrorCode.REFUSED),
        ({"disks": (Disk(512, "vda", "x"),)}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 0, MEMORY),)}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 1 << 32, 1 << 40), Region(1, 0, MEMORY))}, ErrorCode.REFUSED),
        ({"cpu_features": ("sse2", "tachyons", "avx9")}, ErrorCode.CPU_FEATURES),
    ],
)
def test_guests_that_cannot_be_had_here(change: dict[str, object], code: ErrorCode) -> None:  # [XCP-4]
    wanted = describe("test", GUEST_ID, MEMORY, 2)
    guest = room()
    with closing(guest):
        with pytest.raises(GuestError) as caught:
            guest.reserve(replace(wanted, **change))  # type: ignore[arg-type]
        assert caught.value.code is code
        if code is ErrorCode.CPU_FEATURES:
            assert "missing here: avx9, tachyons" in str(caught.value)
        guest.reserve(wanted)
        guest.discard()


def test_more_memory_than_there_may_be() -> None:
    wanted = describe("test", GUEST_ID, MEMORY, 1)
    for guest in (
        KvmGuest(ProcessSettings(memory_limit_bytes=MEMORY - 1)),
        KvmGuest(ProcessSettings(), lambda: 1),
    ):
        with closing(guest), pytest.raises(GuestError) as caught:
            guest.reserve(wanted)
        assert caught.value.code is ErrorCode.FULL


def test_a_guest_that_cannot_be_made_leaves_nothing() -> None:
    guest = room()
    with closing(guest):
        parameters = WorkloadParameters.for_memory(15 * 32 * 4096, MIB)
        with pytest.raises(ValueError, match="blocks of memory for 16 vCPUs"):
            guest.create(describe("test", GUEST_ID, 15 * 32 * 4096, 16), parameters)
        assert guest._machine is None


def test_a_vcpu_that_fails_is_told_of() -> None:
    guest = source()
    with closing(guest):
        guest._here.maps[1].array[0x1000:0x1002] = [0x0F, 0x0B]
        guest.run(1, HERE)
        wait_until(lambda: bool(guest.status()["failure"]))
        assert "exit 8: shutdown" in str(guest.status()["failure"])
        with pytest.raises(GuestError, match="a vCPU failed"):
            guest.pause()
        with pytest.raises(GuestError, match="a vCPU failed"):
            guest.resume()


def test_a_run_that_fails_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = source()
    with closing(guest):

        def fail(*_: object, **more: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(module, "VcpuRunner", fail)
        with pytest.raises(RuntimeError):
            guest.run(5, HERE)
        assert guest._journal.epoch == 0


def test_a_thread_that_cannot_be_had_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    guest, made = source(), []
    real = module.VcpuRunner

    def second_fails(*arguments: object, **more: object) -> VcpuRunner:
        if made:
            raise RuntimeError("can't start new thread")
        made.append(real(*arguments, **more))  # type: ignore[arg-type]
        return made[0]

    with closing(guest):
        monkeypatch.setattr(module, "VcpuRunner", second_fails)
        with pytest.raises(RuntimeError):
            guest.run(1, HERE)
        assert not made[0]._thread.is_alive()
        monkeypatch.undo()
        guest.run(1, HERE)
        wait_for_writes(guest)


def test_time_that_runs_backwards_is_told_of_by_the_audit() -> None:
    guest = source()
    with closing(guest):
        guest.run(1, HERE)
        wait_for_writes(guest)
        guest.pause()
        assert guest.audit()["time_backwards"] == 0
        words = guest._here.maps[1].array.view("<u8")
        stamp = (0x10000 >> 3) + 13
        for _ in range(1000):  # one that was paused between its look and its note writes over it unseen
            words[stamp] = 1 << 63  # as if the first vCPU had seen that already
            guest.resume()
            wait_until(lambda: words[stamp] != 1 << 63)
            guest.pause()
            if guest.audit()["time_backwards"]:
                break
        assert guest.audit()["time_backwards"] == 1


def test_memory_that_makes_no_sense_is_told_of_by_the_audit() -> None:
    guest = source()
    with closing(guest):
        guest._here.maps[1].array[0x10000:0x10100] = 0xFF
        guest.run(1, HERE)
        with pytest.raises(GuestError, match="makes no sense"):
            guest.audit()


def test_registers_that_make_no_sense_are_told_of_by_the_audit() -> None:
    guest = source()
    with closing(guest):
        registers = list(REGISTERS.unpack(guest._here.vcpus[1].registers()))
        registers[Register.R15] = (1 << 64) - 1
        guest._here.vcpus[1].set_registers(REGISTERS.pack(*registers))
        with pytest.raises(GuestError, match="registers make no sense"):
            guest.audit()


def test_memory_that_runs_out_while_it_is_populated(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = room()
    with closing(guest):
        guest.reserve(describe("test", GUEST_ID, MEMORY, 1))

        def full(self: object) -> None:
            raise MemoryError("none left")

        monkeypatch.setattr(type(guest._here.ram), "wait_populated", full)
        with pytest.raises(GuestError, match="none left") as caught:
            guest.prepare()
        assert caught.value.code is ErrorCode.FULL


def test_there_is_no_room_where_there_is_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bool:
        raise CapabilityMissing("kvm", "no such file", "load it")

    monkeypatch.setattr(module, "try_machine", missing)
    with pytest.raises(CapabilityMissing, match="no such file; load it"):
        room()


def test_the_signal_that_ends_a_vcpus_turn_has_a_handler() -> None:
    before = signal.signal(KICK, signal.SIG_DFL)
    try:
        room().close()
        assert callable(signal.getsignal(KICK))
    finally:
        signal.signal(KICK, before)


def test_a_guest_that_waits_before_its_first_write_has_no_line_in_the_journal(tmp_path: Path) -> None:
    """Its count is that of the host that it came from, which has said it last."""
    journal = tmp_path / "journal"
    guest = source(journal=journal)
    with closing(guest):
        guest._journal.expect("run")
        guest._journal.progress("beat")
        assert journal.read_bytes() == b""
        guest._journal.progress("run")
        guest._journal.progress("run")  # of another vCPU
        guest._journal.progress("beat")  # without a write since
        assert [json.loads(line)[4] for line in journal.read_text().splitlines()] == ["run"]
