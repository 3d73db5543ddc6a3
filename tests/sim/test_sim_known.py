"""A set of numbers says which are new, once."""

from __future__ import annotations

import random

import numpy as np

from sterna.sim.known import Known


def test_each_is_new_once():
    dice, known, mine = random.Random(1), Known(), set()
    for size in (1, 1, 0, 50, 3, 200, 1000, 2):
        some = [dice.randrange(500) << 54 for _ in range(size)]
        new = known.add(np.array(some, np.uint64)).tolist()
        assert new == sorted(set(some) - mine)
        mine |= set(some)
        assert len(known) == len(mine)


def test_rows_become_few():
    known = Known()
    for number in range(1000):
        known.add(np.array([number], np.uint64))
    assert len(known._rows) <= 10
    assert len(known) == 1000
