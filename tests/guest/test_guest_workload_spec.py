"""spec/workload.md says what the code does: its worked example, its state, and its listing in C."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sterna.guest.workload import PAGE_BYTES, Workload, WorkloadParameters, registers_at

SPEC = (Path(__file__).parents[2] / "spec" / "workload.md").read_text(encoding="utf-8")
EXAMPLE = WorkloadParameters(seed=42, pages=56, hot_pages=24, cold_every=3, block_pages=4, zero_pages=4)
COMPILER = shutil.which("cc")


def section(number):
    return re.search(rf"^## {number}\. .*?(?=^## |\Z)", SPEC, re.MULTILINE | re.DOTALL).group()


def table(text):
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE))


def words(memory):
    return np.frombuffer(memory, np.uint64).reshape(-1, 512)


def numbers(text):
    return [int(item, 0) for item in text.split()]


def made(parameters=EXAMPLE):
    memory = bytearray(parameters.pages * PAGE_BYTES)
    workload = Workload(parameters, memory)
    workload.fill()
    return workload, memory


def test_the_worked_example_before_the_first_write():  # [WKL-2] [WKL-3]
    expected = table(section(8))
    workload, memory = made()
    assert hashlib.sha256(memory).hexdigest() == expected["SHA-256 of the memory, count 0"]
    for word in (2, 3, 511):
        assert int(words(memory)[0, word]) == int(expected[f"page 0, generation 0, word {word}"], 0)
    assert workload.registers[0] == int(expected["register 0, count 0"], 0)
    firsts, generations = workload.schedule.slots(0, 12)
    assert firsts.tolist() == numbers(expected["first page of slots 0 to 11"])
    assert generations.tolist() == numbers(expected["generation before these visits"])


def test_the_worked_example_after_50_writes():
    expected = table(section(8))
    workload, memory = made()
    workload.write(50)
    assert hashlib.sha256(memory).hexdigest() == expected["SHA-256 of the memory, count 50"]
    assert words(memory)[24, :3].tolist() == numbers(expected["page 24, count 50, words 0 to 2"])
    assert list(workload.registers) == numbers(expected["registers, count 50"])
    assert list(EXAMPLE.split(50)) == numbers(expected["hot and cold writes, count 50"])
    assert workload.distinct_pages(0, 50) == int(expected["distinct pages, writes 0 to 49"])
    assert workload.distinct_pages(10, 40) == int(expected["distinct pages, writes 10 to 39"])
    state = re.search(r"```\n(.*?)```", section(8), re.DOTALL).group(1)
    assert workload.to_state() == bytes.fromhex(state)


def test_the_worked_example_with_heads_alone():  # [WKL-12]
    expected = table(section(8))
    workload, memory = made(replace(EXAMPLE, heads_only=True))
    assert memory == made()[1]
    workload.write(50)
    assert hashlib.sha256(memory).hexdigest() == expected["heads: SHA-256 of the memory, count 50"]
    assert words(memory)[24, :3].tolist() == numbers(expected["heads: page 24, count 50, words 0 to 2"])
    assert int(words(memory)[24, 3]) == int(expected["heads: page 24, count 50, word 3"], 0)
    whole, _ = made()
    whole.write(50)
    state = bytearray(whole.to_state())
    for index, word in zip((1, 14), expected["heads: words 1 and 14 of the state"].split(), strict=True):
        state[8 * index : 8 * index + 8] = bytes.fromhex(word)
    assert workload.to_state() == bytes(state)


class Sweep(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("first", "blocks", "stride", "shift")]


class Native(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("seed", "pages", "hot_pages", "zero_pages", "block_pages")),
        *((name, ctypes.c_uint64) for name in ("cold_every", "heads_only", "count", "errors")),
        ("registers", ctypes.c_uint64 * 4),
        ("hot", Sweep),
        ("cold", Sweep),
        ("mixed_seed", ctypes.c_uint64),
        ("memory", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("workload")
    source = folder / "workload.c"
    source.write_text(re.search(r"```c\n(.*?)```", SPEC, re.DOTALL).group(1), encoding="utf-8")
    library = folder / "workload.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("heads_only", [False, True])
@pytest.mark.parametrize("cold_every", [0, 3])
def test_the_listing_in_c_writes_the_same_memory(native, cold_every, heads_only):
    """[WKL-4] [WKL-5] [WKL-6] [WKL-7] [WKL-12]"""
    p = WorkloadParameters(2**64 - 5, 70, 35, cold_every, block_pages=5, heads_only=heads_only)
    memory = np.zeros(p.pages * PAGE_BYTES, np.uint8)
    guest = Native(p.seed, p.pages, p.hot_pages, p.zero_pages, p.block_pages, p.cold_every, p.heads_only)
    guest.memory = memory.ctypes.data
    native.workload_fill(ctypes.byref(guest))
    ours = np.zeros_like(memory)
    workload = Workload(p, ours)
    workload.fill()
    assert memory.tobytes() == ours.tobytes()
    for step in (1, 4, 37, 1000, 70000):
        for _ in range(step):
            native.workload_write(ctypes.byref(guest))
        workload.write(step)
        assert memory.tobytes() == ours.tobytes()
        assert (guest.count, guest.errors, tuple(guest.registers)) == (workload.count, 0, workload.registers)
    # The same faults are noticed by both: a page that was lost, a register that was changed.
    memory[3 * PAGE_BYTES : 4 * PAGE_BYTES] = ours[3 * PAGE_BYTES : 4 * PAGE_BYTES] = 0
    guest.registers[1] ^= 4
    workload.registers = tuple(guest.registers)
    for _ in range(65536):
        native.workload_write(ctypes.byref(guest))
    workload.write(65536)
    assert (guest.errors, workload.errors) == (2, 2)
    assert tuple(guest.registers) == registers_at(p.seed, workload.count)
    assert memory.tobytes() == ours.tobytes()
    assert workload.audit().errors == heads_only  # content that was lost is lost
