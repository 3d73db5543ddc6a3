from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest

from sterna.guest.kvm import layout
from sterna.guest.kvm.layout import (
    RAM,
    SYSTEM,
    fill_system,
    first_registers,
    first_system_registers,
    program,
    read_area,
    read_stamps,
    read_waits,
    regions,
    shares,
)
from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.linux.kvm_vcpu import REGISTERS, SYSTEM_BYTES, Register

MIB, GIB = 1 << 20, 1 << 30
GAP, SLOW = 1000, 20


def filled(memory_bytes: int, vcpus: int) -> np.ndarray:
    memory = np.zeros(regions(memory_bytes)[SYSTEM].size_bytes, np.uint8)
    whole = WorkloadParameters.for_memory(memory_bytes, memory_bytes // 4, seed=7, cold_every=8)
    fill_system(memory, memory_bytes, shares(whole, vcpus), GAP, SLOW)
    return memory


def translate(memory: np.ndarray, address: int) -> int:
    """What a processor makes of an address, from the tables in the region at 0."""
    entry = layout._TABLES
    for shift in (39, 30):
        (entry,) = struct.unpack_from("<Q", memory, (entry & ~0xFFF) + (address >> shift & 511) * 8)
        assert entry & 7 == 7
    (entry,) = struct.unpack_from("<Q", memory, (entry & ~0xFFF) + (address >> 21 & 511) * 8)
    assert entry & 0x87 == 0x87
    return (entry & ~0x1FFFFF) + (address & 0x1FFFFF)


@pytest.mark.parametrize("size", [MIB, 3 * GIB + MIB])
def test_addresses_mean_themselves(size: int) -> None:
    ram, system = regions(size)
    assert (ram.id, system.id) == (RAM, SYSTEM)
    memory = np.zeros(system.size_bytes, np.uint8)
    whole = WorkloadParameters.for_memory(size, MIB)
    fill_system(memory, size, shares(whole, 1), GAP, SLOW)
    for address in (0x1000, system.size_bytes - 1, ram.address, ram.address + size - 1):
        assert translate(memory, address) == address


def test_the_largest_memory_has_its_tables_in_the_region() -> None:
    ram, system = regions(layout.MEMORY_MAX)
    assert ram.address + ram.size_bytes <= 512 * GIB
    assert system.size_bytes == layout._TABLES + (3 + 256) * PAGE_BYTES


def test_what_a_kernel_reads_itself() -> None:
    """Page 0, which permits the use of ports, and all tables, which are the last of the region."""
    first, *tables = layout.read_for_the_guest(3 * GIB)
    memory = filled(3 * GIB, 1)
    assert not memory[first : first + PAGE_BYTES].any()
    assert len(tables) == 3 + 3
    assert tables[-1] + PAGE_BYTES == regions(3 * GIB)[SYSTEM].size_bytes
    assert all(memory[page : page + PAGE_BYTES].any() for page in tables)


def test_the_program_stands_at_its_place() -> None:
    code = program()
    assert filled(MIB, 1)[0x1000 : 0x1000 + len(code)].tobytes() == code


def test_a_program_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_PROGRAM_MAX", 100)
    with pytest.raises(ValueError, match="does not fit"):
        program()


@pytest.mark.parametrize("vcpus", [1, 2, 3, 16])
def test_shares_are_disjoint_and_all_of_the_memory(vcpus: int) -> None:
    whole = WorkloadParameters.for_memory(4 * MIB + 5 * PAGE_BYTES, MIB, seed=7, cold_every=8)
    found = shares(whole, vcpus)
    end = 0
    for number, (first, share) in enumerate(found):
        assert first == end
        assert share.seed == 7 + number
        end = first + share.pages
    assert end == whole.pages
    if vcpus == 1:
        assert found == ((0, whole),)


def test_seeds_wrap() -> None:
    whole = WorkloadParameters.for_memory(MIB, MIB // 4, seed=(1 << 64) - 1)
    assert [share.seed for _, share in shares(whole, 2)] == [(1 << 64) - 1, 0]


@pytest.mark.parametrize("vcpus", [0, 3, 17])
def test_too_many_vcpus_for_the_memory(vcpus: int) -> None:
    with pytest.raises(ValueError, match="2 blocks of memory for"):
        shares(WorkloadParameters.for_memory(64 * PAGE_BYTES, MIB), vcpus)


def test_a_virtual_machine_writes_whole_pages() -> None:
    with pytest.raises(ValueError, match="heads: a virtual machine writes whole pages"):
        shares(WorkloadParameters.for_memory(MIB, MIB, heads_only=True), 1)


def test_an_area_reads_as_it_was_written() -> None:
    memory = filled(4 * MIB, 2)
    for number in range(2):
        area = read_area(memory, 4 * MIB, number)
        assert area.parameters.seed == 7 + number
        assert (area.first_page, area.parameters.pages) == (512 * number, 512)
        assert (area.checked, area.mismatches, area.backwards, area.longest) == (0, 0, 0, 0)


def test_the_stamps_around_what_held_up_a_vcpu() -> None:
    memory = filled(4 * MIB, 2)
    words = memory.view("<u8")
    start = (layout._AREAS + layout._AREA_BYTES) // 8
    words[start + 16], words[start + 17] = 5, 9
    assert (read_stamps(memory, 0), read_stamps(memory, 1)) == ((0, 0), (5, 9))


def test_what_a_vcpu_has_noted_of_its_waits() -> None:
    memory = filled(4 * MIB, 2)
    words = memory.view("<u8")
    start = layout.area_at(1) // 8
    assert words[start + 19] == SLOW
    assert read_waits(memory, 1) == []
    words[start + 10], words[start + 20] = 1000, 2
    words[start + 21], words[start + 22] = 3 << 48 | 77, 9 << 48 | 88
    assert read_waits(memory, 1) == [(1003, 77), (1009, 88)]
    assert read_waits(memory, 0) == []
    words[start + 20] = 1 << 40  # guest memory may say anything
    assert len(read_waits(memory, 1)) == 256


def test_a_program_that_may_use_wide_registers() -> None:
    after_reset = bytes(SYSTEM_BYTES)
    narrow, wide = (first_system_registers(0, after_reset, wide=each) for each in (False, True))
    (before,), (after,) = (struct.unpack_from("<Q", each, 224 + 24) for each in (narrow, wide))
    assert after == before | 1 << 18


@pytest.mark.parametrize(
    ("word", "value"),
    [(2, 0), (2, 1 << 40), (5, 5000), (7, 0), (7, (1 << 32) + 1), (7, (1 << 32) + 2 * MIB + 4096)],
)
def test_an_area_that_makes_no_sense(word: int, value: int) -> None:
    memory = filled(4 * MIB, 1)
    memory.view("<u8")[layout._AREAS // 8 + word] = value
    with pytest.raises(ValueError, match=r"out of range|not in|page|block"):
        read_area(memory, 4 * MIB, 0)


def test_stacks_do_not_meet_what_others_use() -> None:
    stacks = [REGISTERS.unpack(first_registers(number, 9))[Register.RSP] for number in range(16)]
    assert all(above - below == layout._AREA_BYTES for below, above in pairwise(stacks))
    assert stacks[-1] < layout._TABLES
    assert all(stack % 16 == 8 for stack in stacks)
