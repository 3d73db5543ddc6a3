"""Numbers by keys: found when they are known, asked for once when they are not."""

from __future__ import annotations

import numpy as np

from sterna.sim.recall import MISSING, Recall


def array(*keys):
    return np.array(keys, np.uint64)


def test_what_is_fresh_is_found_after_merging():
    recall = Recall()
    assert recall.find(array(3, 1)).tolist() == [MISSING, MISSING]
    recall.fresh.update({1 << 63: 7, 3: 4})
    assert recall.find(array(3)).tolist() == [MISSING]
    recall.merge()
    assert not recall.fresh
    recall.fresh[1] = 2
    recall.merge()
    assert recall.find(array(3, 1, 1 << 63, 2, (1 << 64) - 1)).tolist() == [4, 2, 7, MISSING, MISSING]
    assert len(recall) == 3


def test_each_is_resolved_once():
    recall, asked = Recall(), []

    def resolve(key):
        asked.append(key)
        return key + 1

    assert recall.look(array(5, 9, 5), resolve).tolist() == [6, 10, 6]
    assert recall.look(array(9, 7), resolve).tolist() == [10, 8]
    assert asked == [5, 9, 7]
