"""An audit of a KVM guest's workload from outside, of a vCPU that may have stopped in the middle of a write.

A vCPU stops between any two instructions. The page that it was writing then has some of its words, from the
first one on, of the new generation and the rest of the old one, as program.c stores them; with the page
whole, registers 0 to 3 may have stepped, in this order, and the count not yet. Nothing else is allowed for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.guest.kvm.layout import COUNT, ERRORS, WORKLOAD_REGISTERS
from sterna.guest.schedule import COUNT_END, Words, WorkloadParameters
from sterna.guest.workload import PAGE_WORDS, Audit, Workload, registers_at


def audit(parameters: WorkloadParameters, memory: npt.NDArray[np.uint8], registers: tuple[int, ...]) -> Audit:
    """Verify a share of the memory and the registers of its vCPU.

    Args:
        parameters: of the vCPU's workload.
        memory: its share, which nobody writes meanwhile.
        registers: its general-purpose registers.

    Raises:
        ValueError: they are not those of a workload.
    """
    if registers[COUNT] >= COUNT_END:
        raise ValueError("a count that no workload comes to")
    workload = Workload(parameters, memory)
    workload.count, workload.errors = registers[COUNT], registers[ERRORS]
    workload.registers = tuple(registers[each] for each in WORKLOAD_REGISTERS)
    found = workload.audit()
    words, stepped = _under_way(workload, memory.view("<u8").reshape(-1, PAGE_WORDS))
    errors = found.errors
    if words:
        errors -= 1  # the page differs from what the count says, in the way that it may
        errors -= words >= 2 and found.generations == (found.count + 1) % (1 << 64)
        errors -= not found.registers_good and stepped
    good = found.registers_good or stepped
    return Audit(found.pages_checked, errors, found.count, found.generations, good, found.bad_pages)


def _under_way(workload: Workload, pages: Words) -> tuple[int, bool]:
    """How many words of a page are written, 0 if none is or it is torn; whether registers have stepped."""
    count = workload.count
    starts, _ = workload.schedule.runs(count, count + 1)
    page = int(starts[0])
    generation = int(workload.schedule.generations(starts, count)[0])
    old, new = (workload.content(page, each) for each in (generation, generation + 1))
    live = pages[page]
    differs = np.flatnonzero(live != new)
    words = int(differs[0]) if len(differs) else PAGE_WORDS
    if (live == old).all() or (live[words:] != old[words:]).any():
        return 0, False
    now, then = (registers_at(workload.parameters.seed, each) for each in (count, count + 1))
    steps = [then[:done] + now[done:] for done in range(1, len(now) + 1)]
    return words, words == PAGE_WORDS and workload.registers in steps
