"""Questions of mode verdict: what Sterna answers, and that the kit sees what would be wrong."""

from __future__ import annotations

import pytest
from peer_support import check, played
from scripted_pair import Scripted, talk

from sterna.core.duties import NoRecords
from sterna.registry import ErrorCode, FrameType, Owner
from sterna.wire.records import Hello, Record, Refuse, Verdict
from sterna_interop import peer_acts as do
from sterna_interop.case import Case, Unexpected
from sterna_interop.cases_asked import ASKED
from sterna_interop.contract import Outcome, Role
from sterna_interop.misbehaviours import ENDLESS_S
from sterna_interop.peer_play import Script
from sterna_interop.peer_source import Question
from sterna_interop.peer_steps import Account, Act, Place, Say, Wait

QUESTION = Question(b"some session id.", b"t" * 32)
UNDECIDED = Verdict(Owner.UNDECIDED, 7)


def says(record: Record) -> Act:
    """The answer, and nothing behind it."""
    return do.instead(Say(record), Wait(ENDLESS_S))


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.id)
def test_sterna_answers(case: Case) -> None:
    """[ONE-15] [ONE-46] [ONE-60] [CON-9]"""
    check(case)


def asked(question: Question, act: Act) -> Account:
    """What the kit makes of a destination that does this where its answer is due."""
    destination = Scripted(place=Place(FrameType.WELCOME), act=act)
    return talk(Scripted({"question": question}), destination)[Role.SOURCE]


def judged(account: Account, case: Case) -> None:
    assert isinstance(case.play, Script)
    case.play.judge(account)


def test_what_may_be_answered() -> None:
    """[ONE-46] [ONE-60]"""
    for answer in UNDECIDED, Refuse(ErrorCode.UNSUPPORTED), Refuse(ErrorCode.BUSY):
        judged(asked(QUESTION, says(answer)), ASKED[0])


@pytest.mark.parametrize("owner", [Owner.SOURCE, Owner.DESTINATION])
def test_a_verdict_that_nobody_can_know_is_noticed(owner: Owner) -> None:
    """[ONE-46] Of a session that never was."""
    account = asked(QUESTION, says(Verdict(owner, 8)))
    assert "ONE-46" in account.breach


@pytest.mark.parametrize(
    "act",
    [do.change(), says(Refuse(ErrorCode.FULL)), do.instead()],
    ids=["WELCOME", "full", "none"],
)
def test_another_answer_is_noticed(act: Act) -> None:
    """[ONE-60]"""
    with pytest.raises(Unexpected):
        judged(asked(QUESTION, act), ASKED[0])


def test_an_answer_where_it_must_be_refused_is_noticed() -> None:
    """[HEL-6]"""
    case = next(each for each in ASKED if each.id == "verdict-006")
    with pytest.raises(Unexpected):
        judged(asked(QUESTION, says(UNDECIDED)), case)


def test_a_shim_that_knows_better_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """[ONE-46] [ONE-45] Nothing of the guest is here, and it says that it owns it."""

    async def lie(self: NoRecords, hello: Hello) -> Verdict:
        return Verdict(Owner.DESTINATION, hello.epoch + 1, hello.runner)

    monkeypatch.setattr(NoRecords, "verdict", lie)
    came = played(ASKED[0])
    assert came.wrong is not None
    assert came.report is not None
    assert came.report.outcome is Outcome.ANSWERED
