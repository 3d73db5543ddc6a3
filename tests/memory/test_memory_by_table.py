import gc

import numpy as np

from sterna.memory.by_table import ByTable
from sterna.wire.records import RUN_DTYPE, Pages


def table() -> Pages:
    return Pages(1, 1, 5, np.zeros(1, RUN_DTYPE), np.zeros(1, np.uint64))


def test_each_table_has_its_own_once():
    """Also one that is equal to another."""
    kept, one, other = ByTable[int](), table(), table()
    kept.put(one, 1)
    kept.put(other, 2)
    assert (kept.pop(other), kept.pop(other), kept.pop(one), kept.pop(one)) == (2, None, 1, None)


def test_what_is_put_twice_is_replaced():
    kept, one = ByTable[int](), table()
    kept.put(one, 1)
    kept.put(one, 2)
    assert kept.pop(one) == 2
    assert len(kept) == 0


def test_what_is_looked_at_stays():
    kept, one = ByTable[int](), table()
    assert kept.get(one) is None
    kept.put(one, 1)
    assert (kept.get(one), list(kept.values()), kept.pop(one)) == (1, [1], 1)


def test_a_table_may_go_while_others_are_looked_at():
    """The collector of cycles, in which tables of lost connections are, comes when it likes."""
    kept, tables = ByTable[int](), [table(), table(), table()]
    for number, each in enumerate(tables):
        kept.put(each, number)
    del each
    looked_at = []
    for value in kept.values():
        looked_at.append(value)
        del tables[1:]
    assert looked_at == [0, 1, 2]
    assert list(kept.values()) == [0]


def test_who_forgets_the_table_forgets_it():
    kept, one, other = ByTable[int](), table(), table()
    kept.put(one, 1)
    kept.put(other, 2)
    del one
    gc.collect()
    assert len(kept) == 1
    assert kept.pop(other) == 2


def test_an_old_tables_end_does_not_take_a_new_ones_value():
    """Numbers of objects are given again."""
    kept, one = ByTable[int](), table()
    kept.put(one, 1)
    key, (_, of) = next(iter(kept._found.items()))
    kept.put(one, 2)
    kept._forget(key, of)
    assert kept.pop(one) == 2
    kept._forget(key, of)
