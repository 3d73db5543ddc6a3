"""A machine of /dev/kvm with a program of eight bytes, in long mode at the guest's least privileged level.

It reads an address from a port, writes its lowest byte there, says so at another port, and begins again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sterna.linux.kvm import Kvm, Machine, MemorySlot
from sterna.linux.kvm_long_mode import RFLAGS, system_registers
from sterna.linux.kvm_vcpu import KICK, REGISTERS, PortAccess, Register, Vcpu
from sterna.linux.memfd import MemoryFile, MemoryMap

ASK, TELL = 0x13, 0x10
PROGRAM = bytes([0xE5, ASK, 0x88, 0x00, 0xE7, TELL, 0xEB, 0xF8])  # in, mov [rax], al, out, jump back
PROGRAM_AT = 0x10000
MEMORY_BYTES = (4 << 20) + 3 * 4096  # not a multiple of what a word of the dirty log stands for


@dataclass
class Small:
    """The machine and what it is made of."""

    kvm: Kvm
    machine: Machine
    slot: MemorySlot
    memory: MemoryMap
    vcpu: Vcpu

    def write(self, address: int) -> None:
        """Have the guest write there."""
        assert self.vcpu.run() == PortAccess(ASK, False, 4, 0)
        self.vcpu.answer(address)
        assert self.vcpu.run() == PortAccess(TELL, True, 4, address)


@contextmanager
def small_machine(*, manual: bool | None = None) -> Iterator[Small]:
    """One that has just been made."""
    before = signal.signal(KICK, lambda number, frame: None)
    file = MemoryFile("test", MEMORY_BYTES)
    memory = file.map()
    with Kvm() as kvm, kvm.create_machine() as made:
        machine = made
        if manual is False:
            machine = Machine(
                made.fileno(), run_bytes=made._run_bytes, xsave_bytes=0, manual=False, scales_tsc=False
            )
        slot = MemorySlot(0, 0, MEMORY_BYTES, memory.address)
        machine.set_memory(slot)
        with machine.create_vcpu(0) as vcpu:
            vcpu.set_cpuid(kvm.supported_cpuid())
            _boot(memory, vcpu)
            yield Small(kvm, machine, slot, memory, vcpu)
        if manual is False:
            machine._fd = -1  # the other one owns it
    signal.signal(KICK, before)
    memory.close()
    file.close()


def _boot(memory: MemoryMap, vcpu: Vcpu) -> None:
    memory.view[PROGRAM_AT : PROGRAM_AT + len(PROGRAM)] = PROGRAM
    words = memory.array.view("<u8")
    words[0x1000 // 8], words[0x2000 // 8] = 0x2027, 0x3027  # present, writable, user, accessed
    for number in range(4):
        words[0x3000 // 8 + number] = number << 21 | 0xE7  # and dirty, 2 MiB
    vcpu.set_system_registers(system_registers(vcpu.system_registers(), 0x1000))
    registers = [0] * 18
    registers[Register.RIP], registers[Register.RFLAGS] = PROGRAM_AT, RFLAGS
    vcpu.set_registers(REGISTERS.pack(*registers))
