"""A benchmark's memory: what it holds, what its processes map, and what of it is really there."""

from __future__ import annotations

import os

import numpy as np
import pytest

from sterna.errors import ConfigError, GuestError
from sterna_interop.memories import Memories, path_of

EXTENTS = [(4096, 8192), (32768, 4096)]


def backed_bytes(file):
    return os.fstat(file.fileno()).st_blocks * 512


def test_what_is_there_from_before_does_not_count():
    memories = Memories(3 * 4096)
    memories.arrived[:] = memories.sent
    memories.check()
    memories.clear()
    with pytest.raises(GuestError, match="not what was sent"):
        memories.check()
    assert memories.copy() >= 0
    memories.check()


def test_memory_is_random_to_its_end_and_another_process_could_open_it():
    memories = Memories((16 << 20) + 4096)
    with open(path_of(memories.source), "rb") as file:
        content = file.read()
    assert content == bytes(memories.sent)
    words = np.frombuffer(content, np.uint64)[::512]
    assert len(np.unique(words)) == len(words)


def test_what_was_never_written_has_no_pages_at_the_source_and_all_at_the_destination():
    memories = Memories(65536, EXTENTS)
    assert memories.map_source().nbytes == memories.map_destination().nbytes == 65536
    assert backed_bytes(memories.source) == 12288
    assert backed_bytes(memories.destination) == 65536
    memories.copy()
    memories.check()
    assert backed_bytes(memories.source) == 12288


def test_what_arrives_where_nothing_was_is_noticed():
    memories = Memories(65536, EXTENTS)
    memories.copy()
    memories.arrived[65535] = 1
    with pytest.raises(GuestError):
        memories.check()


def test_the_same_content_without_holes():
    memories = Memories(65536, EXTENTS)
    backed = memories.backed_source
    assert memories.backed_source is backed
    assert backed_bytes(backed) == 65536
    with open(path_of(backed), "rb") as file:
        assert file.read() == bytes(memories.sent)
    whole = Memories(4096)
    assert whole.backed_source is whole.source


def test_a_file_that_is_mapped_several_times():
    memories = Memories(3 * 8192, times=3)
    view = memories.map_source()
    assert bytes(view) == bytes(memories.sent) * 3
    room = memories.map_destination()
    room[8192] = 7
    assert (room[0], room[16384], memories.arrived[0]) == (7, 7, 7)


@pytest.mark.parametrize(("size", "times"), [(0, 1), (4095, 1), (4096, 2), (1 << 59, 1)])
def test_sizes_that_cannot_be_had(size, times):
    with pytest.raises(ConfigError):
        Memories(size, times=times)


def test_no_room_for_a_copy_without_holes(monkeypatch):
    memories = Memories(65536, EXTENTS)
    monkeypatch.setattr("sterna_interop.memories.available_bytes", lambda: 0)
    with pytest.raises(ConfigError, match="without holes"):
        _ = memories.backed_source
