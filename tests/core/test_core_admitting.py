"""What a session is told before anything is done for it, from records and a slot alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from records_support import CLAIM, DIGEST, GUEST, ONE, OTHERS, OURS, RECEIVING, SENDING, TWO
from sterna.core.admitting import (
    OpenSession,
    Resumption,
    check_newest,
    check_records,
    check_slot,
    gives_way,
    is_handed_over,
    names_store,
    resumption,
)
from sterna.core.history import History
from sterna.core.records import Claiming, Complete, Decided, Granted, HandBack, Record, Released, Start
from sterna.core.verdict import Slot
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode, Feature, Mode, Owner
from sterna.wire.records import FeatureChoice, FeatureOffer, Hello

SENT_ON = replace(SENDING, session=TWO, epoch=2)
HELLO = Hello(Mode.OPEN, (), (), {}, GUEST, 1, OTHERS)


def noted(*records: Record) -> History:
    history = History(GUEST)
    for record in records:
        history = history.after(record)
    return history


def refused(history: History, epoch: int, identity: str) -> tuple[ErrorCode, str | None]:
    with pytest.raises(LocalProtocolError) as caught:
        check_records(history, replace(HELLO, epoch=epoch), identity)
    return caught.value.code, caught.value.clause


def test_nothing_is_in_the_way_of_a_guest_that_nobody_knows() -> None:
    assert check_records(noted(), HELLO, "there") is None


def test_a_session_that_was_begun_is_in_another_peer_s_way() -> None:
    """[ONE-12] Until it is released; its own peer opens it again, and at a later epoch it is over."""
    begun = noted(RECEIVING)
    assert refused(begun, 1, "elsewhere") == (ErrorCode.BUSY, "ONE-12")
    assert check_records(begun, HELLO, "there") is None
    assert check_records(begun, replace(HELLO, epoch=2), "elsewhere") is None
    assert check_records(noted(RECEIVING, Released(ONE)), HELLO, "elsewhere") is None


def test_a_session_of_nobody_in_particular_is_in_nobody_s_way() -> None:
    """On plain connections peers have no names."""
    assert check_records(noted(replace(RECEIVING, peer="")), HELLO, "") is None


def test_behind_handover_its_peer_is_answered_and_others_learn_that_it_is_busy() -> None:
    """[ONE-14]"""
    claimed = noted(RECEIVING, CLAIM)
    assert check_records(claimed, HELLO, "there") == RECEIVING
    assert refused(claimed, 1, "elsewhere") == (ErrorCode.BUSY, "ONE-12")
    # Two sessions of one epoch may have been claimed, by one peer: either has the same answer.
    again = noted(RECEIVING, CLAIM, replace(RECEIVING, session=TWO), Claiming(TWO, 2, OTHERS, TWO))
    assert check_records(again, HELLO, "there") is not None


def test_what_is_known_to_be_later_makes_an_opening_stale() -> None:
    """[ONE-11] [HEL-7] A guest that was started here can only be elsewhere under a later epoch."""
    came = noted(RECEIVING, CLAIM, Start(2))
    assert refused(came, 2, "there") == (ErrorCode.STALE_EPOCH, "ONE-11")
    assert check_records(came, replace(HELLO, epoch=3), "there") is None
    left = noted(replace(SENDING, epoch=4), Granted(ONE, 5), Decided(ONE, 5, Owner.DESTINATION))
    assert refused(left, 4, "there") == (ErrorCode.STALE_EPOCH, "ONE-11")
    assert check_records(left, replace(HELLO, epoch=5), "there") is None


def test_the_newest_slot_is_shown_or_there_is_none() -> None:
    """[ONE-11] [ONE-55]"""
    check_slot(Slot(1, OTHERS), HELLO, has_store=True)
    check_slot(None, HELLO, has_store=False)
    for newest, has_store, code in (
        (Slot(1, OTHERS), False, ErrorCode.MISSING_FEATURE),
        (Slot(1, OURS), True, ErrorCode.STALE_EPOCH),
        (Slot(2, OTHERS), True, ErrorCode.STALE_EPOCH),
        (None, True, ErrorCode.STALE_EPOCH),
    ):
        with pytest.raises(LocalProtocolError) as caught:
            check_slot(newest, HELLO, has_store=has_store)
        assert caught.value.code is code


def test_a_slot_that_was_shown_is_the_newest_still() -> None:
    """[ONE-16] [ONE-64]"""
    shown = Slot(1, OTHERS)
    check_newest(shown, shown, "ONE-16")
    for newest, text in ((None, "there is none"), (Slot(2, OURS), "it is 'here' in slot 2")):
        with pytest.raises(LocalProtocolError, match=f"'there' in slot 1 is not .*: {text}") as caught:
            check_newest(newest, shown, "ONE-16")
        assert (caught.value.code, caught.value.clause) == (ErrorCode.STALE_EPOCH, "ONE-16")


@pytest.mark.parametrize(
    ("records", "leads_to"),
    [
        ([], Resumption.ANEW),
        ([CLAIM], Resumption.TOLD),
        ([CLAIM, HandBack(2)], Resumption.TOLD),
        ([CLAIM, Start(2)], Resumption.SERVED),
        ([CLAIM, Start(2), Complete(ONE, 2, DIGEST)], Resumption.TOLD),
        ([CLAIM, Start(2), SENT_ON], Resumption.SERVED),
        ([CLAIM, Start(2), SENT_ON, Granted(TWO, 3)], Resumption.TOLD),
    ],
)
def test_what_a_resumption_leads_to(records: list[Record], leads_to: Resumption) -> None:
    """[RES-7] [RES-13] [RES-15] A guest that was sent on, or has all of its pages, lacks none."""
    history = noted(RECEIVING, *records)
    assert resumption(history, RECEIVING, noted=True) is leads_to
    without = Resumption.TOLD if records else Resumption.UNKNOWN
    assert resumption(history, RECEIVING, noted=False) is without
    assert is_handed_over(history, RECEIVING) == bool(records)


def test_a_resumption_of_a_session_that_is_on_no_record() -> None:
    """[RES-3] [RES-16] Its opening may be there: the session is noted a moment later."""
    assert resumption(noted(), None, noted=True) is Resumption.ANEW
    assert resumption(noted(), None, noted=False) is Resumption.UNKNOWN


def test_a_store_is_named_by_its_feature() -> None:
    assert names_store((FeatureOffer(Feature.RESUME, False, 9), FeatureOffer(Feature.LEASE_STORE, True, 0)))
    assert names_store((FeatureChoice(Feature.LEASE_STORE, 0),))
    assert not names_store((FeatureChoice(Feature.RESUME, 9),))


def opened(epoch: int, identity: str | None, *, is_committed: bool = False) -> OpenSession:
    return OpenSession(epoch, identity, f"{identity} at a place", is_committed)


def test_sessions_of_the_same_peer_give_way_to_a_newer_one() -> None:
    """[ONE-13] Under that epoch or an earlier one; one behind HANDOVER of an earlier epoch is let be."""
    hello = replace(HELLO, epoch=2)
    others = [opened(2, "there"), opened(1, "there"), opened(3, "there")]
    assert gives_way(hello, "there", others, waited=False) == (0, 1)
    others = [opened(1, "there", is_committed=True), opened(1, "elsewhere")]
    assert gives_way(hello, "there", others, waited=False) == ()
    assert gives_way(hello, "there", others, waited=True) == ()


@pytest.mark.parametrize(
    ("other", "waited", "why"),
    [
        (opened(1, "elsewhere"), False, "elsewhere at a place is sending this guest here"),
        (opened(1, None), False, "None at a place is sending this guest here"),
        (opened(1, "there", is_committed=True), False, "there at a place is sending this guest here"),
        (opened(1, "there"), True, "does not end"),
        (opened(0, "there"), True, "does not end"),
    ],
)
def test_a_session_that_does_not_give_way_is_in_the_way(other: OpenSession, waited: bool, why: str) -> None:
    """[ONE-12]"""
    with pytest.raises(LocalProtocolError, match=why) as caught:
        gives_way(HELLO, "there", [other], waited=waited)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.BUSY, "ONE-12")
