from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import trio
import trio.lowlevel

from descriptors_support import nothing_stays_open
from sterna.errors import GuestError
from sterna.guest.kvm import machine as module
from sterna.guest.kvm.audit import audit
from sterna.guest.kvm.layout import BEAT, COUNT, DOORBELL, ERRORS, RAM, SYSTEM
from sterna.guest.kvm.machine import KvmMachine
from sterna.guest.kvm.sections import MachineState
from sterna.guest.process import ProcessGuest, ProcessSettings, describe
from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import Workload
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import Machine
from sterna.linux.kvm_vcpu import KICK, REGISTERS, CpuidEntry, Vcpu, VcpuError
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

pytestmark = pytest.mark.needs("kvm")

MIB = 1 << 20
MEMORY = 4 * MIB
PARAMETERS = WorkloadParameters.for_memory(MEMORY, MIB, seed=9, cold_every=4)
WALL_CLOCK, MTRR_DEFAULT = 0x4B564D00, 0x2FF


@pytest.fixture(autouse=True)
def kicks() -> Iterator[None]:
    before = signal.signal(KICK, lambda number, frame: None)
    yield
    signal.signal(KICK, before)


@contextlib.contextmanager
def machine(vcpus: int = 2) -> Iterator[KvmMachine]:
    made = KvmMachine(MEMORY, vcpus)
    try:
        yield made
    finally:
        made.close()


def write(vcpu: Vcpu, pages: int) -> None:
    """Answer the doorbell with so many pages, and run up to the next."""
    at_doorbell(vcpu)
    vcpu.answer(pages)
    at_doorbell(vcpu)


def at_doorbell(vcpu: Vcpu) -> None:
    while (access := vcpu.run()) is None or access.port == BEAT:
        pass
    assert (access.port, access.is_out) == (DOORBELL, False)


def flipped(area: bytes, place: int) -> bytes:
    return area[:place] + bytes([area[place] ^ 1]) + area[place + 1 :]


def stop(vcpu: Vcpu) -> tuple[int, ...]:
    vcpu.answer(0)
    vcpu.finish_access()
    return REGISTERS.unpack(vcpu.registers())


def pages_of(memory: np.ndarray) -> np.ndarray:
    return memory.reshape(-1, PAGE_BYTES).copy()


@pytest.mark.parametrize("writes", [0, 1, 33, 5000])
def test_the_program_does_what_numpy_does(writes: int) -> None:
    """The differential test: one seed, one memory, whatever the guest is made of. [WKL-2] [WKL-3]"""
    memory = np.zeros(MEMORY, np.uint8)
    workload = Workload(PARAMETERS, memory)
    workload.fill()
    workload.write(writes)
    with machine(1) as made:
        made.begin(PARAMETERS)
        write(made.vcpus[0], writes)
        registers = stop(made.vcpus[0])
        assert (registers[COUNT], registers[ERRORS]) == (writes, 0)
        assert (made.ram.map.array == memory).all()
        found = audit(PARAMETERS, made.ram.map.array, registers)
        assert (found.errors, found.registers_good) == (0, True)


async def test_one_seed_gives_the_same_pages_in_every_kind_of_guest() -> None:
    """As many writes of a process in real time, of a simulated guest, of a vCPU. [WKL-2] [WKL-3]"""
    process = ProcessGuest(ProcessSettings(64 * MIB))
    process.create(describe("same", bytes(16), MEMORY), PARAMETERS)
    process.run(1, Runner("here", bytes(16)))
    while not process.status()["writes"]:
        await trio.lowlevel.checkpoint()
    process.pause()
    writes = process.status()["writes"]
    assert isinstance(writes, int)
    simulated = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=PAGE_BYTES)
    assert simulated.advance(writes) == writes
    with machine(1) as made:
        made.begin(PARAMETERS)
        write(made.vcpus[0], writes)
        assert stop(made.vcpus[0])[COUNT] == writes
        pages = bytes(made.ram.map.array)
    assert bytes(process._here.map.array) == bytes(simulated.memory(0)) == pages
    process.close()


def test_the_program_notices_a_page_that_is_not_what_it_wrote() -> None:  # [WKL-4] [WKL-5]
    with machine(1) as made:
        made.begin(PARAMETERS)
        write(made.vcpus[0], 10)
        made.ram.map.array[::PAGE_BYTES] ^= 1
        write_more = PARAMETERS.hot_pages // 2
        made.vcpus[0].answer(write_more)
        at_doorbell(made.vcpus[0])
        assert stop(made.vcpus[0])[ERRORS] == write_more


@pytest.mark.parametrize(
    "lose",
    [
        lambda vcpu: vcpu.set_xsave(bytes(vcpu.xsave_bytes)),
        lambda vcpu: vcpu.set_xsave(flipped(vcpu.xsave(), 160 + 15 * 16)),
        lambda vcpu: vcpu.set_system_registers(
            vcpu.system_registers()[: 4 * 24]
            + vcpu.system_registers()[3 * 24 : 4 * 24]
            + vcpu.system_registers()[5 * 24 :]
        ),
    ],
    ids=["x87 and SSE", "one register of SSE", "GS"],
)
def test_the_program_notices_a_register_that_is_lost(lose) -> None:
    with machine(1) as made:
        made.begin(PARAMETERS)
        vcpu = made.vcpus[0]
        write(vcpu, 10)
        stop(vcpu)
        lose(vcpu)
        write(vcpu, 10)
        (area,) = made.areas()
        assert area.mismatches > 0
        assert area.checked == 3 * 21


def test_the_dirty_log_is_what_has_changed() -> None:
    """Exact: against a comparison of all contents, in both regions, of two vCPUs."""
    with machine() as made:
        made.begin(PARAMETERS)
        for vcpu in made.vcpus:
            write(vcpu, 100)
        made.start_tracking()
        assert not any(bitmap.any() for bitmap in made.collect().values())
        for pages in (1, 700, 64):
            before = {number: pages_of(one.array) for number, one in made.maps.items()}
            for vcpu in made.vcpus:
                vcpu.answer(pages)
                at_doorbell(vcpu)
            found = made.collect()
            for number, one in made.maps.items():
                changed = (pages_of(one.array) != before[number]).any(axis=1)
                missed = PageBitmap.from_mask(changed)
                missed -= found[number]
                assert not missed.any()
            written = (pages_of(made.maps[RAM].array) != before[RAM]).any(axis=1)
            assert found[RAM].count() == int(written.sum()) > 0
            assert found[SYSTEM].count() == 4  # of each vCPU the area and the stack
        made.stop_tracking()
        made.stop_tracking()


def test_kernels_whose_log_forgets_when_it_is_read() -> None:
    with machine(1) as made:
        made.begin(PARAMETERS)
        write(made.vcpus[0], 5)
        made.start_tracking()
        made._machine.manual_protection = False  # so that nothing is cleared by hand
        made.vcpus[0].answer(5)
        at_doorbell(made.vcpus[0])
        assert made.collect()[RAM].count() == 5


def test_a_state_goes_from_one_machine_to_another() -> None:
    with machine() as here, machine() as there:
        here.begin(PARAMETERS)
        for vcpu in here.vcpus:
            write(vcpu, 100)
            stop(vcpu)
        state = here.save()
        for number, one in here.maps.items():
            there.maps[number].array[:] = one.array
        assert there.load(state) == there.load(state) > 400
        there.attach()
        there.attach()
        back = there.save()
        assert [replace(one, tsc=0) for one in back.vcpus] == [replace(one, tsc=0) for one in state.vcpus]
        for vcpu in there.vcpus:
            write(vcpu, 100)
            stop(vcpu)
        for area, vcpu in zip(there.areas(), there.vcpus, strict=True):
            first, pages = area.first_page * PAGE_BYTES, area.parameters.pages * PAGE_BYTES
            registers = REGISTERS.unpack(vcpu.registers())
            found = audit(area.parameters, there.ram.map.array[first : first + pages], registers)
            assert (found.errors, found.count, registers[ERRORS], area.mismatches) == (0, 200, 0, 0)


def test_registers_that_the_kernel_does_not_list_go_along_if_they_were_changed() -> None:
    """[XCP-8] Memory types, here; and whatever else this host has beyond those that the guest was offered."""
    with machine(1) as here, machine(1) as there, machine(1) as back:
        here.begin(PARAMETERS)
        assert MTRR_DEFAULT not in dict(here.save().vcpus[0].msrs)
        here.vcpus[0].set_msrs([(MTRR_DEFAULT, 0xC06)])
        state = here.save()
        assert dict(state.vcpus[0].msrs)[MTRR_DEFAULT] == 0xC06
        older = replace(  # a host that has a register less
            state.vcpus[0], msrs=tuple(one for one in state.vcpus[0].msrs if one[0] != WALL_CLOCK)
        )
        there.load(replace(state, vcpus=(older,)))
        assert there.save().vcpus[0].msrs == older.msrs
        there.vcpus[0].set_msrs([(MTRR_DEFAULT, 0)])  # as after a reset: it was sent, and is sent on
        there.vcpus[0].set_msrs([(WALL_CLOCK, 0x5000)])
        found = dict(there.save().vcpus[0].msrs)
        assert (found[MTRR_DEFAULT], found[WALL_CLOCK]) == (0, 0x5000)
        back.load(there.save())
        assert dict(back.save().vcpus[0].msrs) == found


def test_a_state_that_is_refused_leaves_the_one_before() -> None:
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        write(here.vcpus[0], 100)
        stop(here.vcpus[0])
        good = here.save()
        there.load(good)
        other = replace(good.vcpus[0], registers=bytes(136) + b"\2" + bytes(7), msrs=((0xDEAD0000, 5),))
        with pytest.raises(GuestError, match="MSR 0xdead0000") as caught:
            there.load(replace(good, vcpus=(other,)))
        assert caught.value.code is ErrorCode.STATE_REJECTED
        assert there.vcpus[0].registers() == good.vcpus[0].registers


@pytest.mark.parametrize("attached", [False, True])
def test_no_register_makes_the_kernel_touch_memory_while_it_is_loaded(attached: bool) -> None:
    """A wall clock is written to memory when its register is set: to a page that comes later, perhaps."""
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        if attached:  # as after a `run` that failed
            there.attach()
        state = here.save()
        values = dict(state.vcpus[0].msrs) | {WALL_CLOCK: 0x3000}
        bad = replace(state.vcpus[0], msrs=tuple(sorted(values.items())))
        with contextlib.suppress(GuestError):
            there.load(replace(state, vcpus=(bad,)))
        assert not there.maps[SYSTEM].array.any()


def test_slots_that_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(1) as made:

        def fail(*_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(type(made._machine), "set_memory", fail)
        with pytest.raises(GuestError, match="no memory slots") as caught:
            made.attach()
        assert caught.value.code is ErrorCode.FULL


def test_features_that_the_description_has_not_named() -> None:  # [XCP-4] [XCP-3]
    """A kernel lets CPUID answer anything."""
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        state = here.save()
        lies = CpuidEntry(0x7, 0, 1, 0, 0, 0, 1 << 24)  # a matrix unit
        cpuid = tuple(lies if (one.leaf, one.subleaf) == (7, 0) else one for one in state.vcpus[0].cpuid)
        there._supported = tuple(one for one in there._supported if one.leaf != 7)
        with pytest.raises(GuestError, match="missing here: amx_tile") as caught:
            there.load(replace(state, vcpus=(replace(state.vcpus[0], cpuid=cpuid),)))
        assert caught.value.code is ErrorCode.STATE_REJECTED


def test_whatever_goes_wrong_leaves_what_was_loaded_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # [XCP-3]
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        good = here.save()
        there.load(good)
        loaded = there.vcpus
        for wrong in (ValueError("of another kind"), OSError(22, "Invalid argument")):

            def fail(self: Machine, clock_ns: int, wrong: Exception = wrong) -> None:
                raise wrong

            monkeypatch.setattr(Machine, "set_clock_ns", fail)
            with pytest.raises((ValueError, GuestError)):
                there.load(good)
            monkeypatch.undo()
            assert there.vcpus is loaded
        assert there.vcpus[0].registers() == good.vcpus[0].registers


def test_a_state_goes_into_processors_that_have_had_none() -> None:
    """[XCP-13] What the second one does not name has the value of a reset, not of the first."""
    pat, changed = 0x277, 0x0007040600070400
    with machine(1) as here, machine(1) as there:
        reset = there.vcpus[0].msrs([pat])
        here.begin(PARAMETERS)
        state = here.save()
        values = dict(state.vcpus[0].msrs)
        there.load(with_msrs(state, values | {pat: changed}))
        assert there.vcpus[0].msrs([pat]) == {pat: changed}
        with pytest.raises(GuestError, match="MSR 0xdead0000"):
            there.load(with_msrs(state, {pat: 0x0007040600070407, 0xDEAD0000: 1}))
        assert there.vcpus[0].msrs([pat]) == {pat: changed}
        del values[pat]
        there.load(with_msrs(state, values))
        assert there.vcpus[0].msrs([pat]) == reset


def test_a_state_that_is_refused_first_spoils_nothing() -> None:
    """[XCP-13] Its processors have part of it; the next state gets others."""
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        state = here.save()
        spoilt = there.vcpus
        with pytest.raises(GuestError, match="MSR 0xdead0000"):
            there.load(with_msrs(state, {0xDEAD0000: 5}))
        there.load(state)
        assert there.vcpus is not spoilt


def test_processors_that_cannot_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(1) as here, machine(1) as there:
        here.begin(PARAMETERS)
        there.load(here.save())

        def full(*_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(Machine, "create_vcpu", full)
        with pytest.raises(GuestError, match="no machine: Cannot allocate memory") as caught:
            there.load(here.save())
        assert caught.value.code is ErrorCode.FULL


def with_msrs(state: MachineState, values: dict[int, int]) -> MachineState:
    return replace(state, vcpus=(replace(state.vcpus[0], msrs=tuple(sorted(values.items()))),))


def test_upper_halves_of_wide_registers() -> None:
    """The program notices one that is lost.

    Where KVM offers no AVX, as a software-assisted one does not, the program is told to use it all the same:
    the processor executes it, and nobody saves it, so this is not for migrations. A KVM that keeps it from
    the guest ends this by an exception.
    """
    with machine(1) as made:
        made.begin(PARAMETERS)
        words = made.maps[SYSTEM].array.view("<u8")
        wide = (0x10000 >> 3) + 18
        offered = bool(words[wide])
        words[wide] = 0
        vcpu = made.vcpus[0]
        write(vcpu, 10)  # without it: upper halves are what they were
        words[wide] = 1
        try:
            write(vcpu, 10)
        except VcpuError:
            assert not offered
            return
        (area,) = made.areas()
        assert area.mismatches == 16
        write(vcpu, 10)
        (area,) = made.areas()
        assert area.mismatches == 16
        assert area.checked == 5 * 21 + 3 * 16


def test_each_vcpu_has_its_own_number() -> None:
    with machine(3) as made:
        made.begin(WorkloadParameters.for_memory(MEMORY, MIB))
        found = [{(one.leaf, one.subleaf): one for one in vcpu.cpuid} for vcpu in made.save().vcpus]
        assert [leaves[1, 0].ebx >> 24 for leaves in found] == [0, 1, 2]
        for leaves in found:
            assert leaves[0, 0] == found[0][0, 0]


def test_more_vcpus_than_there_are_blocks() -> None:
    with machine(3) as made, pytest.raises(ValueError, match="2 blocks of memory for 3"):
        made.begin(WorkloadParameters.for_memory(64 * PAGE_BYTES, PAGE_BYTES))


@pytest.mark.parametrize(
    "error", [OSError(12, "Cannot allocate memory"), MemoryError("none"), RuntimeError("thread")]
)
def test_a_machine_that_cannot_be_made_leaves_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module.Kvm, "create_machine", module.Kvm.create_machine)
    monkeypatch.setattr(module.MemoryFile, "map", fail)
    with nothing_stays_open():
        with pytest.raises(GuestError) as caught:
            KvmMachine(MEMORY, 1)
        assert caught.value.code is ErrorCode.FULL


def test_a_kernel_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise CapabilityMissing("memfd", "not allowed", "allow it")

    monkeypatch.setattr(module, "GuestMemory", missing)
    with pytest.raises(CapabilityMissing, match="memfd"):
        KvmMachine(MEMORY, 1)


def test_closing_gives_everything_back() -> None:
    with nothing_stays_open():
        with machine() as made:
            made.begin(PARAMETERS)
            write(made.vcpus[0], 10)
            made.close()
        del made
        gc.collect()
