from __future__ import annotations

import struct

from sterna.linux.kvm_long_mode import CONTROL, CONTROL_AT, SEGMENT, system_registers
from sterna.linux.kvm_vcpu import SYSTEM_BYTES

AFTER_RESET = bytes(CONTROL_AT + 48) + struct.pack("<Q", 0xFEE00900) + bytes(SYSTEM_BYTES - CONTROL_AT - 56)


def test_long_mode_at_the_least_privileged_level() -> None:
    system = system_registers(AFTER_RESET, 0x9000, fs=0x1000, gs=0x2000)
    assert len(system) == SYSTEM_BYTES
    code, *data = SEGMENT.iter_unpack(system[: 6 * SEGMENT.size])
    assert (code[2], code[3], code[8]) == (0x33, 11, 1)  # selector, type, long
    assert [segment[0] for segment in data] == [0, 0, 0x1000, 0x2000, 0]
    assert {segment[5] for segment in (code, *data)} == {3}
    cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags = CONTROL.unpack_from(system, CONTROL_AT)
    assert cr0 & 0x80000001 == 0x80000001  # paging, protection
    assert cr4 & 1 << 5  # long mode needs it
    assert efer == 0x500
    assert (cr2, cr3, cr8, apic_base, flags) == (0, 0x9000, 0, 0xFEE00900, 0)


def test_what_is_left_as_it_was() -> None:
    after = bytes(6 * SEGMENT.size) + bytes(range(80)) + bytes(SYSTEM_BYTES - 6 * SEGMENT.size - 80)
    system = system_registers(after, 0)
    assert system[6 * SEGMENT.size : CONTROL_AT] == after[6 * SEGMENT.size : CONTROL_AT]
