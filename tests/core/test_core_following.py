"""What is stale in an attempt, and what follows from it. The destination's machine shows the rest."""

from __future__ import annotations

import numpy as np
import pytest
from core_support import GUEST, PAGE

from sterna.core.events import Prepare
from sterna.core.following import Following, Sealed
from sterna.core.image_notes import ImageNotes
from sterna.core.state import StateAssembler
from sterna.errors import RemoteProtocolError
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages, zero_batch
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import BitmapEncoding, ErrorCode, Style
from sterna.wire.records import DirtyBitmap, PageRequest, Pages, Switchover

TABLE = RegionTable(GUEST.regions)
BITMAP = DirtyBitmap(1, 0, 1, 2, BitmapEncoding.PLAIN, b"\x03")


def sealed(follows: Following):
    pages = RegionPages(TABLE, {0: memoryview(bytearray(4 * PAGE))})
    return follows.seal(pages, MemoryDigest(TABLE), Sealed(1, 2, bytes(16)), 8)


def let_go(follows: Following) -> bool:
    """Whether the guest is told at SEAL that it need not wait for any page."""
    expect = sealed(follows)
    return expect is not None and not expect.stale


def all_zero() -> MemoryDigest:
    """Entries of pages that are there."""
    digest = MemoryDigest(TABLE)
    batch = zero_batch(0, np.array([0]), np.array([4]))
    digest.record(Pages(1, 1, 0, batch.runs, batch.hashes))
    return digest


def counts(prepare: Prepare) -> dict[int, int]:
    return {region: bitmap.count() for region, bitmap in prepare.likely.items()}


@pytest.mark.parametrize(
    ("style", "rounds", "code"),
    [
        (Style.BITMAP, 3, None),
        (Style.STOP_AND_COPY, 3, None),
        (Style.POST_COPY, 0, ErrorCode.NOT_SELECTED),
    ],
)
def test_a_style_that_was_selected(style, rounds, code):
    """[SWI-1]"""
    follows = Following(TABLE)
    if code is None:
        follows.switch(Switchover(1, style), frozenset({Style.BITMAP}), rounds)
        assert follows.style is style
        return
    with pytest.raises(RemoteProtocolError) as error:
        follows.switch(Switchover(1, style), frozenset({Style.BITMAP}), rounds)
    assert (error.value.code, error.value.clause) == (code, "SWI-1")


def test_post_copy_is_for_the_beginning():
    """[PCY-4]"""
    styles = frozenset({Style.POST_COPY})
    Following(TABLE).switch(Switchover(1, Style.POST_COPY), styles, 0)
    with pytest.raises(RemoteProtocolError) as error:
        Following(TABLE).switch(Switchover(1, Style.POST_COPY), styles, 1)
    assert (error.value.code, error.value.clause) == (ErrorCode.BAD_ROUND, "PCY-4")


def test_what_is_declared_is_held_until_an_attempt_without_it():
    """[PCY-5] [CON-58] And the same in those behind: what was asked for may be withdrawn."""
    follows = Following(TABLE)
    assert sealed(follows) is None
    follows.switch(Switchover(1, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    assert follows.declare(BITMAP, StateAssembler(0, 0, 0)).count() == 2
    expect = sealed(follows)
    assert expect is not None
    assert {region: bitmap.count() for region, bitmap in expect.stale.items()} == {0: 2}
    assert follows.expected(PageRequest(0, 1, 1)) is follows.fetching
    follows.switch(Switchover(2, Style.STOP_AND_COPY), frozenset({Style.BITMAP}), 1)
    assert let_go(follows)
    follows.switch(Switchover(3, Style.STOP_AND_COPY), frozenset({Style.BITMAP}), 1)
    assert let_go(follows)
    with pytest.raises(RemoteProtocolError) as error:
        follows.expected(PageRequest(0, 1, 1))
    assert (error.value.code, error.value.clause) == (ErrorCode.UNEXPECTED_FRAME, "PCY-21")


def test_what_is_likely_to_be_stale_is_held_before_the_pause():
    """[PCY-5] An attempt that declares none of it takes that back."""
    follows, newest, held = Following(TABLE), PageSets(TABLE), all_zero()
    newest[0].set(2)
    assert follows.prepare(newest, held).likely == {}
    assert not follows.prepare(newest, held).notes_bytes
    follows.switch(Switchover(1, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    assert follows.prepare(newest, held).likely == {0: newest[0]}
    room = follows.prepare(newest, held).notes_bytes
    assert follows.prepare(PageSets(TABLE), held).likely == {}
    assert counts(follows.prepare(None, held)) == {0: 4}
    assert follows.prepare(None, held).style is Style.BITMAP
    expect = sealed(follows)
    assert expect is not None
    assert expect.stale == {}
    assert expect.notes.size_bytes == room


def test_what_is_not_held_is_likely_to_be_stale():
    """The last round may have left it out, and need not be the one in which it got lost."""
    follows, newest, held = Following(TABLE), PageSets(TABLE), all_zero()
    newest[0].set(2)
    held.mark_stale(0, [0], [1])
    follows.switch(Switchover(1, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    assert follows.prepare(newest, held).likely[0].runs()[0].tolist() == [0, 2]
    assert newest.count() == 1


def in_attempt(follows: Following, number: int) -> memoryview:
    """A switchover by bitmap whose notes have a place; two pages are stale."""
    follows.switch(Switchover(number, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    place = memoryview(bytearray(follows.prepare(None, all_zero()).notes_bytes))
    follows.keep(place, all_zero())
    follows.declare(BITMAP, StateAssembler(0, 0, 0))
    return place


def test_the_guest_is_told_while_seal_is_on_its_way():
    """[PCY-5] [PCY-16] Once; the notes are none before they are complete."""
    follows, held = Following(TABLE), all_zero()
    place = in_attempt(follows, 1)
    expect = follows.begin_state(held, 1, 2)
    assert expect is not None
    assert expect.ahead
    assert {region: bitmap.count() for region, bitmap in expect.stale.items()} == {0: 2}
    assert not ImageNotes.lie_in(place)
    assert follows.begin_state(held, 1, 2) is None
    assert sealed(follows) is None
    assert follows.fetching is not None
    notes = ImageNotes.read(place, TABLE, hashed=True)
    assert (notes.attempt, notes.round, notes.stale.count()) == (1, 2, 2)


def test_without_a_place_for_notes_the_guest_is_told_at_seal():
    """[PCY-5] So it is in an attempt behind one that had such a place."""
    follows, held = Following(TABLE), all_zero()
    in_attempt(follows, 1)
    follows.switch(Switchover(2, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    follows.declare(BITMAP, StateAssembler(0, 0, 0))
    assert follows.begin_state(held, 2, 3) is None
    expect = sealed(follows)
    assert expect is not None
    assert not expect.ahead


def test_what_was_likely_and_is_not_stale_is_taken_back_before_seal():
    """[PCY-5]"""
    follows, held = Following(TABLE), all_zero()
    follows.switch(Switchover(1, Style.BITMAP), frozenset({Style.BITMAP}), 1)
    place = memoryview(bytearray(follows.prepare(None, held).notes_bytes))
    follows.keep(place, held)
    expect = follows.begin_state(held, 1, 2)
    assert expect is not None
    assert expect.stale == {}
    assert sealed(follows) is None
    assert not ImageNotes.lie_in(place)


def test_nothing_is_stale_in_stop_and_copy():
    """[PCY-21] [MEM-11]"""
    with pytest.raises(RemoteProtocolError) as error:
        Following(TABLE).declare(BITMAP, StateAssembler(0, 0, 0))
    assert (error.value.code, error.value.clause) == (ErrorCode.UNEXPECTED_FRAME, "PCY-21")
