"""The demo as a way of moving: what it gives, what its endpoints take, and how it fails."""

from __future__ import annotations

import pytest

from sterna.errors import GuestError
from sterna_interop.moving_demo import Demo, demo_of
from sterna_interop.moving_written import HOT_FIRST, Written

MIB = 1 << 20
SIZE = HOT_FIRST + 24 * MIB
WRITTEN = Written(SIZE, 16 * MIB, 20 * MIB, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_migration(whole):
    way = demo_of(WRITTEN, whole=whole)
    assert ("--heads" in way.command) is not whole
    moved = way.move()
    assert 0 < moved.blackout_s < moved.seconds
    assert moved.blackout_guest_s > 0
    assert moved.rate_bytes_s > 0
    assert moved.sent_bytes > SIZE
    assert moved.peak_bytes == (0, 0)
    assert moved.cpu_s > moved.guest_cpu_s == 0


@pytest.mark.slow
def test_a_watched_one_tells_what_its_endpoints_have_taken():
    source, destination = demo_of(WRITTEN).move(watched=True).peak_bytes
    assert 0 < source < 96 * MIB
    assert 0 < destination < 96 * MIB


@pytest.mark.slow
def test_one_that_fails_says_why():
    with pytest.raises(GuestError, match=r"exit code 2.*--memory"):
        Demo(("--memory", f"{1 << 50}B")).move()
