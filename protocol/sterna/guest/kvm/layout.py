"""Where everything is in the memory of a KVM guest, and how its vCPUs begin.

Two regions. Region 0 is what the workload writes: each vCPU has a share of it, of neighbouring pages, and on
it a workload of its own, so that two vCPUs never write one page. Region 1 is what the program needs: itself,
an area for each vCPU (parameters, figures, a stack), page tables. Both are copied RAM like any other.

Virtual addresses are physical ones, by pages of 2 MiB that everybody may use. A vCPU begins as
`sterna.linux.kvm_long_mode` says, and stays there: the program has no use for more. An exception ends the
guest, which is right: there should be none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.guest.workload import registers_at
from sterna.linux.kvm_long_mode import (
    LARGE_PAGE_BYTES,
    PAGE_ENTRY,
    RFLAGS,
    TABLE_ENTRY,
    system_registers,
)
from sterna.linux.kvm_vcpu import REGISTERS, Register
from sterna.wire.records import Region

RAM: Final = 0
SYSTEM: Final = 1
DOORBELL: Final = 0x510
BEAT: Final = 0x514
VCPUS_MAX: Final = 16

_RAM_ADDRESS: Final = 1 << 32  # beyond what real machines keep below 4 GiB
_PROGRAM: Final = 0x1000
_PROGRAM_MAX: Final = 0x8000
_AREAS: Final = 0x10000
_AREA_BYTES: Final = 0x4000  # the area's page, the page that GS points to, a stack
_TABLES: Final = _AREAS + VCPUS_MAX * _AREA_BYTES
_GIB: Final = 1 << 30
MEMORY_MAX: Final = 256 * _GIB  # of region 0: one table of the third level has room for 512 GiB

# struct area of program.c, as far as it is filled or read here, and what follows that: `waits`
_AREA: Final = struct.Struct("<21Q")
_STAMP: Final = 10
_WAITS: Final = 256
_WAITED_BITS: Final = 48

# Where program.c keeps the workload's state.
COUNT: Final = Register.R15
ERRORS: Final = Register.R14
WORKLOAD_REGISTERS: Final = (Register.RBX, Register.RBP, Register.R12, Register.R13)


@dataclass(frozen=True, slots=True)
class Area:
    """What a vCPU's area says, read from guest memory and not to be trusted further.

    Attributes:
        parameters: of its workload.
        first_page: of region 0, where its share begins.
        checked: registers that the program has looked at.
        mismatches: those that had another value than it had left there.
        backwards: how often the time stamp counter was smaller than before.
        longest: time between two writes that no doorbell explains, in ticks.
    """

    parameters: WorkloadParameters
    first_page: int
    checked: int
    mismatches: int
    backwards: int
    longest: int


def program() -> bytes:
    """The guest program, as build.sh has made it."""
    code = (files("sterna.guest.kvm") / "program" / "program.bin").read_bytes()
    if len(code) > _PROGRAM_MAX:
        raise ValueError("the program does not fit its place")
    return code


def regions(memory_bytes: int) -> tuple[Region, Region]:
    """Both regions of a guest with so much memory for its workloads."""
    system = _TABLES + (3 + _gib(memory_bytes)) * PAGE_BYTES
    return Region(RAM, _RAM_ADDRESS, memory_bytes), Region(SYSTEM, 0, system)


def shares(parameters_of: WorkloadParameters, vcpus: int) -> tuple[tuple[int, WorkloadParameters], ...]:
    """First page and parameters of each vCPU's workload.

    Args:
        parameters_of: of one workload on all of the memory. With one vCPU it is that one's.
        vcpus: how many share the memory.

    Raises:
        ValueError: a share would be less than a block, or writes are to renew heads alone.
    """
    if parameters_of.heads_only:
        raise ValueError("heads: a virtual machine writes whole pages")
    whole, found = parameters_of, list[tuple[int, WorkloadParameters]]()
    blocks, block = whole.pages // whole.block_pages, whole.block_pages
    if not 1 <= vcpus <= VCPUS_MAX or blocks < vcpus:
        raise ValueError(f"{blocks} blocks of memory for {vcpus} vCPUs, of which there are 1 to {VCPUS_MAX}")
    for number in range(vcpus):
        first, end = blocks * number // vcpus * block, blocks * (number + 1) // vcpus * block
        if number == vcpus - 1:
            end = whole.pages  # and what is left over behind the last whole block
        share = WorkloadParameters.for_memory(
            (end - first) * PAGE_BYTES,
            whole.hot_pages * PAGE_BYTES // vcpus,
            seed=(whole.seed + number) % (1 << 64),
            cold_every=whole.cold_every,
            block_pages=block,
        )
        found.append((first, share))
    return tuple(found)


def read_for_the_guest(memory_bytes: int) -> tuple[int, ...]:
    """Pages of region 1, by offset, that a kernel reads itself for an instruction of the guest.

    The page tables. And page 0, the task state segment of a vCPU after a reset, which is asked whether a port
    may be used: a software-assisted KVM does so whatever RFLAGS allow. It is zeros, and those permit it.
    """
    return 0, *range(_TABLES, regions(memory_bytes)[SYSTEM].size_bytes, PAGE_BYTES)


def fill_system(
    memory: npt.NDArray[np.uint8],
    memory_bytes: int,
    work: tuple[tuple[int, WorkloadParameters], ...],
    gap: int,
    slow: int,
    *,
    wide: bool = False,
) -> None:
    """Write region 1 of a new guest.

    Args:
        memory: the region, zeros so far.
        memory_bytes: size of region 0.
        work: first page and parameters of each vCPU.
        gap: see `struct area` in program.c.
        slow: likewise.
        wide: likewise.
    """
    code = program()
    memory[_PROGRAM : _PROGRAM + len(code)] = np.frombuffer(code, np.uint8)
    words = memory.view("<u8")
    for number, (first, p) in enumerate(work):
        area = area_at(number)
        fields = (p.seed, p.pages, p.hot_pages, p.zero_pages, p.block_pages, p.cold_every)
        start, other = _RAM_ADDRESS + first * PAGE_BYTES, area + PAGE_BYTES
        _AREA.pack_into(memory.data, area, area, *fields, start, gap, other, *[0] * 8, wide, slow, 0)
        words[other // 8] = other
    top, third, last = _TABLES, _TABLES + PAGE_BYTES, _TABLES + 2 * PAGE_BYTES
    words[top // 8] = third | TABLE_ENTRY
    places = [0, *range(_RAM_ADDRESS, _RAM_ADDRESS + _gib(memory_bytes) * _GIB, _GIB)]
    for number, address in enumerate(places):
        table = last + number * PAGE_BYTES
        words[third // 8 + address // _GIB] = table | TABLE_ENTRY
        large = np.arange(PAGE_BYTES // 8, dtype=np.uint64) * np.uint64(LARGE_PAGE_BYTES)
        words[table // 8 : table // 8 + len(large)] = large + np.uint64(address | PAGE_ENTRY)


def read_area(memory: npt.NDArray[np.uint8], memory_bytes: int, number: int) -> Area:
    """A vCPU's area.

    Raises:
        ValueError: it makes no sense.
    """
    words: tuple[int, ...] = _AREA.unpack_from(memory.data, area_at(number))
    _, seed, pages, hot, zero, block, cold, start = words[:8]
    checked, mismatches, _, backwards, longest = words[11:16]
    parameters = WorkloadParameters(seed, pages, hot, cold, block, zero)
    first, rest = divmod(start - _RAM_ADDRESS, PAGE_BYTES)
    if rest or first < 0 or first + pages > memory_bytes // PAGE_BYTES:
        raise ValueError(f"the workload of vCPU {number} is not in the guest's memory")
    return Area(parameters, first, checked, mismatches, backwards, longest)


def read_stamps(memory: npt.NDArray[np.uint8], number: int) -> tuple[int, int]:
    """The guest's time stamp counter before and after what held up a vCPU last: a doorbell, or a pause."""
    before, after = _AREA.unpack_from(memory.data, area_at(number))[16:18]
    return int(before), int(after)


def area_at(number: int) -> int:
    """The offset of a vCPU's area, all of which is one page."""
    return _AREAS + number * _AREA_BYTES


def read_waits(memory: npt.NDArray[np.uint8], number: int) -> list[tuple[int, int]]:
    """Accesses to pages that took long, since the doorbell before: number of the write, and ticks."""
    area: npt.NDArray[np.uint64] = memory[area_at(number) : area_at(number) + PAGE_BYTES].view("<u8")
    first = _AREA.size // 8
    stamp, count = int(area[_STAMP]), min(int(area[first - 1]), _WAITS)
    notes = area[first : first + count].tolist()
    return [(stamp + (note >> _WAITED_BITS), note & (1 << _WAITED_BITS) - 1) for note in notes]


def first_registers(number: int, seed: int) -> bytes:
    """The general-purpose registers with which a vCPU begins, its workload's among them."""
    registers = [0] * 18
    for place, value in zip(WORKLOAD_REGISTERS, registers_at(seed, 0), strict=True):
        registers[place] = value
    registers[Register.RIP], registers[Register.RFLAGS] = _PROGRAM, RFLAGS
    # As after a call, of which the return address is never used.
    registers[Register.RSP] = _AREAS + (number + 1) * _AREA_BYTES - 8
    return REGISTERS.pack(*registers)


def first_system_registers(number: int, after_reset: bytes, *, wide: bool = False) -> bytes:
    """Segments and control registers with which a vCPU begins, made of those after a reset.

    Args:
        number: of the vCPU.
        after_reset: as struct kvm_sregs2.
        wide: whether the program uses AVX, for which the processor has to permit XSAVE.
    """
    area = area_at(number)
    return system_registers(after_reset, _TABLES, fs=area, gs=area + PAGE_BYTES, xsave=wide)


def _gib(memory_bytes: int) -> int:
    return -(-memory_bytes // _GIB)
