"""The slots of a world are written once, and claims may come late."""

from __future__ import annotations

from sterna.core.verdict import Store
from sterna.sim.store import SlotStore
from sterna.wire.records import Runner

ONE, TWO, THREE = (Runner("h", bytes([number]) * 16) for number in (1, 2, 3))


def test_slots_are_filled_in_order_and_once():
    """[ONE-1] [ONE-2] [ONE-3]"""
    store = SlotStore()
    assert store.claim(2, TWO) is None
    assert store.claim(1, ONE) == ONE
    assert store.claim(1, TWO) == ONE
    assert store.claim(2, TWO) == TWO
    assert store.slots == (ONE, TWO)
    assert store.read(3) is None
    assert store.read(0) is None
    assert store.facts(1) == Store(next=ONE, after=TWO)


def test_a_claim_that_lands_late():
    store = SlotStore((ONE,))
    store.strays(2, TWO)
    store.strays(2, TWO)
    assert store.astray == ((2, TWO),)
    copy = store.copy()
    assert copy.key() == store.key()
    store.lands(0)
    assert (store.slots, store.astray) == ((ONE, TWO), ())
    assert copy.claim(2, THREE) == THREE
    copy.lands(0)
    assert copy.slots == (ONE, THREE)
    assert copy.key() != store.key()
