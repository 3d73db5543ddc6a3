"""The judge of a world: everything that must never happen is noticed, and a loss is told from a mistake."""

from __future__ import annotations

import pickle

import pytest

from sterna.core.history import History
from sterna.core.records import Claiming, Decided, Granted, HandBack, SessionRecord, Side, Start, Voided
from sterna.registry import Owner
from sterna.sim.holder import GUEST_ID, Holder, Stage, memory_of
from sterna.sim.judge import Judge, Violation
from sterna.sim.store import SlotStore
from sterna.wire.records import Runner

HERE, THERE = Runner("alpha", b"a" * 16), Runner("beta", b"b" * 16)
SESSION, FIRST = b"s" * 16, b"f" * 16
EMPTY = {"alpha": History(GUEST_ID), "beta": History(GUEST_ID)}


def holders():
    source = Holder("alpha", FIRST, Stage.STOPPED)
    source.count, source.epoch, source.runner = 5, 1, HERE
    room = Holder("beta", SESSION)
    room.load(5, memory_of(5))
    room.epoch, room.runner, room.stage = 2, THERE, Stage.RUNS
    return source, room


def test_a_violation_is_told_by_one_process_to_another():
    told = pickle.loads(pickle.dumps(Violation("one-runner", "two of them", loss=True)))
    assert (told.name, told.detail, str(told)) == ("one-runner", "two of them", "one-runner: two of them")
    assert told.loss


def starts(judge, holder, everybody, slots=(HERE, THERE), claimed=()):
    judge.starts(holder, everybody, None if slots is None else SlotStore(slots), claimed)


def test_the_next_one_runs():
    source, room = holders()
    judge = Judge(source)
    starts(judge, room, (source, room))
    judge.executes(room)
    assert (judge.count, judge.epoch, judge.image) == (6, 2, ("beta", SESSION))
    assert judge.copy().key() == judge.key()


def noticed(judge, holder, everybody, text, **more):
    with pytest.raises(Violation, match=text):
        starts(judge, holder, everybody, **more)


def test_two_runners():
    """[ONE-9]"""
    source, room = holders()
    source.stage = Stage.RUNS
    noticed(Judge(source), room, (source, room), "runs at beta under epoch 2, alpha under epoch 1")


def test_an_older_image():
    source, room = holders()
    judge = Judge(source)
    judge.executes(source)
    noticed(judge, room, (source, room), "older image starts at beta: with 5 instructions, it has executed 6")


def test_other_memory():
    source, room = holders()
    room.load(5, memory_of(4))
    room.epoch, room.stage = 2, Stage.RUNS
    noticed(Judge(source), room, (source, room), "memory at beta")


def test_epochs():
    """[ONE-9] [ONE-48]"""
    source, room = holders()
    room.epoch = 1
    noticed(Judge(source), room, (source, room), "epoch 1 at beta after epoch 1")
    room.epoch = 2
    noticed(Judge(source), room, (source, room), "slot 2 is not beta's", slots=(HERE, HERE))
    starts(Judge(source), room, (source, room), slots=None, claimed={1})
    source.epoch, source.stage, room.stage = 2, Stage.RUNS, Stage.READY
    judge = Judge(source)
    noticed(judge, source, (source, room), "epoch 2 was claimed by another", slots=None, claimed={2})


def test_the_last_image_must_not_be_freed():
    source, room = holders()
    judge = Judge(source)
    judge.frees(room, (source, room))
    source.free()
    with pytest.raises(Violation, match="last image of the guest is freed at beta"):
        judge.frees(room, (source, room))
    judge.executes(room)
    stale, _ = holders()
    judge.frees(stale, (stale, room))


def test_what_is_lost():
    """[ONE-34] [ONE-42]"""
    source, room = holders()
    room.stage, room.epoch = Stage.READY, 0
    judge = Judge(source)
    assert not judge.is_lost((source, room), EMPTY)
    judge.kills(source)
    source.stage = Stage.KILLED
    assert judge.is_lost((source, room), EMPTY), "the owner's is destroyed, and nobody else may run it"
    session = SessionRecord(SESSION, 1, Side.DESTINATION, bytes(32), "alpha")
    claim = Claiming(SESSION, 2, THERE, SESSION)
    asked = EMPTY | {"beta": History(GUEST_ID, (session, claim))}
    assert judge.is_lost((source, room), asked), "HANDOVER has not left, and CLAIMING is to be handed back"
    sent = SessionRecord(SESSION, 1, Side.SOURCE, bytes(32), "beta", "there")
    granted = EMPTY | {"alpha": History(GUEST_ID, (sent, Granted(SESSION, 2)))}
    claimed = granted | {"beta": History(GUEST_ID, (session, claim))}
    assert not judge.is_lost((source, room), claimed), "the destination has the permission"
    given_back = granted | {"beta": History(GUEST_ID, (session, claim, HandBack(2)))}
    assert judge.is_lost((source, room), given_back)
    source.stage = Stage.STOPPED
    judge.kills(room)
    room.stage = Stage.KILLED
    assert not judge.is_lost((source, room), claimed)
    started = granted | {"beta": History(GUEST_ID, (session, claim, Start(2)))}
    assert judge.is_lost((source, room), started), "destroyed behind START"


def test_whether_the_guest_has_left():
    """[ONE-42] By a grant that is not void, or by START of the epoch under which it has run."""
    source, _ = holders()
    judge = Judge(source)
    sent = SessionRecord(SESSION, 1, Side.SOURCE, bytes(32), "beta", "there")
    left = {"alpha": History(GUEST_ID, (sent, Granted(SESSION, 2)))}
    assert judge.has_left(left)
    assert not judge.has_left(EMPTY)
    assert not judge.has_left({"alpha": left["alpha"].after(Voided(SESSION, 2))})
    decided = left["alpha"].after(Decided(SESSION, 2, Owner.DESTINATION))
    assert judge.has_left({"alpha": decided})
    session = SessionRecord(SESSION, judge.epoch - 1, Side.DESTINATION, bytes(32), "alpha")
    claim = Claiming(SESSION, judge.epoch, THERE, SESSION)
    assert judge.has_left({"beta": History(GUEST_ID, (session, claim, Start(judge.epoch)))})


def test_nothing_is_lost_by_itself():
    source, _ = holders()
    judge = Judge(source)
    source.free()
    assert not judge.is_lost((source,), EMPTY)
