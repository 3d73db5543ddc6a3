"""What a script makes of what the endpoint said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peer_support import played

from sterna.registry import ErrorCode, Feature, FrameType, Phase
from sterna.wire import Abort, Refuse
from sterna_interop.case import Case, NotStrict, NotTried, Unexpected, completed
from sterna_interop.contract import Role
from sterna_interop.peer_play import Script
from sterna_interop.peer_steps import Account, Place

FULL = frozenset({ErrorCode.FULL})
ABORTED = Account(answer=Abort(ErrorCode.FULL, Phase.ROUNDS), heard=["ABORT"])
REFUSED = Account(answer=Refuse(ErrorCode.FULL), heard=["REFUSE"])
DONE = Account(completed=True, heard=["PING", "BYE"], acted=True)
LOST = Account(heard=["WELCOME"], end="reset")


def script(**more: object) -> Script:
    return Script(role=Role.SOURCE, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "account"),
    [
        (script(), LOST),
        (script(completes=True), DONE),
        (script(answers=FULL), ABORTED),
        (script(answers=FULL), REFUSED),
        (script(answers=FULL, refused=True), REFUSED),
        (script(answers=FULL, mute=True), LOST),
        (script(answers=FULL, mute=True), ABORTED),
        (script(silent=True), LOST),
        (script(answers=FULL, optional=True), Account(completed=True)),
        (script(hears=FrameType.PING), DONE),
    ],
)
def test_right(asked: Script, account: Account) -> None:
    asked.judge(account)


@pytest.mark.parametrize(
    ("asked", "account", "message"),
    [
        (script(completes=True), LOST, "expected a whole migration, got WELCOME and then the end"),
        (script(completes=True), Account(), "got nothing and then silence"),
        (script(completes=True), ABORTED, "got ABORT full"),
        (script(answers=FULL), DONE, "expected ABORT or REFUSE full, got a whole migration"),
        (script(answers=FULL), Account(answer=Refuse(0x7777)), "got REFUSE internal"),
        (script(answers=FULL, refused=True), ABORTED, "expected REFUSE full, got ABORT full"),
        (script(answers=FULL, mute=True), Account(answer=Refuse(0x7777)), "got REFUSE internal"),
        (script(silent=True), ABORTED, "expected no answer to ABORT"),
        (script(answers=FULL), Account(answer=Refuse(ErrorCode.FULL), end="reset"), "CON-67"),
        (script(answers=FULL, optional=True), DONE, "got a whole migration"),
        (script(), Account(breach="BYE where HELLO is due"), "got BYE where HELLO is due"),
    ],
)
def test_wrong(asked: Script, account: Account, message: str) -> None:
    with pytest.raises(Unexpected, match=message):
        asked.judge(account)


def test_what_should_be_heard_is_not_strict() -> None:
    """[CON-76] The intervals of 8.11 are suggestions."""
    with pytest.raises(NotStrict, match="expected a PONG, got none"):
        script(hears=FrameType.PONG).judge(DONE)


def test_a_conversation_without_what_the_case_is_about_tries_nothing() -> None:
    asked = script(answers=FULL, about=Feature.UNHASHED)
    with pytest.raises(NotTried, match="the destination does without unhashed"):
        asked.judge(DONE)
    asked.judge(ABORTED)
    for account in (replace(DONE, features=frozenset({Feature.UNHASHED})), LOST, replace(DONE, breach="BYE")):
        with pytest.raises(Unexpected):
            asked.judge(account)


def test_an_abort_has_to_name_the_frame() -> None:
    """[ABT-2]"""
    asked = script(place=Place(FrameType.ROUND), named=True)
    asked.judge(Account(answer=Abort(1, 4, FrameType.ROUND, 5), last_act=5))
    for answer in (Abort(1, 4, FrameType.ROUND, 6), Abort(1, 4, FrameType.PAGES, 5), Refuse(1), None):
        with pytest.raises(Unexpected, match="an ABORT of frame 0x8010, number 5"):
            asked.judge(Account(answer=answer, last_act=5))


@pytest.mark.parametrize("role", Role)
def test_a_script_is_a_play(role: Role) -> None:
    """Epoch, runner and guest are those that the endpoint is told."""
    case = Case(
        id="honest-999",
        title="A whole migration",
        clauses=("CON-1",),
        role=role.other,
        play=Script(role=role, completes=True),
        expect=completed(role.other),
        epoch=12345,
    )
    came = played(case)
    assert came.wrong is None
    assert came.report is not None
    assert came.report.epoch == 12346
