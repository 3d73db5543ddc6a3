"""The workload against a slow reference that follows spec/workload.md word by word."""

from __future__ import annotations

import struct
import zlib
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.guest.workload import (
    PAGE_BYTES,
    STATE_BYTES,
    Workload,
    WorkloadParameters,
    WorkloadState,
    registers_at,
)

M = 2**64
START = 0x5354524E574B4C44


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % M
    z = (z ^ z >> 27) * 0x94D049BB133111EB % M
    return z ^ z >> 31


def page_words(seed, page, generation):
    base = mix((mix(seed) + page * 0x9E3779B97F4A7C15 + generation * 0xD1B54A32D192ED03) % M)
    words = [(base + i * 0xBF58476D1CE4E5B9) % M for i in range(512)]
    words[0], words[1] = page, generation
    words[2] = (START + sum((2 * i + 1) * w for i, w in enumerate(words) if i != 2)) % M
    return words


class Reference:
    """One page at a time, every word spelled out; generations are kept, not computed."""

    def __init__(self, p):
        self.p = p
        self.live = p.pages - p.zero_pages
        self.generation = [0] * self.live
        self.memory = [page_words(p.seed, i, 0) for i in range(self.live)] + [[0] * 512] * p.zero_pages
        self.count = 0
        self.errors = 0
        self.registers = [mix((p.seed + i) % M) for i in (1, 2, 3, 4)]
        self.touched = []

    def block(self, first, pages, seed, visit):
        n = pages // self.p.block_pages
        stride = n * 0x9E3779B9 // 2**32 | 1
        while gcd(stride, n) != 1:
            stride += 1
        return first + (visit % n * stride + mix(seed) % n) % n * self.p.block_pages

    def page(self, k):
        p = self.p
        slot, offset = divmod(k, p.block_pages)
        if p.cold_every and slot % p.cold_every == p.cold_every - 1:
            cold = self.live - p.hot_pages
            return self.block(p.hot_pages, cold, p.seed ^ (M - 1), slot // p.cold_every) + offset
        visit = slot - (slot // p.cold_every if p.cold_every else 0)
        return self.block(0, p.hot_pages, p.seed, visit) + offset

    def write(self):
        page = self.page(self.count)
        if self.memory[page] != page_words(self.p.seed, page, self.generation[page]):
            self.errors += 1
        self.generation[page] += 1
        self.memory[page] = page_words(self.p.seed, page, self.generation[page])
        self.touched.append(page)
        self.count += 1
        steps = (
            (0x5851F42D4C957F2D, 0x14057B7EF767814F),
            (0x27BB2EE687B0B0FD, 0x9E3779B97F4A7C15),
            (0xD1342543DE82EF95, 0xBF58476D1CE4E5B9),
            (0x369DEA0F31A53F85, 0x94D049BB133111EB),
        )
        self.registers = [(r * a + b) % M for r, (a, b) in zip(self.registers, steps, strict=True)]

    def image(self):
        return b"".join(struct.pack("<512Q", *page) for page in self.memory)


@st.composite
def parameters(draw):
    block = draw(st.integers(1, 5))
    hot = draw(st.integers(1, 5)) * block
    cold = draw(st.integers(0, 4)) * block
    zero = draw(st.integers(0, 3))
    every = draw(st.integers(2, 5)) if cold and draw(st.booleans()) else 0
    return WorkloadParameters(draw(st.integers(0, M - 1)), hot + cold + zero, hot, every, block, zero)


def make(p):
    memory = bytearray(p.pages * PAGE_BYTES)
    workload = Workload(p, memory)
    workload.fill()
    return workload, memory


SMALL = WorkloadParameters(seed=7, pages=60, hot_pages=24, cold_every=3, block_pages=4, zero_pages=4)


@settings(max_examples=40, deadline=None)
@given(parameters(), st.lists(st.integers(0, 60), max_size=5))
def test_every_step_equals_the_reference(p, steps):
    reference = Reference(p)
    workload, memory = make(p)
    assert memory == reference.image()
    for n in steps:
        before = reference.count
        workload.write(n)
        for _ in range(n):
            reference.write()
        assert memory == reference.image()
        assert (workload.count, list(workload.registers)) == (reference.count, reference.registers)
        touched = reference.touched[before:]
        assert workload.distinct_pages(before, before + n) == len(set(touched))
        starts, counts = workload.schedule.runs(before, before + n)
        runs = zip(starts.tolist(), counts.tolist(), strict=True)
        assert [page for first, count in runs for page in range(first, first + count)] == sorted(set(touched))
        pages = np.arange(reference.live, dtype=np.uint64)
        assert workload.schedule.generations(pages, workload.count).tolist() == reference.generation
    audit = workload.audit()
    assert (audit.errors, workload.errors, audit.pages_checked) == (0, 0, p.pages)
    assert audit.generations == audit.count == sum(reference.generation)


def test_large_steps_equal_small_ones():
    p = WorkloadParameters(seed=3, pages=4096, hot_pages=1024, cold_every=5, block_pages=8, zero_pages=24)
    (one, memory_one), (many, memory_many) = make(p), make(p)
    one.write(70000)
    for _ in range(70):
        many.write(1000)
    assert memory_one == memory_many
    assert one.to_state() == many.to_state()
    assert one.audit().errors == 0


@settings(max_examples=60, deadline=None)
@given(parameters(), st.integers(0, 300), st.data())
def test_any_changed_word_is_noticed(p, n, data):  # [WKL-8]
    workload, memory = make(p)
    workload.write(n)
    words = np.frombuffer(memory, np.uint64)
    where = data.draw(st.integers(0, len(words) - 1))
    words[where] ^= np.uint64(data.draw(st.integers(1, M - 1)))
    audit = workload.audit()
    assert audit.errors >= 1
    assert [bad.page for bad in audit.bad_pages] == [where // 512]
    assert workload.audit(exact=False).errors >= 1


@pytest.mark.parametrize("cut", [2, 3, 4, 100, 256, 511])
@pytest.mark.parametrize("old_first", [False, True])
def test_a_torn_page_is_noticed_by_the_next_write(cut, old_first):  # [WKL-4]
    workload, memory = make(SMALL)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    workload.write(24)
    old = words.copy()
    workload.write(36)
    page = int(workload.schedule.slots(15, 1)[0][0])
    half = slice(0, cut) if old_first else slice(cut, 512)
    words[page, half] = old[page, half]
    workload.write(1)
    assert workload.errors == 1
    assert workload.first_errors[0].page == page


def test_a_stale_page_is_noticed_by_its_next_write_and_names_its_generation():  # [WKL-4] [WKL-5]
    workload, memory = make(SMALL)
    workload.write(36)
    stale = bytes(memory[:PAGE_BYTES])
    workload.write(36)
    memory[:PAGE_BYTES] = stale
    bad = workload.audit().bad_pages
    assert [(b.page, b.reason, b.generation, b.expected_generation) for b in bad] == [(0, "generation", 1, 2)]
    workload.write(36)
    assert workload.errors == 1
    assert workload.first_errors == list(bad)
    # The write after the error was a good one: the guest goes on.
    assert workload.audit().errors == 0


def test_a_misplaced_a_swapped_and_a_lost_page_have_their_reasons():
    workload, memory = make(SMALL)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    words[1] = words[0]
    words[2, [7, 300]] = words[2, [300, 7]]
    words[3] = 0
    words[59, 17] = 1
    assert [(bad.page, bad.reason) for bad in workload.audit().bad_pages] == [
        (1, "number"),
        (2, "checksum"),
        (3, "number"),
        (59, "zero"),
    ]
    words[0] = 0  # a zero page 0 has the right number and generation
    assert workload.audit(exact=False).bad_pages[0].reason == "checksum"


def test_only_the_first_bad_pages_are_described():
    workload, memory = make(WorkloadParameters(seed=1, pages=20, hot_pages=4, block_pages=4, zero_pages=12))
    memory[:] = b"\1" * len(memory)
    audit = workload.audit()
    assert audit.errors == 20 + 1  # and the sum of the generations
    assert [bad.page for bad in audit.bad_pages] == list(range(8))


def test_exactness_finds_what_a_forged_checksum_hides():
    workload, memory = make(SMALL)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    words[5, 10] += np.uint64(23)  # weights 21 and 23 cancel
    words[5, 11] -= np.uint64(21)
    assert workload.audit(exact=False).errors == 0
    assert [(bad.page, bad.reason) for bad in workload.audit().bad_pages] == [(5, "content")]


def test_a_lost_count_is_noticed():  # [WKL-9]
    workload, memory = make(SMALL)
    workload.write(50)
    workload.count = 49
    audit = workload.audit()
    assert audit.errors == 3  # the page of write 49, the registers, the sum of generations
    assert (audit.registers_good, audit.generations, audit.count) == (False, 50, 49)
    assert len(memory) == SMALL.pages * PAGE_BYTES


def test_a_lost_register_is_noticed_while_running_and_counted_once():
    workload, _ = make(SMALL)
    workload.write(10)
    registers = list(workload.registers)
    registers[2] ^= 1
    workload.registers = tuple(registers)
    assert workload.audit().errors == 1
    workload.write(65536 - 10)
    assert workload.errors == 0
    workload.write(1)
    assert workload.errors == 1
    workload.write(200_000)
    assert workload.errors == 1
    assert workload.registers == registers_at(SMALL.seed, workload.count)


def test_memory_that_was_never_filled_is_all_errors():
    workload = Workload(SMALL, bytearray(SMALL.pages * PAGE_BYTES))
    workload.write(20)
    assert workload.errors == 20
    assert len(workload.first_errors) == 8


def test_a_guest_with_every_error_that_there_can_be_still_moves():
    """[WKL-10]: its first write may find a bad page and bad registers."""
    workload = Workload(SMALL, bytearray(SMALL.pages * PAGE_BYTES))
    workload.registers = (0, 0, 0, 0)
    workload.write(1)
    assert workload.errors == 2
    assert WorkloadState.from_bytes(workload.to_state()).errors == 2


def test_content_does_not_compress():
    _, memory = make(WorkloadParameters(seed=1, pages=64, hot_pages=64))
    assert len(zlib.compress(memory)) > 0.95 * len(memory)


def test_read_only_memory_can_be_audited():
    workload, memory = make(SMALL)
    workload.write(100)
    image = Workload.from_state(workload.to_state(), memoryview(bytes(memory)))
    assert image.audit().errors == 0
    with pytest.raises(ValueError, match="read-only"):
        image.write(1)


def test_memory_must_have_its_size():
    for size in (0, PAGE_BYTES * 59, PAGE_BYTES * 61, PAGE_BYTES * 60 + 1):
        with pytest.raises(ValueError, match=r"bytes|buffer"):
            Workload(SMALL, bytearray(size))


@settings(max_examples=30, deadline=None)
@given(parameters(), st.integers(0, 100), st.integers(0, 100))
def test_state_moves_the_workload(p, n, more):
    workload, memory = make(p)
    workload.write(n)
    state = workload.to_state()
    assert len(state) == STATE_BYTES
    copy = bytearray(memory)
    other = Workload.from_state(state, copy)
    assert other.to_state() == state
    workload.write(more)
    other.write(more)
    assert copy == memory
    assert other.errors == 0
    assert other.to_state() == workload.to_state()


@given(st.binary(max_size=200))
def test_hostile_state_is_a_value_error(data):
    with pytest.raises(ValueError, match=r".+"):
        WorkloadState.from_bytes(data)


def reseal(data):
    words = struct.unpack("<14Q", data[:112])
    check = (START + sum((2 * i + 1) * w for i, w in enumerate(words))) % M
    return data[:112] + struct.pack("<Q", check)


@settings(max_examples=200)
@given(st.integers(0, 14), st.integers(0, M - 1), st.booleans())
def test_any_changed_state_word_is_refused(index, value, sealed):
    workload, _ = make(SMALL)
    workload.write(33)
    state = workload.to_state()
    changed = state[: 8 * index] + struct.pack("<Q", value) + state[8 * index + 8 :]
    if changed == state:
        return
    if not sealed:
        with pytest.raises(ValueError, match=r".+"):
            WorkloadState.from_bytes(changed)
        return
    try:
        got = WorkloadState.from_bytes(reseal(changed))
    except ValueError:
        return
    # Legal again with a new checksum: other parameters, or another number of errors.
    assert reseal(changed) == got.to_bytes()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, 0, "not a workload's state"),
        (1, 2 | 120 << 32, "not a workload's state"),
        (3, 0, "pages"),
        (3, 1 << 32, "pages"),
        (4, 3, "less than a block"),
        (4, 25, "whole blocks"),
        (5, 1 << 40, "exceed"),
        (6, 0, "block_pages"),
        (6, 1025, "block_pages"),
        (7, 1, "cold_every"),
        (7, 1 << 32, "cold_every"),
        (8, 1 << 62, "count"),
        (8, 34, "registers"),
        (9, 67, "errors"),
        (10, 0, "registers"),
    ],
)
def test_each_rule_of_the_state_is_checked(index, value, message):  # [WKL-1] [WKL-10]
    workload, _ = make(SMALL)
    workload.write(33)
    state = workload.to_state()
    changed = state[: 8 * index] + struct.pack("<Q", value) + state[8 * index + 8 :]
    with pytest.raises(ValueError, match=message):
        WorkloadState.from_bytes(reseal(changed))


def test_the_count_stays_in_its_range():
    workload, _ = make(SMALL)
    for n in (-1, 1 << 62):
        with pytest.raises(ValueError, match="range"):
            workload.write(n)
