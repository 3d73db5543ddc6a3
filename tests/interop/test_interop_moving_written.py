"""Guests that write: sizes that fit, and that each of the ways moves one and finds what was lost."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import ConfigError, GuestError
from sterna_interop.moving_written import (
    HOT_FIRST,
    LESS_BYTES,
    QemuWritten,
    Written,
    memory_of,
    without_guest_s,
)
from sterna_interop.qemu import Settings

MIB = 1 << 20
SIZE = HOT_FIRST + 24 * MIB


def written(**changes):
    fields = {"memory_bytes": SIZE, "hot_bytes": 16 * MIB, "rate_bytes_s": 20 * MIB, "downtime_s": 0.3}
    return Written(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hot_bytes": 3 * MIB},
        {"hot_bytes": 65536},
        {"memory_bytes": HOT_FIRST + 16 * MIB},
        {"hot_bytes": 4 << 30, "memory_bytes": 16 << 30},
    ],
)
def test_sizes_for_which_the_program_has_no_room(changes):
    with pytest.raises(ConfigError, match=r"--hot|--size"):
        written(**changes)


def test_the_option_that_is_told_is_the_commands():
    with pytest.raises(ConfigError, match=r"^--memory: "):
        written(memory_bytes=MIB, option="--memory")


@pytest.mark.slow
@pytest.mark.needs("qemu")
@pytest.mark.parametrize("capabilities", [(), ("postcopy-ram",)])
def test_a_migration_of_qemus(tmp_path, capabilities):
    way = QemuWritten(written(), tmp_path, Settings(capabilities=capabilities), memory_of(written()))
    moved = way.move(watched=True)
    assert 0 < moved.blackout_s < moved.seconds
    assert moved.rate_bytes_s > 0
    assert moved.sent_bytes > 0
    assert max(moved.peak_bytes) > 0
    assert 0 < without_guest_s(moved) < moved.cpu_s


def lose_a_write(memories):
    np.frombuffer(memories.arrived, np.uint32)[HOT_FIRST // 4] -= 1


def lose_a_page(memories):
    memories.arrived[-2 * MIB] ^= 1


@pytest.mark.parametrize(
    ("lose", "says"), [(lose_a_write, "lost writes"), (lose_a_page, "not all"), (lambda _: None, None)]
)
def test_what_was_lost_is_found(tmp_path, lose, says):
    memories = memory_of(written())
    way = QemuWritten(written(), tmp_path, Settings(), memories)
    assert memories.size == SIZE - LESS_BYTES
    words = np.frombuffer(memories.sent, np.uint32)
    words[0x200000 // 4 + 5] = 7
    words[HOT_FIRST // 4] = 7
    memories.copy()
    lose(memories)
    if says is None:
        way._check(memories)
    else:
        with pytest.raises(GuestError, match=says):
            way._check(memories)
