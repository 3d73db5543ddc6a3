from __future__ import annotations

import numpy as np
import pytest

from sterna.guest.kvm.audit import audit
from sterna.guest.kvm.layout import COUNT, ERRORS
from sterna.guest.kvm.layout import WORKLOAD_REGISTERS as REGISTERS
from sterna.guest.schedule import WorkloadParameters
from sterna.guest.workload import PAGE_WORDS, Workload, registers_at

PARAMETERS = WorkloadParameters(42, 56, 24, 3, 4, 4)
WRITES = 50


class Stopped:
    """A vCPU that has done `WRITES` writes, and part of the next."""

    def __init__(self) -> None:
        self.memory = np.zeros(PARAMETERS.pages * 4096, np.uint8)
        self.workload = Workload(PARAMETERS, self.memory)
        self.workload.fill()
        self.workload.write(WRITES)
        self.registers = [0] * 18
        self.registers[COUNT] = WRITES
        for place, value in zip(REGISTERS, self.workload.registers, strict=True):
            self.registers[place] = value
        starts, _ = self.workload.schedule.runs(WRITES, WRITES + 1)
        self.page = int(starts[0])
        self.words = self.memory.view("<u8").reshape(-1, PAGE_WORDS)
        self.generation = int(self.words[self.page, 1])

    def write(self, words: int, registers: int = 0, count: int = 0) -> None:
        self.words[self.page, :words] = self.workload.content(self.page, self.generation + 1)[:words]
        after = registers_at(PARAMETERS.seed, WRITES + 1)
        for place, value in list(zip(REGISTERS, after, strict=True))[:registers]:
            self.registers[place] = value
        self.registers[COUNT] += count

    def audit(self) -> tuple[int, bool]:
        found = audit(PARAMETERS, self.memory, tuple(self.registers))
        assert found.pages_checked == PARAMETERS.pages
        return found.errors, found.registers_good


@pytest.mark.parametrize("words", [0, 1, 2, 3, 4, 200, 511, 512])
def test_a_page_that_is_being_written_is_no_error(words: int) -> None:  # [WKL-11]
    stopped = Stopped()
    stopped.write(words)
    assert stopped.audit() == (0, True)


@pytest.mark.parametrize("registers", [1, 2, 3, 4])
def test_registers_that_have_stepped_are_no_error(registers: int) -> None:  # [WKL-11]
    stopped = Stopped()
    stopped.write(PAGE_WORDS, registers)
    assert stopped.audit() == (0, True)


def test_a_write_that_is_done() -> None:
    stopped = Stopped()
    stopped.write(PAGE_WORDS, 4, 1)
    assert stopped.audit() == (0, True)


def test_registers_that_step_before_the_page_is_whole_are_an_error() -> None:
    stopped = Stopped()
    stopped.write(511, 1)
    assert stopped.audit() == (1, False)


def test_registers_that_step_out_of_order_are_an_error() -> None:
    stopped = Stopped()
    stopped.write(PAGE_WORDS)
    stopped.registers[REGISTERS[1]] = registers_at(PARAMETERS.seed, WRITES + 1)[1]
    assert stopped.audit() == (1, False)


def test_a_torn_page_is_an_error_even_if_it_is_the_next_one() -> None:
    stopped = Stopped()
    stopped.words[stopped.page, 100:] = stopped.workload.content(stopped.page, stopped.generation + 1)[100:]
    assert stopped.audit()[0] == 1


def test_a_stale_page_of_the_next_write_is_an_error() -> None:
    stopped = Stopped()
    stopped.words[stopped.page] = stopped.workload.content(stopped.page, stopped.generation - 1)
    assert stopped.audit()[0] == 2  # and the generations do not add up


def test_another_page_is_not_let_off() -> None:
    stopped = Stopped()
    stopped.write(100)
    stopped.words[stopped.page ^ 1, 5] += 1
    assert stopped.audit() == (1, True)


def test_errors_of_the_guest_are_its_own() -> None:
    stopped = Stopped()
    stopped.registers[ERRORS] = 9
    assert stopped.audit() == (0, True)  # they are counted where they are read


def test_a_count_that_no_workload_comes_to() -> None:
    stopped = Stopped()
    stopped.registers[COUNT] = 1 << 62
    with pytest.raises(ValueError, match="no workload"):
        stopped.audit()
