"""Transfers taken in turns: what is measured of each, without a process."""

from __future__ import annotations

import pytest

from sterna_interop.measuring import BARE, COPY, OURS, QEMU, Taken, at_least
from sterna_interop.memories import Memories
from sterna_interop.moving import Moved
from sterna_interop.transfers import GIB, Transfers, best_of_qemu


class Scripted:
    """A way that takes so many seconds, and twice as long when it is watched."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.watched = []

    def move(self, *, watched=False):
        self.watched.append(watched)
        return Moved(self.seconds, (1.0, 2.0), (5, 6) if watched else (0, 0))


@pytest.mark.parametrize("rate", [True, False])
def test_everything_that_is_measured(rate):
    memories = Memories(1 << 20)
    ways = {OURS: Scripted(2.0), BARE: Scripted(1.0), "x": Scripted(4.0)}
    transfers = Transfers(
        memories=memories, ways=ways, bounds={"x": at_least(1.0, 2.0)}, rate=rate, copied=rate
    )
    taken = {each.measure.name: each for each in transfers.take(2, lambda _: None)}
    first = taken[transfers.principal]
    assert first.values[OURS] == ([memories.size / 2] if rate else [2.0]) * 2
    assert (COPY in first.values) is rate
    gibs = memories.size / GIB
    assert taken["cpu"].values[OURS] == [3.0 / gibs] * 2
    assert taken["cpu_source"].values[BARE] == [1.0 / gibs] * 2
    assert taken["cpu_destination"].values["x"] == [2.0 / gibs] * 2
    assert taken["memory_source"].values == {OURS: [5, 5], "x": [5, 5]}
    assert taken["memory_destination"].values == {OURS: [6, 6], "x": [6, 6]}
    assert ways[OURS].watched == [False] * 3 + [True] * 2
    assert ways[BARE].watched == [False] * 3


@pytest.mark.parametrize(("unit", "chosen"), [("bytes/s", 3.0), ("s", 2.0)])
def test_of_qemus_ways_the_better_one_counts(unit, chosen, monkeypatch):
    from sterna_interop.measuring import Measure

    monkeypatch.setattr("sterna_interop.transfers.version", lambda: "7.2")
    measure = Measure(name="m", text="m", ways={}, unit=unit)
    (found,), text = best_of_qemu([Taken(measure, {OURS: [1.0], "a": [2.0], "b": [3.0]})], ["a", "b"])
    assert found.values == {OURS: [1.0], QEMU: [chosen]}
    assert text.startswith("7.2, ")
    assert "a " in text
    assert "b " in text
