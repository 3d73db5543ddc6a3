"""Things made of parts have numbers, and those that have the same parts at some places are alike."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sterna.sim.kinds import ROUNDS_WIDTHS, THINGS, WIDTHS, Column, Flags, Kind, Table


def kind_of(places=3):
    """Parts are numbers; of the first one it is seen whether it is odd."""
    return Kind(3, (lambda part: part,) * places, ((0, lambda part: (part % 2, bool(part % 2))),))


def made(kind, *parts):
    return kind.thing(tuple(kind.part(place, part) for place, part in enumerate(parts)))


def test_a_table_has_an_end():
    table = Table(1)
    assert [table.number("a", 1), table.number("b", 2), table.number("a", 3)] == [0, 1, 0]
    assert table.parts == [1, 2]
    with pytest.raises(OverflowError, match="fewer faults"):
        table.number("c", 3)


def test_there_are_as_many_things_as_a_world_has_bits_for():
    kind = kind_of()
    for number in range(1 << WIDTHS[3]):
        assert made(kind, number, 0, 0) == number
    with pytest.raises(
        OverflowError, match="more than 64 different stores have no number: explore with fewer faults"
    ):
        made(kind, 1, 1, 1)
    assert sum(WIDTHS) == sum(ROUNDS_WIDTHS) == 64
    assert len(WIDTHS) == len(THINGS)


def test_where_rounds_go_on_there_is_room_for_more_of_the_first_host():
    kinds = [Kind(place, (lambda part: part,), widths=ROUNDS_WIDTHS) for place in range(len(THINGS))]
    assert [int(kind.mask).bit_length() for kind in kinds] == list(ROUNDS_WIDTHS)
    assert [int(kind.shift) for kind in kinds] == [0, 20, 38, 53, 59]


def test_columns_grow():
    column, rows = Column(), Column(2)
    for number in range(200):
        column.extend([number])
        rows.extend([number, number + 1])
    assert column.numbers.tolist() == list(range(200))
    assert rows.rows[[7, 199]].tolist() == [[7, 8], [199, 200]]
    assert (len(column), len(rows)) == (200, 200)


def test_alike_are_those_with_the_same_parts_there():
    kind, dice, things = kind_of(), random.Random(1), []
    odd = kind.sizes
    for _ in range(3):
        for _ in range(20):
            parts = tuple(dice.randrange(4) for _ in range(3))
            things.append((made(kind, *parts), parts))
        for places in ([0], [1, 2], [0, 1, 2], [odd], [odd, 2]):
            numbers = kind.view(sum(1 << place for place in places))
            for one, parts in things:
                for other, others in things:
                    seen, seens = (*parts, parts[0] % 2), (*others, others[0] % 2)
                    same = all(seen[place] == seens[place] for place in places)
                    assert same == (numbers[one] == numbers[other])


def test_a_part_makes_what_is_seen_of_it_superfluous():
    kind = kind_of()
    assert kind.least(0b1001) == 0b0001
    assert kind.least(0b1010) == 0b1010


def test_flags_are_those_of_things():
    kind = kind_of()
    numbers = [made(kind, part, 0, 0) for part in (2, 5, 4, 7)]
    flags = Flags(kind, (kind.sizes,), lambda odd: odd.any(axis=0))
    assert flags.where(np.array(numbers, np.uint64)).tolist() == [1, 3]
    more = made(kind, 9, 0, 0)
    assert flags.where(np.array([*numbers[::-1], more], np.uint64)).tolist() == [0, 2, 4]


def test_two_with_one_mark_are_told_apart(monkeypatch):
    """Marks are drawn at random; were they all the same, that would not pass in silence."""
    kind = kind_of()
    monkeypatch.setattr(kind, "marks", lambda place: Kind.marks(kind, place) * 0)
    made(kind, 1, 2, 3)
    made(kind, 3, 2, 3)
    with pytest.raises(OverflowError, match="one mark"):
        kind.view(1)
