"""The self-auditing workload, in numpy. spec/workload.md is the algorithm; this is one guest's form of it.

Every page carries its number, its generation and a checksum over its content, and the content follows
from (seed, page, generation). Which page write number k goes to is a pure function of k, so the count of
writes, which is CPU state and not memory, says what every page must hold. Each write verifies its page
against that before it writes the next generation: a stale, torn, misplaced or lost page is noticed by the
guest itself at its next visit (of a guest that writes heads alone, the content by the audit), a count or
register that was lost at once.

Speed: a slot (a block of `block_pages` neighbouring pages) is small enough for the second-level cache and
costs four numpy calls: checksum and headers out, content and headers in. Everything of a page's size but
not of a page's bytes is computed for `_BATCH_SLOTS` slots at a time. The checksum is linear in the content
and the content linear in its base, so that the checksum which a page must have needs no pass over it. Where
a write renews heads alone a slot costs two calls, headers out and in, and no pass over content at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.guest.schedule import (
    BLOCK_PAGES_MAX,
    COUNT_END,
    PAGE_BYTES,
    Schedule,
    Words,
    WorkloadParameters,
    mix64,
)

__all__ = [
    "HEAD_WORDS",
    "PAGE_BYTES",
    "PAGE_WORDS",
    "STATE_BYTES",
    "STATE_VERSIONS",
    "Audit",
    "BadPage",
    "Workload",
    "WorkloadParameters",
    "WorkloadState",
    "registers_at",
]

PAGE_WORDS: Final = PAGE_BYTES // 8
HEAD_WORDS: Final = 3  # number, generation, checksum
STATE_BYTES: Final = 120
STATE_VERSIONS: Final = (1, 2)  # of workloads that write whole pages, and heads alone

_MASK: Final = (1 << 64) - 1
_PAGE_STEP: Final = 0x9E3779B97F4A7C15
_GENERATION_STEP: Final = 0xD1B54A32D192ED03
_WORD_STEP: Final = 0xBF58476D1CE4E5B9
_CHECK_START: Final = 0x5354524E574B4C44  # so that a page of zeros has no valid checksum
# Checksum weights are odd, so no single word can change unseen; they differ, so no two can be swapped.
_BODY_WEIGHT: Final = sum(2 * i + 1 for i in range(HEAD_WORDS, PAGE_WORDS))
_STEP_WEIGHT: Final = _WORD_STEP * sum((2 * i + 1) * i for i in range(HEAD_WORDS, PAGE_WORDS)) & _MASK
_REGISTER_STEPS: Final = (  # (multiplier, increment) of four full-period generators modulo 2**64
    (0x5851F42D4C957F2D, 0x14057B7EF767814F),
    (0x27BB2EE687B0B0FD, 0x9E3779B97F4A7C15),
    (0xD1342543DE82EF95, 0xBF58476D1CE4E5B9),
    (0x369DEA0F31A53F85, 0x94D049BB133111EB),
)
_REGISTER_CHECK: Final = 1 << 16  # writes between two looks at the registers
_STATE: Final = struct.Struct("<8sII13Q")  # magic, version, size, 8 fields, 4 registers, checksum
_STATE_MAGIC: Final = b"STRNWORK"
_BATCH_SLOTS: Final = 32
_AUDIT_PAGES: Final = 128
_BAD_PAGES_KEPT: Final = 8

Memory: TypeAlias = "memoryview | bytearray | npt.NDArray[np.uint8]"

_INDEX: Final[Words] = np.arange(PAGE_WORDS, dtype=np.uint64)
_IN_BLOCK: Final[Words] = np.arange(BLOCK_PAGES_MAX, dtype=np.uint64)
_RAMP: Final[Words] = _INDEX * np.uint64(_WORD_STEP)
_WEIGHTS: Final[Words] = np.where(_INDEX == 2, np.uint64(0), 2 * _INDEX + np.uint64(1))
_BEFORE_AND_AFTER: Final[Words] = np.array([[[0]], [[1]]], np.uint64)
_PAGE_STEP_WORD: Final = np.uint64(_PAGE_STEP)
_GENERATION_STEP_WORD: Final = np.uint64(_GENERATION_STEP)
_BODY_WEIGHT_WORD: Final = np.uint64(_BODY_WEIGHT)
_CHECK_FIXED: Final = np.uint64((_CHECK_START + _STEP_WEIGHT) & _MASK)
_NONE: Final = np.uint64(0)
_THREE: Final = np.uint64(3)
_MIX: Final = tuple(np.uint64(word) for word in (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31))


def _mix64_words(words: Words) -> Words:
    words = (words ^ words >> _MIX[0]) * _MIX[1]
    words = (words ^ words >> _MIX[2]) * _MIX[3]
    return words ^ words >> _MIX[4]


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page that does not hold what it must. `reason` is number, generation, checksum, content or zero."""

    page: int
    reason: str
    number: int
    generation: int
    expected_generation: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        errors: bad pages, plus one if the registers do not belong to the count, plus one if the
            generations do not add up to it.
        generations: sum of the generations of all pages, modulo 2**64.
        bad_pages: the first few of them.
    """

    pages_checked: int
    errors: int
    count: int
    generations: int
    registers_good: bool
    bad_pages: tuple[BadPage, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """The CPU state of a workload."""

    parameters: WorkloadParameters
    count: int = 0
    errors: int = 0
    registers: tuple[int, ...] = ()

    @property
    def version(self) -> int:
        """Of its layout, by which a write's form is told."""
        return STATE_VERSIONS[self.parameters.heads_only]

    def to_bytes(self) -> bytes:
        """The fixed layout of spec/workload.md."""
        p = self.parameters
        fields = (p.seed, p.pages, p.hot_pages, p.zero_pages, p.block_pages, p.cold_every)
        body = (*fields, self.count, self.errors, *self.registers)
        data = _STATE.pack(_STATE_MAGIC, self.version, STATE_BYTES, *body, 0)
        return data[:-8] + _state_checksum(data).to_bytes(8, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> WorkloadState:
        """Read and check a state of any origin.

        Raises:
            ValueError: it is not a workload's state, or a register was lost.
        """
        if len(data) != STATE_BYTES:
            raise ValueError(f"{len(data)} bytes are not a workload's state")
        magic, version, size, *words, checksum = _STATE.unpack(data)
        if (magic, size) != (_STATE_MAGIC, STATE_BYTES) or version not in STATE_VERSIONS:
            raise ValueError("not a workload's state, or of another version")
        if checksum != _state_checksum(data):
            raise ValueError("the state does not match its checksum")
        seed, pages, hot_pages, zero_pages, block_pages, cold_every, count, errors, *registers = words
        heads_only = version == STATE_VERSIONS[True]
        parameters = WorkloadParameters(
            seed, pages, hot_pages, cold_every, block_pages, zero_pages, heads_only
        )
        # A write counts one for its page, and some one more for the registers.
        if count >= COUNT_END or errors > 2 * count:
            raise ValueError("count or errors out of range")
        if tuple(registers) != registers_at(seed, count):
            raise ValueError("the registers do not belong to the count")
        return cls(parameters, count, errors, tuple(registers))


def _state_checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack("<14Q", data[:112])
    return (_CHECK_START + sum((2 * i + 1) * word for i, word in enumerate(words))) & _MASK


def _advance(multiplier: int, increment: int, value: int, steps: int) -> int:
    """`value` after this many steps of ``value * multiplier + increment``, in log(steps)."""
    total_multiplier, total_increment = 1, 0
    while steps:
        if steps & 1:
            total_multiplier = total_multiplier * multiplier & _MASK
            total_increment = (total_increment * multiplier + increment) & _MASK
        increment = increment * (multiplier + 1) & _MASK
        multiplier = multiplier * multiplier & _MASK
        steps >>= 1
    return (value * total_multiplier + total_increment) & _MASK


def registers_at(seed: int, count: int) -> tuple[int, ...]:
    """The four registers after `count` writes."""
    starts = (mix64((seed + i) & _MASK) for i in range(1, len(_REGISTER_STEPS) + 1))
    return tuple(_advance(*step, start, count) for step, start in zip(_REGISTER_STEPS, starts, strict=True))


class Workload:
    """A workload over memory that the caller owns. Not thread-safe; keeps the memory's buffer exported.

    Args:
        parameters: what to do.
        memory: exactly `parameters.pages` pages, contiguous; read-only memory can be audited.

    Raises:
        ValueError: the memory has another size.
    """

    def __init__(self, parameters: WorkloadParameters, memory: Memory) -> None:
        words = np.frombuffer(memory, dtype="<u8")
        if len(words) != parameters.pages * PAGE_WORDS:
            raise ValueError(f"{words.nbytes} bytes of memory for {parameters.pages} pages")
        self.parameters = parameters
        self.count = 0
        self.errors = 0
        self.registers = registers_at(parameters.seed, 0)
        self.first_errors: list[BadPage] = []
        p = parameters
        self._words: Words = words.reshape(-1, PAGE_WORDS)
        self._seed = np.uint64(mix64(p.seed))
        self.schedule: Final = Schedule(p)
        shape = (_BATCH_SLOTS, p.block_pages)
        self._sums: Words = np.empty(shape, np.uint64)
        self._heads: Words = np.empty((*shape, HEAD_WORDS), np.uint64)

    @classmethod
    def from_state(cls, data: bytes, memory: Memory, version: int | None = None) -> Workload:
        """The workload that `to_state` described, over memory that was moved.

        Args:
            data: the state.
            memory: see above.
            version: that the state must have, where something around it says so.

        Raises:
            ValueError: the state is not good, of another version, or not for a memory of this size.
        """
        state = WorkloadState.from_bytes(data)
        if version not in {None, state.version}:
            raise ValueError(f"a workload's state of version {state.version} as one of version {version}")
        workload = cls(state.parameters, memory)
        workload.count, workload.errors, workload.registers = state.count, state.errors, state.registers
        return workload

    @property
    def state(self) -> WorkloadState:
        """The CPU state."""
        return WorkloadState(self.parameters, self.count, self.errors, self.registers)

    def to_state(self) -> bytes:
        """The CPU state, in a layout of `STATE_BYTES` bytes."""
        return self.state.to_bytes()

    def fill(self) -> None:
        """Generation 0 everywhere; count, errors and registers begin anew."""
        p = self.parameters
        live = p.pages - p.zero_pages
        for first in range(0, live, _AUDIT_PAGES):
            pages = np.arange(first, min(first + _AUDIT_PAGES, live), dtype=np.uint64)
            heads, bases = self._expected(pages, np.zeros_like(pages))
            view = self._words[first : first + len(pages)]
            np.add(bases[:, None], _RAMP, out=view)
            view[:, :HEAD_WORDS] = heads
        self._words[live:] = 0
        self.count = self.errors = 0
        self.registers = registers_at(p.seed, 0)
        self.first_errors.clear()

    def write(self, n: int) -> None:
        """Verify and write the next `n` pages of the schedule.

        Raises:
            ValueError: the count would leave its range.
        """
        if not 0 <= n < COUNT_END - self.count:
            raise ValueError("the count would leave its range")
        size, count, end = self.parameters.block_pages, self.count, self.count + n
        while count < end:
            slot, offset = divmod(count, size)
            if offset or end - count < size:
                slots, pages = 1, min(size - offset, end - count)
            else:
                slots, pages = min((end - count) // size, _BATCH_SLOTS), size
            self._write_slots(slot, slots, offset, pages)
            count += slots * pages
        # Memory, count and registers move on together: a pause falls between two calls, never into one.
        self._advance_registers(n)
        self.count = end

    def _advance_registers(self, n: int) -> None:
        if (self.count + n - 1) // _REGISTER_CHECK != (self.count - 1) // _REGISTER_CHECK:
            registers = registers_at(self.parameters.seed, self.count)
            self.errors += self.registers != registers
            self.registers = registers
        pairs = zip(_REGISTER_STEPS, self.registers, strict=True)
        self.registers = tuple(_advance(*step, value, n) for step, value in pairs)

    def audit(self, *, exact: bool = True) -> Audit:
        """Verify every page and register against the count. Writes nothing.

        Args:
            exact: compare every word too, instead of trusting the checksum.
        """
        p = self.parameters
        errors = total = 0
        bad: list[BadPage] = []
        for first in range(0, p.pages - p.zero_pages, _AUDIT_PAGES):
            pages = np.arange(first, min(first + _AUDIT_PAGES, p.pages - p.zero_pages), dtype=np.uint64)
            view = self._words[first : first + len(pages)]
            expected, bases = self._expected(pages, self.schedule.generations(pages, self.count))
            sums = np.einsum("ij,j->i", view, _WEIGHTS) + np.uint64(_CHECK_START)
            wrong = (bases[:, None] + _RAMP != view)[:, HEAD_WORDS:].any(axis=1) if exact else None
            errors += self._judge(view[:, :HEAD_WORDS], sums, expected, bad, wrong)
            total += int(view[:, 1].sum())
        for first in range(p.pages - p.zero_pages, p.pages, _AUDIT_PAGES):
            for page in np.flatnonzero(self._words[first : first + _AUDIT_PAGES].any(axis=1)).tolist():
                errors += 1
                if len(bad) < _BAD_PAGES_KEPT:
                    bad.append(BadPage(first + page, "zero", 0, 0, 0))
        registers_good = self.registers == registers_at(p.seed, self.count)
        errors += (not registers_good) + (total & _MASK != self.count)
        return Audit(p.pages, errors, self.count, total & _MASK, registers_good, tuple(bad))

    def content(self, page: int, generation: int) -> Words:
        """All words of a hot or cold page in this generation."""
        heads, bases = self._expected(np.array([page], np.uint64), np.array([generation], np.uint64))
        words = bases + _RAMP
        words[:HEAD_WORDS] = heads[0]
        return words

    def distinct_pages(self, count_a: int, count_b: int) -> int:
        """How many different pages the writes number count_a to count_b - 1 go to."""
        return self.parameters.distinct_pages(count_a, count_b)

    def _expected(self, pages: Words, generations: Words) -> tuple[Words, Words]:
        """Headers (..., 3) and content bases (...) of pages at these generations; shapes broadcast.

        Of a workload that writes heads alone content stays, and bases have the shape of `pages`.
        """
        content = _NONE if self.parameters.heads_only else generations
        bases = _mix64_words(pages * _PAGE_STEP_WORD + (content * _GENERATION_STEP_WORD + self._seed))
        heads = np.empty((*np.broadcast_shapes(pages.shape, generations.shape), HEAD_WORDS), np.uint64)
        heads[..., 0] = pages
        heads[..., 1] = generations
        heads[..., 2] = bases * _BODY_WEIGHT_WORD + (pages + (generations * _THREE + _CHECK_FIXED))
        return heads, bases

    def _write_slots(self, slot: int, slots: int, offset: int, pages: int) -> None:
        """Verify and write `pages` pages from `offset` on in each of `slots` slots."""
        firsts, generations = self.schedule.slots(slot, slots)
        numbers = firsts[:, None] + _IN_BLOCK[offset : offset + pages]
        (before, after), bases = self._expected(numbers, generations[:, None] + _BEFORE_AND_AFTER)
        heads = self._heads[:slots, :pages]
        sums: Words | None = None
        if self.parameters.heads_only:
            self._renew_heads(numbers[:, 0], after, heads)
        else:
            sums = self._sums[:slots, :pages]
            self._renew(numbers[:, 0], after, bases[1], heads, sums)
            sums = sums.ravel()
        self.errors += self._judge(
            heads.reshape(-1, HEAD_WORDS), sums, before.reshape(-1, HEAD_WORDS), self.first_errors
        )

    def _renew(self, firsts: Words, after: Words, bases: Words, heads: Words, sums: Words) -> None:
        """Write neighbours from each of `firsts` on; their heads and checksums before that come out."""
        pages = after.shape[1]
        for i, first in enumerate(firsts.tolist()):
            view = self._words[first : first + pages]
            np.einsum("ij,j->i", view, _WEIGHTS, out=sums[i])
            heads[i] = view[:, :HEAD_WORDS]
            np.add(bases[i, :, None], _RAMP, out=view)
            view[:, :HEAD_WORDS] = after[i]
        sums += np.uint64(_CHECK_START)

    def _renew_heads(self, firsts: Words, after: Words, heads: Words) -> None:
        """The same, of heads alone."""
        pages = after.shape[1]
        for i, first in enumerate(firsts.tolist()):
            view = self._words[first : first + pages, :HEAD_WORDS]
            heads[i] = view
            view[...] = after[i]

    @staticmethod
    def _judge(
        heads: Words,
        sums: Words | None,
        expected: Words,
        bad: list[BadPage],
        wrong: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Count pages that are not as expected; describe the first few in `bad`.

        Without sums heads alone are judged.
        """
        differs = heads != expected
        checksum = differs[:, 2]
        if sums is not None:
            checksum = checksum | (sums != expected[:, 2])
        broken = differs[:, 0] | differs[:, 1] | checksum
        if wrong is not None:
            broken |= wrong
        found = np.flatnonzero(broken)
        for i in found[: max(_BAD_PAGES_KEPT - len(bad), 0)].tolist():
            reasons = ((differs[i, 0], "number"), (differs[i, 1], "generation"), (checksum[i], "checksum"))
            reason = next((name for hit, name in reasons if hit), "content")
            number, generation, _ = heads[i].tolist()
            bad.append(BadPage(int(expected[i, 0]), reason, number, generation, int(expected[i, 1])))
        return len(found)
