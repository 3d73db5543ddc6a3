"""Two scripted peers with each other: how they speak, and what they do when nothing is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_pair import Scripted, talk

from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire import Abort, Ping, Pong, Refuse, unchecked
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.guest import GuestSpec
from sterna_interop.peer_steps import Act, Ear, End, Manner, Place, Raw, Say, Wait, code_of

S, D = Role.SOURCE, Role.DESTINATION
READY = Place(FrameType.READY)
ROUND = Place(FrameType.ROUND)
TALK = {"PING", "PONG", "skipped", "raw"}


def steps(names: list[str]) -> list[str]:
    return [name for name in names if name not in TALK]


def test_two_peers_have_the_whole_conversation() -> None:
    """The order of chapter 8.1."""
    guest = GuestSpec(writes=())
    accounts = talk(Scripted({"rounds": 1, "guest": guest}), Scripted({"guest": guest}))
    for account in accounts.values():
        assert account.completed
        assert not account.breach
        assert account.answer is None
    said = steps(accounts[S].said)
    assert [name for name in said if name not in {"PAGES", "STATE"}] == [
        *("HELLO", "GUEST", "ROUND", "ROUND_END", "SWITCHOVER", "ROUND", "ROUND_END", "SEAL"),
        *("HANDOVER", "RELEASE", "BYE"),
    ]
    assert steps(accounts[D].said) == [
        *("WELCOME", "ACCEPT", "ROUND_ACK", "READY", "LOADED", "RUNNING", "COMPLETE", "BYE"),
    ]
    assert steps(accounts[D].heard) == said


@pytest.mark.parametrize(
    "manner",
    [
        Manner(piece_bytes=997),
        Manner(grease=True),
        Manner(pings=True),
        Manner(limits=replace(Manner().limits, bulk_bytes=1 << 16, batch_runs=2)),
    ],
)
def test_however_they_speak(manner: Manner) -> None:
    """[FRM-7] [FRM-13] [PNG-1] [LIM-6]"""
    accounts = talk(Scripted(manner=manner), Scripted(manner=manner))
    assert accounts[S].completed
    assert accounts[D].completed
    if manner.grease:
        assert accounts[S].heard.count("skipped") > 3
    if manner.pings:
        assert accounts[D].heard.count("PING") > 8


def test_who_waits_says_ping() -> None:
    """[CON-76]"""
    accounts = talk(destination=Scripted(place=READY, act=do.before(Wait(2.0))), patience_s=10.0)
    assert accounts[S].completed
    assert 6 <= accounts[S].said.count("PING") <= 9  # every quarter of a second


def test_silence_is_silent() -> None:
    """Not even a PING, and no answer to one."""
    accounts = talk(destination=Scripted(place=READY, act=do.instead(End.SILENCE)))
    assert accounts[S].breach == "no answer after SWITCHOVER"
    assert accounts[S].said.count("PING") > accounts[D].said.count("PONG") + 10
    assert accounts[D].said.count("PING") == 0


def test_who_is_deaf_hears_nothing_more() -> None:
    """And goes on to say PING until nobody takes it."""
    place = Place(FrameType.SWITCHOVER, heard=True)
    act = do.after(Ear.DEAF, Wait(60.0))
    accounts = talk(destination=Scripted(place=place, act=act), patience_s=3.0)
    assert accounts[D].heard[-1] == "SWITCHOVER"
    assert accounts[D].said.count("PING") > 8
    assert accounts[S].breach == "no answer after SWITCHOVER"


def test_the_acts_last_number_is_kept() -> None:
    """[HDR-6]"""
    act = do.before(Say(Ping(0xABCD)), Say(Ping(0xABCE)))
    accounts = talk(Scripted(place=Place(FrameType.GUEST), act=act))
    assert accounts[S].last_act == 3  # HELLO, two PINGs, GUEST


@pytest.mark.parametrize(("how", "end"), [(End.PROPER, "proper"), (End.RESET, "reset")])
def test_ends(how: End, end: str) -> None:
    accounts = talk(destination=Scripted(place=READY, act=do.instead(how)))
    assert accounts[S].end == end
    assert accounts[D].acted
    assert not accounts[S].completed
    assert not accounts[S].breach


def test_the_nth_place_and_every_place() -> None:
    ping = Say(Ping(0xABCD))
    for nth, count in ((1, 1), (2, 1), (0, 3), (9, 0)):
        accounts = talk(Scripted(place=Place(FrameType.ROUND, nth), act=do.before(ping)))
        assert accounts[S].said.count("PING") == count
        assert accounts[S].acted == bool(count)
        assert accounts[S].completed


def test_an_act_upon_what_was_heard() -> None:
    act = do.after(Say(Ping(0xABCD)))
    accounts = talk(destination=Scripted(place=Place(FrameType.SEAL, heard=True), act=act))
    said = accounts[D].said
    assert said[said.index("PING") :][:2] == ["PING", "LOADED"]


@pytest.mark.parametrize(
    ("record", "breach"),
    [
        (Pong(1), "PNG-2"),
        (Refuse(0x0402), ""),
        (Abort(ErrorCode.FULL, Phase.ROUNDS), ""),
    ],
)
def test_what_comes_at_any_moment(record: object, breach: str) -> None:
    accounts = talk(destination=Scripted(place=READY, act=do.before(Say(record))))  # type: ignore[arg-type]
    assert breach in accounts[S].breach
    if not breach:
        assert code_of(accounts[S].answer) is ErrorCode.FULL


@pytest.mark.parametrize(
    ("frame", "act", "clause"),
    [
        (None, do.after(Say(Ping(1))), "CON-7"),
        (FrameType.GUEST, do.instead(Say(Abort(0x7777, Phase.DESCRIBE))), "FRM-14"),
    ],
)
def test_what_a_source_may_not_say_yet(frame: FrameType | None, act: Act, clause: str) -> None:
    accounts = talk(Scripted(place=Place(frame), act=act))
    assert clause in accounts[D].breach


def test_a_flood_of_pings_is_bounded() -> None:
    """What an endpoint can make the kit hold."""
    flood = Raw(
        lambda number: b"".join(unchecked.frame(0x8050, bytes(8), sequence=number + n) for n in range(2000)),
        2000,
    )
    accounts = talk(destination=Scripted(place=READY, act=do.before(flood)))
    assert accounts[S].breach == "more than 1000 PINGs that wait for an answer"


def test_no_ping_before_welcome() -> None:
    """[CON-2]"""
    accounts = talk(destination=Scripted(place=Place(FrameType.WELCOME), act=do.before(Say(Ping(1)))))
    assert "CON-2" in accounts[S].breach


def test_nothing_may_follow_abort() -> None:
    """[ABT-1]"""
    act = do.after(Say(Abort(ErrorCode.FULL, Phase.ROUNDS)), Say(Ping(1)))
    accounts = talk(destination=Scripted(place=Place(FrameType.ACCEPT), act=act))
    assert "ABT-1" in accounts[S].breach


def test_bytes_that_are_no_frames_are_a_breach() -> None:
    accounts = talk(destination=Scripted(place=READY, act=do.patch(2, b"\1")))
    assert "HDR-3" in accounts[S].breach
