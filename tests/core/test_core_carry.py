"""What a session is known by from one connection to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import HERE, THERE
from resume_support import FEATURES, OFFER, FirstDestinationRig

from sterna.core.carry import Ticket
from sterna.core.negotiate import select
from sterna.core.tables import DestinationState
from sterna.errors import RemoteProtocolError
from sterna.registry import ErrorCode, Feature, Limit, Mode
from sterna.wire import decode_body, encode_body
from sterna.wire import records as r


def ticket() -> Ticket:
    return FirstDestinationRig().until(DestinationState.STANDBY).machine.ticket


TICKET = ticket()
HELLO = TICKET.next_hello()
WELCOME = TICKET.next_welcome(HELLO, 3, 2)


def test_a_resumption_carries_what_the_opening_ended_with():
    """[RES-1] [RES-2] [LIM-8] [HEL-6]"""
    assert (HELLO.mode, HELLO.session, HELLO.token) == (Mode.RESUME, TICKET.session, TICKET.welcome.token)
    assert HELLO.generation == 1
    assert TICKET.of_generation(7).next_hello().generation == 8
    assert (HELLO.guest, HELLO.epoch, HELLO.runner) == (
        TICKET.hello.guest,
        TICKET.hello.epoch,
        TICKET.hello.runner,
    )
    assert HELLO.versions == (TICKET.selection.version,)
    assert {each.id: each.parameter for each in HELLO.features} == TICKET.selection.features
    assert HELLO.limits == TICKET.hello.limits
    assert decode_body(HELLO.type, encode_body(HELLO)) == HELLO
    TICKET.check_hello(HELLO)


def test_the_answer_carries_it_too():
    """[RES-5] [NEG-9] [LIM-8]"""
    assert (WELCOME.session, WELCOME.token) == (TICKET.session, TICKET.welcome.token)
    assert (WELCOME.generation, WELCOME.complete_round, WELCOME.held_frames) == (1, 3, 2)
    assert decode_body(WELCOME.type, encode_body(WELCOME)) == WELCOME
    TICKET.check_welcome(WELCOME, 1)


MORE = (*HELLO.features, r.FeatureOffer(4711, required=False, parameter=0))


def without(features, gone):
    return tuple(each for each in features if each.id != gone)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": b"\0" * 32}, ErrorCode.BAD_TOKEN),
        ({"session": b"\1" * 16}, ErrorCode.BAD_TOKEN),
        ({"generation": 0}, ErrorCode.BAD_TOKEN),
        ({"guest": b"\1" * 16}, ErrorCode.NOT_SELECTED),
        ({"epoch": 6}, ErrorCode.NOT_SELECTED),
        ({"runner": THERE}, ErrorCode.NOT_SELECTED),
        ({"versions": (HELLO.versions[0], 99)}, ErrorCode.NOT_SELECTED),
        ({"features": without(HELLO.features, Feature.PROGRESS)}, ErrorCode.NOT_SELECTED),
        (
            {"features": (*HELLO.features, r.FeatureOffer(4711, required=False, parameter=0))},
            ErrorCode.NOT_SELECTED,
        ),
        ({"limits": {Limit.REGIONS: 3}}, ErrorCode.LIMIT_MISMATCH),
    ],
    ids=lambda each: "" if isinstance(each, ErrorCode) else next(iter(each)),
)
def test_what_is_not_this_session_is_refused(changes, code):
    """[RES-1] [RES-2] [RES-3] [LIM-8] [NEG-9]"""
    with pytest.raises(RemoteProtocolError) as error:
        TICKET.check_hello(replace(HELLO, **changes))
    assert error.value.code is code


def test_a_generation_comes_once():
    """[RES-1]"""
    used = TICKET.of_generation(4)
    for generation in (1, 3, 4):
        with pytest.raises(RemoteProtocolError) as error:
            used.check_hello(replace(HELLO, generation=generation))
        assert (error.value.code, error.value.clause) == (ErrorCode.BAD_TOKEN, "RES-1")
    used.check_hello(replace(HELLO, generation=9))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"session": b"\1" * 16}, ErrorCode.BAD_VALUE),
        ({"token": b"\1" * 32}, ErrorCode.BAD_VALUE),
        ({"generation": 2}, ErrorCode.BAD_VALUE),
        ({"version": 99}, ErrorCode.NOT_SELECTED),
        ({"features": without(WELCOME.features, Feature.PROGRESS)}, ErrorCode.NOT_SELECTED),
        ({"limits": {Limit.REGIONS: 3}}, ErrorCode.LIMIT_MISMATCH),
    ],
    ids=lambda each: "" if isinstance(each, ErrorCode) else next(iter(each)),
)
def test_an_answer_for_another_session_is_refused(changes, code):
    """[RES-5] [NEG-9] [LIM-8]"""
    with pytest.raises(RemoteProtocolError) as error:
        TICKET.check_welcome(replace(WELCOME, **changes), 1)
    assert error.value.code is code


def test_a_ticket_does_not_show_its_token():
    """[SEC-5]"""
    hello = r.Hello(Mode.OPEN, HELLO.versions, OFFER, {}, b"g" * 16, 1, HERE)
    shown = repr(Ticket(hello, TICKET.welcome, select(hello, FEATURES)))
    assert TICKET.welcome.token.hex() not in shown
    assert repr(TICKET.welcome.token) not in shown
