"""How a vCPU of /dev/kvm begins in long mode, at the least privileged level, with the right to use ports.

That level is where every KVM lets the processor itself run the guest, a software-assisted one too. There are
no descriptor tables, so an exception ends the guest. Virtual addresses are what the page tables make of them.
"""

from __future__ import annotations

import struct
from typing import Final

# Parts of struct kvm_sregs2: struct kvm_segment, and what follows the tables: CR0, CR2, CR3, CR4, CR8, EFER,
# the APIC's base, flags.
SEGMENT: Final = struct.Struct("<QIH10B")
CONTROL: Final = struct.Struct("<8Q")
CONTROL_AT: Final = 224

# Bits of page table entries: present, writable, for everybody, accessed; of the last level also dirty, large.
# Accessed and dirty from the beginning, so that no processor has to write them.
TABLE_ENTRY: Final = 0x27
PAGE_ENTRY: Final = 0xE7
LARGE_PAGE_BYTES: Final = 2 << 20

RFLAGS: Final = 0x3002  # ports for everybody; bit 1 is always set

_CODE: Final = (0x33, 11)  # selector and type
_DATA: Final = (0x2B, 3)
_CR0: Final = 0x80050033  # paging, protection, what numeric errors and write protection need
_CR4: Final = 0x620  # physical address extension, SSE
_CR4_XSAVE: Final = 1 << 18
_EFER: Final = 0x500  # long mode, active


def system_registers(
    after_reset: bytes, tables: int, *, fs: int = 0, gs: int = 0, xsave: bool = False
) -> bytes:
    """Segments and control registers, as struct kvm_sregs2 has them.

    Args:
        after_reset: those of a vCPU that was just made.
        tables: where the page tables begin, for CR3.
        fs: the base of that segment.
        gs: likewise.
        xsave: whether the guest may use XSAVE, without which there is no AVX.
    """
    system = bytearray(after_reset)
    code, data = _segment(*_CODE, 0, long=1), _segment(*_DATA, 0, long=0)
    based = [_segment(*_DATA, base, long=0) for base in (fs, gs)]
    system[: 6 * SEGMENT.size] = b"".join((code, data, data, *based, data))
    *_, apic_base, flags = CONTROL.unpack_from(system, CONTROL_AT)
    cr4 = _CR4 | (_CR4_XSAVE if xsave else 0)
    CONTROL.pack_into(system, CONTROL_AT, _CR0, 0, tables, cr4, 0, _EFER, apic_base, flags)
    return bytes(system)


def _segment(selector: int, kind: int, base: int, *, long: int) -> bytes:
    """One of all addresses, at the least privileged level."""
    return SEGMENT.pack(base, 0xFFFFFFFF, selector, kind, 1, 3, 1 - long, 1, long, 1, 0, 0, 0)
