"""The workload against a slow reference that follows spec/workload.md word by word."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.guest.workload import (
    PAGE_BYTES,
    STATE_BYTES,
    STATE_VERSIONS,
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


def page_words(p, page, generation):
    content = 0 if p.heads_only else generation
    base = mix((mix(p.seed) + page * 0x9E3779B97F4A7C15 + content * 0xD1B54A32D192ED03) % M)
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
        self.memory = [page_words(p, i, 0) for i in range(self.live)] + [[0] * 512] * p.zero_pages
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
        size = 3 if self.p.heads_only else 512
        if self.memory[page][:size] != page_words(self.p, page, self.generation[page])[:size]:
            self.errors += 1
        self.generation[page] += 1
        self.memory[page][:size] = page_words(self.p, page, self.generation[page])[:size]
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
    seed, heads = draw(st.integers(0, M - 1)), draw(st.booleans())
    return WorkloadParameters(seed, hot + cold + zero, hot, every, block, zero, heads)


def make(p):
    memory = bytearray(p.pages * PAGE_BYTES)
    workload = Workload(p, memory)
    workload.fill()
    return workload, memory


SMALL = WorkloadParameters(seed=7, pages=60, hot_pages=24, cold_every=3, block_pages=4, zero_pages=4)
HEADS = replace(SMALL, heads_only=True)
FORMS = pytest.mark.parametrize("p", [SMALL, HEADS], ids=["whole", "heads"])


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


@pytest.mark.parametrize("heads_only", [False, True])
def test_large_steps_equal_small_ones(heads_only):
    p = WorkloadParameters(3, 4096, 1024, cold_every=5, block_pages=8, zero_pages=24, heads_only=heads_only)
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


@FORMS
def test_a_stale_page_is_noticed_by_its_next_write_and_names_its_generation(p):  # [WKL-4] [WKL-5] [WKL-12]
    workload, memory = make(p)
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


@FORMS
def test_a_misplaced_a_swapped_and_a_lost_page_have_their_reasons(p):
    workload, memory = make(p)
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


@FORMS
def test_exactness_finds_what_a_forged_checksum_hides(p):
    workload, memory = make(p)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    words[5, 10] += np.uint64(23)  # weights 21 and 23 cancel
    words[5, 11] -= np.uint64(21)
    assert workload.audit(exact=False).errors == 0
    assert [(bad.page, bad.reason) for bad in workload.audit().bad_pages] == [(5, "content")]


@FORMS
def test_a_lost_count_is_noticed(p):  # [WKL-9]
    workload, memory = make(p)
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


@settings(max_examples=60, deadline=None)
@given(st.integers(24, 200), st.data())
def test_heads_alone_are_verified_and_renewed(n, data):  # [WKL-5] [WKL-8] [WKL-12]
    """What was done to a page is found in its head by the next write, in its content by the audit alone."""
    workload, memory = make(HEADS)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    workload.write(n)
    was = words.copy()
    page = int(workload.schedule.runs(n, n + 1)[0][0])
    other = data.draw(st.integers(0, 55).filter(lambda each: each != page))
    first = make(HEADS)[1]
    heads = {
        "good": was[page, :3],
        "of a lost write": np.frombuffer(first, np.uint64).reshape(-1, 512)[page, :3],
        "another's": was[other, :3],
        "lost": np.zeros(3, np.uint64),
    }
    contents = {"good": was[page, 3:], "another's": was[other, 3:], "lost": np.zeros(509, np.uint64)}
    words[page, :3] = heads[data.draw(st.sampled_from(sorted(heads)))]
    words[page, 3:] = contents[data.draw(st.sampled_from(sorted(contents)))]
    if data.draw(st.booleans()):
        words[page, data.draw(st.integers(0, 511))] ^= np.uint64(data.draw(st.integers(1, M - 1)))
    in_head = bool((words[page, :3] != was[page, :3]).any())
    in_content = bool((words[page, 3:] != was[page, 3:]).any())
    seen = [bad.page for bad in workload.audit().bad_pages]
    assert seen == ([page] if in_head or in_content else [])
    left = words[:, 3:].copy()
    workload.write(data.draw(st.integers(1, 200)))
    assert workload.errors == in_head
    assert [bad.page for bad in workload.first_errors] == ([page] if in_head else [])
    assert (words[:, 3:] == left).all()
    found = workload.audit()
    assert [(bad.page, bad.reason) for bad in found.bad_pages] == ([(page, "checksum")] if in_content else [])
    assert (found.errors, found.generations) == (in_content, workload.count)


@FORMS
def test_memory_that_was_never_filled_is_all_errors(p):
    workload = Workload(p, bytearray(SMALL.pages * PAGE_BYTES))
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


@FORMS
def test_the_version_of_a_state_is_that_of_its_form_and_of_what_surrounds_it(p):  # [WKL-10]
    workload, memory = make(p)
    state, mine = workload.to_state(), STATE_VERSIONS[p.heads_only]
    assert (int.from_bytes(state[8:12], "little"), workload.state.version) == (mine, mine)
    assert Workload.from_state(state, memory, mine).parameters == p
    other = 3 - mine
    with pytest.raises(ValueError, match=f"of version {mine} as one of version {other}"):
        Workload.from_state(state, memory, other)


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
        (1, 0 | 120 << 32, "not a workload's state"),
        (1, 3 | 120 << 32, "not a workload's state"),
        (1, 2 | 121 << 32, "not a workload's state"),
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
