from __future__ import annotations

import threading

import pytest

from kvm_support import ASK, PROGRAM_AT, TELL, small_machine
from sterna.linux import kvm_vcpu
from sterna.linux.kvm_vcpu import (
    REGISTERS,
    CpuidEntry,
    PortAccess,
    Register,
    VcpuError,
    pack_cpuid,
    unpack_cpuid,
)

MTRR_DEFAULT_TYPE, PAT = 0x2FF, 0x277
NO_MSR = 0xDEAD0000


def test_cpuid_tables_keep_their_entries() -> None:
    entries = (CpuidEntry(1, 0, 0, 2, 3, 4, 5), CpuidEntry(7, 1, 1, 6, 7, 8, 9))
    assert unpack_cpuid(pack_cpuid(entries)) == entries
    assert len(pack_cpuid((), 3)) == 8 + 3 * 40
    assert unpack_cpuid(pack_cpuid((), 1)) == (CpuidEntry(0, 0, 0, 0, 0, 0, 0),)


@pytest.mark.needs("kvm")
def test_ports() -> None:
    with small_machine() as small:
        vcpu = small.vcpu
        assert vcpu.run() == PortAccess(ASK, False, 4, 0)
        assert vcpu.exit_registers()[Register.RIP] in {PROGRAM_AT, PROGRAM_AT + 2}
        vcpu.answer(0x200042)
        assert vcpu.run() == PortAccess(TELL, True, 4, 0x200042)
        assert vcpu.exit_registers()[Register.RAX] == 0x200042


@pytest.mark.needs("kvm")
def test_an_access_is_finished_without_running_on() -> None:
    with small_machine() as small:
        vcpu = small.vcpu
        vcpu.run()
        vcpu.answer(0x200042)
        vcpu.finish_access()
        registers = REGISTERS.unpack(vcpu.registers())
        assert (registers[Register.RAX], registers[Register.RIP]) == (0x200042, PROGRAM_AT + 2)
        assert small.memory.array[0x200042] == 0  # it has not written yet


@pytest.mark.needs("kvm")
def test_finishing_may_not_run_into_the_next_access(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_machine() as small:
        monkeypatch.setattr(small.vcpu, "run", lambda: PortAccess(ASK, False, 4, 0))
        with pytest.raises(VcpuError, match="runs although"):
            small.vcpu.finish_access()


@pytest.mark.needs("kvm")
def test_a_kick_ends_an_endless_loop_and_the_one_after_it() -> None:
    with small_machine() as small:
        vcpu = small.vcpu
        small.memory.view[PROGRAM_AT : PROGRAM_AT + 2] = b"\xeb\xfe"
        results: list[PortAccess | None] = []
        thread = threading.Thread(target=lambda: results.append(vcpu.run()))
        thread.start()
        vcpu.kick(thread)
        thread.join()
        assert results == [None]
        assert vcpu.run() is None  # until it is let run again
        vcpu.kick(thread)  # legal when the thread has ended
        vcpu.let_run()


@pytest.mark.needs("kvm")
def test_a_guest_that_cannot_run_on_says_why() -> None:
    with small_machine() as small:
        small.memory.view[PROGRAM_AT : PROGRAM_AT + 2] = b"\x0f\x0b"  # ud2, and nobody handles it
        with pytest.raises(VcpuError, match="exit 8: shutdown"):
            small.vcpu.run()


@pytest.mark.needs("kvm")
def test_a_string_of_ports_is_refused() -> None:
    with small_machine() as small:
        # mov ecx, 9; mov edx, 0x10; mov edi, 0x200000; rep insb
        code = bytes.fromhex("b909000000 ba10000000 bf00002000 f36c")
        small.memory.view[PROGRAM_AT : PROGRAM_AT + len(code)] = code
        with pytest.raises(VcpuError, match="a string instruction"):
            small.vcpu.run()


@pytest.mark.needs("kvm")
def test_state_that_is_set_is_what_is_read() -> None:
    with small_machine() as small, small_machine() as other:
        vcpu, twin = small.vcpu, other.vcpu
        small.write(0x200000)
        vcpu.finish_access()
        area = bytearray(vcpu.xsave())
        assert len(area) == vcpu.xsave_bytes
        area[160 : 160 + 16] = bytes(range(16))  # XMM0
        area[512] |= 3  # XSTATE_BV: x87 and SSE are in use
        vcpu.set_xsave(bytes(area))
        debug = bytearray(vcpu.debug_registers())
        debug[:8] = (0x1234).to_bytes(8, "little")
        vcpu.set_debug_registers(bytes(debug))
        vcpu.set_msrs([(PAT, 0x0007040600070400)])
        twin.set_system_registers(vcpu.system_registers())
        twin.set_registers(vcpu.registers())
        twin.set_extended_control(vcpu.extended_control())
        twin.set_xsave(vcpu.xsave())
        twin.set_debug_registers(vcpu.debug_registers())
        twin.set_events(vcpu.events())
        twin.set_mp_state(vcpu.mp_state())
        twin.set_msrs(list(vcpu.msrs([PAT]).items()))
        assert twin.xsave()[160:176] == bytes(range(16))
        assert twin.msrs([PAT]) == {PAT: 0x0007040600070400}
        for read in (
            "registers",
            "system_registers",
            "extended_control",
            "xsave",
            "debug_registers",
            "events",
        ):
            assert getattr(twin, read)() == getattr(vcpu, read)(), read
        twin.set_cpuid(small.kvm.supported_cpuid())
        assert {one[:2] for one in twin.cpuid()} == {one[:2] for one in small.kvm.supported_cpuid()}
        assert twin.tsc_khz() == vcpu.tsc_khz() > 0
        twin.set_tsc_khz(vcpu.tsc_khz())
        other.write(0x200001)


@pytest.mark.needs("kvm")
def test_the_task_priority_is_there_when_the_guest_has_run() -> None:
    """Without an APIC of the kernel's, CR8 is what the run page says: it must be there, too."""
    with small_machine() as small:
        system = bytearray(small.vcpu.system_registers())
        system[224 + 32] = 5
        small.vcpu.set_system_registers(bytes(system))
        small.write(0x200000)
        assert small.vcpu.system_registers()[224 + 32] == 5


@pytest.mark.needs("kvm")
def test_registers_that_the_kernel_lacks() -> None:
    with small_machine() as small:
        found = small.vcpu.msrs([NO_MSR, PAT, NO_MSR + 1, NO_MSR + 2, MTRR_DEFAULT_TYPE])
        assert list(found) == [PAT, MTRR_DEFAULT_TYPE]
        with pytest.raises(OSError, match=r"MSR 0xdead0000 does not take 0x5.*KVM_SET_MSRS"):
            small.vcpu.set_msrs([(PAT, found[PAT]), (NO_MSR, 5)])


@pytest.mark.needs("kvm")
def test_what_the_kernel_refuses_is_named() -> None:
    with small_machine() as small:
        with pytest.raises(OSError, match=r"another size.*KVM_SET_XSAVE"):
            small.vcpu.set_xsave(b"")
        system = bytearray(small.vcpu.system_registers())
        system[224 + 24 : 224 + 32] = b"\xff" * 8  # CR4
        with pytest.raises(OSError, match="KVM_SET_SREGS2"):
            small.vcpu.set_system_registers(bytes(system))


@pytest.mark.needs("kvm")
def test_a_run_page_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_machine() as small:

        def fail(fd: int, size: int) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(kvm_vcpu.mmap, "mmap", fail)
        with pytest.raises(OSError, match="Cannot allocate"):
            small.machine.create_vcpu(1)
