from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records_support import (
    ARRIVING,
    CLAIM,
    DIGEST,
    EVERYTHING,
    FIRST,
    GUEST,
    IMAGE,
    ONE,
    OTHERS,
    OURS,
    RECEIVING,
    SENDING,
    STORED,
    TWO,
)  # fmt: skip
from sterna.core.history import History, RecordConflict, essence
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
    Voided,
)  # fmt: skip
from sterna.registry import ErrorCode, Owner
from sterna.wire.records import Runner


def history(*records: Record) -> History:
    found = History(GUEST)
    for record in records:
        found = found.after(record)
    return found


def test_all_kinds_in_order() -> None:
    found = history(*EVERYTHING)
    assert found.records == EVERYTHING
    assert found.open_grant() is None


@given(st.permutations([Start(2), HandBack(2)]), st.booleans())
def test_the_first_of_start_and_handback_excludes_the_other(
    order: list[Start | HandBack], other: bool
) -> None:
    """Of the guest, whatever session [ONE-27]."""
    first, second = order
    before = history(RECEIVING, replace(RECEIVING, session=TWO), CLAIM)
    if other:
        before = before.after(Claiming(TWO, 2, OTHERS, IMAGE))
    found = before.after(first)
    with pytest.raises(RecordConflict, match=f"decided here: {first.kind}") as caught:
        found.after(second)
    assert caught.value.existing == first
    assert caught.value.code is ErrorCode.RECORD_FAILED
    assert found.after(first) is found
    assert found.fate(2) == first
    assert found.fate(3) is None
    with pytest.raises(RecordConflict, match="is decided here"):
        found.after(Claiming(TWO, 2, Runner("here", b"n" * 16), IMAGE))


@pytest.mark.parametrize("record", [Start(2), HandBack(2)])
def test_nothing_is_decided_of_what_was_not_claimed(record: Record) -> None:
    """[ONE-25]"""
    with pytest.raises(RecordConflict, match="without a claim of it"):
        history(RECEIVING).after(record)


def test_repeating_is_no_contradiction() -> None:
    found = history(*EVERYTHING)
    for record in EVERYTHING:
        if not isinstance(record, Granted | Voided):
            assert found.after(record) is found


def test_a_grant_can_be_voided_and_made_again() -> None:
    """[ONE-19]"""
    grant, void = Granted(ONE, 2), Voided(ONE, 2)
    found = history(SENDING)
    assert found.after(void) is found  # nothing was granted
    found = found.after(grant)
    assert (found.granted(ONE), found.after(grant)) == (grant, found)
    found = found.after(void)
    assert (found.granted(ONE), found.after(void)) == (None, found)
    found = found.after(grant)
    assert found.granted(ONE) == grant
    assert found.records == (SENDING, grant, void, grant)


def test_a_guest_that_was_sent_on() -> None:
    """[RES-15] Of what was begun and not granted nobody can tell."""
    onward = replace(SENDING, session=TWO, epoch=RECEIVING.epoch + 1)
    found = history(RECEIVING, CLAIM, Start(CLAIM.epoch), onward)
    assert not found.sent_on(onward.epoch)
    granted = found.after(Granted(TWO, onward.epoch + 1))
    assert granted.sent_on(onward.epoch)
    assert not granted.sent_on(RECEIVING.epoch)
    assert granted.after(Decided(TWO, onward.epoch + 1, Owner.DESTINATION)).sent_on(onward.epoch)
    assert (
        not found.after(Granted(TWO, onward.epoch + 1))
        .after(Voided(TWO, onward.epoch + 1))
        .sent_on(onward.epoch)
    )


def test_a_guest_that_has_come_back_was_elsewhere() -> None:
    """[ONE-53] START under a higher epoch decides what DECIDED has not, of the same epoch it does not."""
    back = replace(RECEIVING, session=TWO, epoch=2)
    claiming = replace(CLAIM, session=TWO, epoch=3, image=TWO)
    found = history(SENDING, Granted(ONE, 2), back, claiming)
    assert found.open_grant() == Granted(ONE, 2)
    found = found.after(Start(3))
    assert found.open_grant() is None
    again = replace(SENDING, session=b"3" * 16, epoch=3)
    found = found.after(again).after(Granted(again.session, 4))
    assert found.open_grant() == Granted(again.session, 4)


@pytest.mark.parametrize(
    "end", [Decided(ONE, 2, Owner.SOURCE), Resolved(ONE, 2, Owner.DESTINATION, "fenced")]
)
def test_one_undecided_grant_a_guest(end: Decided | Resolved) -> None:
    """[ONE-53]"""
    second = replace(SENDING, session=TWO)
    found = history(SENDING, Granted(ONE, 2))
    with pytest.raises(RecordConflict, match="resume it or ask about it first") as caught:
        found.after(second)
    assert caught.value.existing == Granted(ONE, 2)
    both = history(SENDING, second, Granted(ONE, 2))
    with pytest.raises(RecordConflict, match="another session's grant"):
        both.after(Granted(TWO, 2))
    decided = both.after(end)
    assert decided.open_grant() is None
    assert decided.after(Granted(TWO, 2)).open_grant() == Granted(TWO, 2)
    with pytest.raises(RecordConflict, match="the session is decided"):
        decided.after(Granted(ONE, 2))


def test_a_decision_is_final() -> None:
    """[ONE-59]"""
    found = history(SENDING, Granted(ONE, 2), Resolved(ONE, 2, Owner.SOURCE, "there"))
    assert found.decision(ONE) == Resolved(ONE, 2, Owner.SOURCE, "there")
    for other in (Decided(ONE, 2, Owner.DESTINATION), Resolved(ONE, 2, Owner.DESTINATION)):
        with pytest.raises(RecordConflict, match="the session is decided: source"):
            found.after(other)
    assert found.after(Decided(ONE, 3, Owner.SOURCE)).decision(ONE) == found.decision(ONE)
    with pytest.raises(RecordConflict, match="for nobody"):
        history(SENDING).after(Decided(ONE, 2, Owner.UNDECIDED))


def test_whether_the_guest_has_a_slot_here() -> None:
    """[ONE-55] The first host's runner, and those that were made where there was a store."""
    first = Runner("here", b"f" * 16)
    for sending, receiving, stored in (SENDING, RECEIVING, False), (STORED, ARRIVING, True):
        made = history(FIRST, sending, Granted(ONE, 2), RunnerRecord(ONE, 2, OURS, IMAGE))
        assert made.has_slot(1, first)
        assert made.has_slot(2, OURS) is stored
        assert not made.has_slot(1, OURS)
        assert history(receiving, CLAIM).has_slot(2, OURS) is stored


def test_a_runner_is_made_for_one_claim() -> None:
    """[ONE-4, ONE-7, ONE-52]"""
    found = history(SENDING, Granted(ONE, 2), RunnerRecord(ONE, 2, OURS, IMAGE))
    with pytest.raises(RecordConflict, match="made for one claim"):
        found.after(RunnerRecord(ONE, 3, OURS, IMAGE))
    with pytest.raises(RecordConflict, match="repeat that one"):
        found.after(RunnerRecord(ONE, 2, Runner("here", b"x" * 16), IMAGE))
    found = found.after(RunnerRecord(ONE, 3, Runner("here", b"x" * 16), IMAGE))
    assert found.runners(2) == found.runners(2, IMAGE) == {OURS}
    assert found.runners(2, b"j" * 16) == found.runners(4) == frozenset()


def test_epochs_that_may_be_claimed() -> None:
    """[ONE-10]"""
    with pytest.raises(RecordConflict, match="claims epoch 1, not 2"):
        history(replace(FIRST, epoch=2))
    for epoch in (1, 4):
        with pytest.raises(RecordConflict, match="none that a source claims"):
            history(SENDING).after(RunnerRecord(ONE, epoch, OURS, IMAGE))
    for epoch in (1, 3):
        with pytest.raises(RecordConflict, match="the session is about epoch 2"):
            history(RECEIVING).after(Claiming(ONE, epoch, OURS, IMAGE))


@pytest.mark.parametrize(
    "record",
    [
        Granted(TWO, 2), Voided(TWO, 2), Decided(TWO, 2, Owner.SOURCE), Resolved(TWO, 2, Owner.SOURCE),
        RunnerRecord(TWO, 2, OURS, IMAGE), Claiming(TWO, 2, OURS, IMAGE),
        Complete(TWO, 2, DIGEST), Released(TWO),
    ],
)  # fmt: skip
def test_a_session_that_is_in_no_record(record: Record) -> None:
    with pytest.raises(RecordConflict, match="in no record"):
        history(SENDING).after(record)


def test_each_side_has_its_records() -> None:
    for record in (
        Granted(ONE, 2),
        Voided(ONE, 2),
        Decided(ONE, 2, Owner.SOURCE),
        RunnerRecord(ONE, 2, OURS, IMAGE),
    ):
        with pytest.raises(RecordConflict, match="this host is the destination"):
            history(RECEIVING).after(record)
    for record in (CLAIM, Complete(ONE, 2, DIGEST)):
        with pytest.raises(RecordConflict, match="this host is the source"):
            history(SENDING).after(record)


def test_sessions_are_told_apart() -> None:
    with pytest.raises(RecordConflict, match="session of zeros"):
        history(replace(SENDING, session=bytes(16)))
    with pytest.raises(RecordConflict, match="another session of this id"):
        history(SENDING).after(replace(SENDING, peer="elsewhere"))


def test_complete_is_one_and_of_a_guest_that_was_started() -> None:
    """[ONE-39]"""
    complete = Complete(ONE, 2, DIGEST)
    with pytest.raises(RecordConflict, match="was not started"):
        history(RECEIVING, CLAIM).after(complete)
    found = history(RECEIVING, CLAIM, Start(2), complete)
    assert found.complete(ONE) == complete
    with pytest.raises(RecordConflict, match="another digest"):
        found.after(replace(complete, digest=b"x" * 16))
    assert not found.released(ONE)
    assert found.after(Released(ONE)).released(ONE)


def test_the_essence_is_a_history_that_tells_the_same_of_what_is_open() -> None:
    """At every prefix: it can be replayed, and nothing that is asked about is gone."""
    for count in range(len(EVERYTHING) + 1):
        full = history(*EVERYTHING[:count])
        short = essence(full)
        assert history(*short.records) == short
        assert essence(short) == short
        assert short.open_grant() == full.open_grant()
        sessions = list(full.each(SessionRecord))
        for session in sessions:
            asked = full.granted(session.session) or session.side is Side.DESTINATION
            passed = full.released(session.session) or sessions[-1].epoch > session.epoch + 1
            if session is sessions[-1] or (asked and not passed):
                assert short.session(session.session) == session
                assert short.granted(session.session) == full.granted(session.session)
                assert short.fate(session.epoch + 1) == full.fate(session.epoch + 1)
                assert short.claiming(session.epoch + 1) == full.claiming(session.epoch + 1)
                assert short.complete(session.session) == full.complete(session.session)
    assert len(essence(history(*EVERYTHING)).records) < len(EVERYTHING) / 2


def test_the_essence_has_no_sessions_that_a_later_one_has_closed() -> None:
    """Of one that was not granted nothing is left, when the one is gone in which the guest went [ONE-56]."""
    tried, gone = SENDING, replace(SENDING, session=TWO)
    offered = replace(RECEIVING, session=b"3" * 16, epoch=2)
    back = replace(RECEIVING, session=b"4" * 16, epoch=4)
    found = history(tried, gone, Granted(TWO, 2), Decided(TWO, 2, Owner.DESTINATION), offered)
    assert essence(found).records == (offered,)
    assert essence(found.after(back)).records == (back,)
    granted = history(tried, Granted(ONE, 2), offered)
    assert essence(granted) == granted


def test_the_essence_has_no_attempts_that_have_failed() -> None:
    """[ONE-13] [ONE-56] However many there were, on either side; what was claimed or granted stays."""
    ids = [bytes([number]) * 16 for number in range(1, 200)]
    for kind in (SENDING, RECEIVING):
        attempts = [replace(kind, session=each) for each in ids]
        assert essence(history(*attempts)).records == (attempts[-1],)
        other = replace(kind, session=b"o" * 16, peer="elsewhere")
        assert essence(history(attempts[0], other)).records == (attempts[0], other)
    claimed = history(RECEIVING, CLAIM, replace(RECEIVING, session=TWO))
    assert essence(claimed) == claimed
    granted = history(
        SENDING, Granted(ONE, 2), Decided(ONE, 3, Owner.SOURCE), replace(SENDING, session=TWO, epoch=3)
    )
    assert history(*essence(granted).records) == essence(granted)


@pytest.mark.parametrize("epoch", [2, 3])
def test_the_essence_has_the_runner_by_which_a_guest_was_claimed_back(epoch: int) -> None:
    """[ONE-55] [ONE-52] [LOG-9] It runs here by that slot, and may not leave without the store."""
    back = (STORED, Granted(ONE, 2), RunnerRecord(ONE, epoch, OURS, IMAGE), Decided(ONE, epoch, Owner.SOURCE))
    tried = replace(STORED, session=TWO, epoch=epoch)
    short = essence(history(*back, tried))
    assert history(*short.records) == short
    assert short.has_slot(epoch, OURS)
    assert essence(short.after(replace(tried, session=b"3" * 16, epoch=4))).runners(epoch) == frozenset()


def test_a_session_is_decided_once() -> None:
    """[ONE-53] A second decision could name another epoch for the same owner."""
    decided = history(SENDING, Granted(ONE, 2), Decided(ONE, 3, Owner.SOURCE))
    with pytest.raises(RecordConflict, match="is decided: source"):
        decided.after(Decided(ONE, 2, Owner.SOURCE))
    resolved = history(SENDING, Granted(ONE, 2), Resolved(ONE, 2, Owner.SOURCE, "there"))
    assert resolved.after(Decided(ONE, 3, Owner.SOURCE)).decision(ONE) == Resolved(
        ONE, 2, Owner.SOURCE, "there"
    )


def test_a_guest_that_has_gone_is_not_sent_again_under_its_old_epoch() -> None:
    """It could be granted to a second host [ONE-53]."""
    gone = history(SENDING, Granted(ONE, 2), Decided(ONE, 2, Owner.DESTINATION))
    for epoch in (0, 1):
        with pytest.raises(RecordConflict, match="has left under epoch 1"):
            gone.after(replace(SENDING, session=TWO, epoch=epoch))
    gone.after(replace(SENDING, session=TWO, epoch=2))
    gone.after(replace(RECEIVING, session=TWO))


class Counting(tuple[Record, ...]):
    """Counts how often it is gone through."""

    __slots__ = ()
    passes = 0

    def __iter__(self) -> Iterator[Record]:
        Counting.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("side", Side)
def test_a_record_is_held_against_a_long_history_in_few_passes(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may open session after session; a log of a thousand must not take minutes to be read."""
    passes = []
    for count in (10, 100):
        sessions = (
            replace(SENDING, session=number.to_bytes(16, "big"), side=side) for number in range(1, count)
        )
        found = History(GUEST, Counting(sessions))
        monkeypatch.setattr(Counting, "passes", 0)
        found.after(replace(SENDING, session=ONE, side=side))
        passes.append(Counting.passes)
    assert passes[0] == passes[1]
