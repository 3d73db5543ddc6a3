"""Whether /dev/kvm works: a machine with one vCPU is made, and runs its first instructions.

That there is a device says little. Another hypervisor may have the processor's extensions, a nested one may
offer them and fail at the first entry, and a sandbox may let a machine be made and no vCPU. So this runs a
program of three instructions in the mode in which our guests run: it asks at a port, and answers the
complement at another.

It runs in a thread of its own. A kernel that never comes back from it keeps that thread, and nobody else.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import DEVICE, REMEDY, Kvm, MemorySlot
from sterna.linux.kvm_long_mode import PAGE_ENTRY, RFLAGS, TABLE_ENTRY, system_registers
from sterna.linux.kvm_vcpu import REGISTERS, PortAccess, Register, Vcpu, VcpuError
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap

_ASK: Final = 0x13
_TELL: Final = 0x10
_PROGRAM: Final = bytes([0xE5, _ASK, 0xF7, 0xD0, 0xE7, _TELL])  # in eax; not eax; out eax
_QUESTION: Final = 0x5354524E
_ANSWER: Final = 0xFFFFFFFF ^ _QUESTION

# Pages: zeros (a task state segment that permits every port), the program, three levels of tables.
_CODE_AT: Final = PAGE_BYTES
_TABLES_AT: Final = 2 * PAGE_BYTES
_MEMORY_BYTES: Final = 5 * PAGE_BYTES

_WITHIN_S: Final = 10.0
_TURNS: Final = 100  # a signal ends one, and then it is tried again


def try_machine(path: str = DEVICE) -> bool:
    """Have a machine run; whether its dirty log is cleared by hand.

    Raises:
        CapabilityMissing: it cannot, with the reason and a remedy.
    """
    found: list[bool | BaseException] = []

    def attempt() -> None:
        try:
            found.append(_try(path))
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            found.append(error)

    thread = threading.Thread(target=attempt, name="kvm-probe", daemon=True)
    thread.start()
    thread.join(_WITHIN_S)
    if not found:
        raise _missing(f"a vCPU does not come back within {_WITHIN_S:g} s")
    (result,) = found
    if isinstance(result, CapabilityMissing):
        raise result
    if isinstance(result, OSError):
        raise _missing(f"{result.filename or 'a machine'}: {result.strerror}") from result
    if isinstance(result, BaseException):
        raise result
    return result


def _try(path: str) -> bool:
    with contextlib.ExitStack() as stack:
        kvm = stack.enter_context(Kvm(path))
        machine = stack.enter_context(kvm.create_machine())
        file = stack.enter_context(MemoryFile("sterna-probe", _MEMORY_BYTES))
        memory = file.map()
        stack.callback(memory.close)
        machine.set_memory(MemorySlot(0, 0, _MEMORY_BYTES, memory.address))
        vcpu = stack.enter_context(machine.create_vcpu(0))
        vcpu.set_cpuid(kvm.supported_cpuid())
        vcpu.tsc_khz()
        _boot(memory, vcpu)
        try:
            _run(vcpu)
        except VcpuError as error:
            raise _missing(f"a vCPU does not run: {error}") from error
        return machine.manual_protection


def _boot(memory: MemoryMap, vcpu: Vcpu) -> None:
    memory.view[_CODE_AT : _CODE_AT + len(_PROGRAM)] = _PROGRAM
    words = memory.array.view("<u8")
    second, third = _TABLES_AT + PAGE_BYTES, _TABLES_AT + 2 * PAGE_BYTES
    words[_TABLES_AT // 8], words[second // 8] = second | TABLE_ENTRY, third | TABLE_ENTRY
    words[third // 8] = PAGE_ENTRY  # from address 0 on
    vcpu.set_system_registers(system_registers(vcpu.system_registers(), _TABLES_AT))
    registers = [0] * 18
    registers[Register.RIP], registers[Register.RFLAGS] = _CODE_AT, RFLAGS
    vcpu.set_registers(REGISTERS.pack(*registers))


def _run(vcpu: Vcpu) -> None:
    if (asked := _turn(vcpu)) != PortAccess(_ASK, False, 4, 0):
        raise VcpuError(f"instead of asking it comes to {asked}")
    vcpu.answer(_QUESTION)
    if (told := _turn(vcpu)) != PortAccess(_TELL, True, 4, _ANSWER):
        raise VcpuError(f"instead of answering it comes to {told}")


def _turn(vcpu: Vcpu) -> PortAccess | None:
    turns = (vcpu.run() for _ in range(_TURNS))
    return next((access for access in turns if access is not None), None)


def _missing(reason: str) -> CapabilityMissing:
    return CapabilityMissing("kvm", reason, REMEDY)
