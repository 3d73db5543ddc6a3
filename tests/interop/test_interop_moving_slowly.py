"""A guest that changes slowly, and the way that moves it."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from sterna import Options
from sterna_interop.memories import Memories
from sterna_interop.moving_slowly import SlowlyChanging, SternaSlowly
from sterna_interop.moving_written import HOT_FIRST, Written

WRITTEN = Written(84 << 20, 16 << 20, 10 << 20, 0.3)


async def test_it_writes_a_word_of_each_page(autojump_clock, nursery):
    memory = bytearray(84 << 20)
    guest = SlowlyChanging(memoryview(memory), WRITTEN)
    nursery.start_soon(guest.live)

    await trio.sleep(1.0)
    assert guest.count * 4096 == pytest.approx(10 << 20, rel=0.05)
    words = np.frombuffer(memory, np.uint32)
    assert np.count_nonzero(words) <= guest.count
    assert not words[: HOT_FIRST // 4].any()
    guest.stop()
    before = guest.count
    await trio.sleep(1.0)
    assert guest.count == before
    guest.start()
    await trio.sleep(1.0)
    assert guest.count > before


@pytest.mark.slow
def test_it_is_moved_over_a_narrow_link():
    memories = Memories(WRITTEN.memory_bytes, compressible=True)
    moved = SternaSlowly(WRITTEN, memories, Options(), 1e9).move()
    assert moved.sent_bytes > 60 << 20
    assert moved.cpu_s > 0
