"""Histories for tests: what hosts note in the course of migrations, in legal orders."""

from __future__ import annotations

from dataclasses import replace

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
from sterna.registry import Owner
from sterna.wire.records import Runner

GUEST = bytes(range(16))
ONE, TWO = b"1" * 16, b"2" * 16  # sessions
IMAGE = b"i" * 16
TOKEN = b"secret token".ljust(32, b"!")
DIGEST = b"d" * 16
OURS, OTHERS = Runner("here", b"o" * 16), Runner("there", b"t" * 16)

FIRST = RunnerRecord(bytes(16), 1, Runner("here", b"f" * 16), IMAGE)
SENDING = SessionRecord(ONE, 1, Side.SOURCE, TOKEN, "there", "192.0.2.7:7000")
RECEIVING = SessionRecord(ONE, 1, Side.DESTINATION, TOKEN, "there")
STORED = replace(SENDING, store=True)  # the same where there was a lease store
ARRIVING = replace(RECEIVING, store=True)
CLAIM = Claiming(ONE, 2, OURS, IMAGE)

# Every kind, in an order in which a host can make them: it was a source twice, and a destination twice.
EVERYTHING: tuple[Record, ...] = (
    FIRST,
    SENDING,
    Granted(ONE, 2),
    Voided(ONE, 2),
    Granted(ONE, 2),
    RunnerRecord(ONE, 2, OURS, IMAGE),
    Decided(ONE, 2, Owner.DESTINATION),
    SessionRecord(TWO, 2, Side.DESTINATION, TOKEN, "there"),
    Claiming(TWO, 3, Runner("here", b"3" * 16), b"j" * 16),
    Start(3),
    Complete(TWO, 3, DIGEST),
    Released(TWO),
    SessionRecord(b"3" * 16, 3, Side.SOURCE, TOKEN, "é 日本", "[2001:db8::1]:7000"),
    Granted(b"3" * 16, 4),
    Resolved(b"3" * 16, 4, Owner.DESTINATION, 'i-have-fenced "there"', "root@here"),
    SessionRecord(b"4" * 16, 4, Side.DESTINATION, TOKEN, "there", store=True),
    Claiming(b"4" * 16, 5, Runner("here", b"5" * 16), b"k" * 16),
    HandBack(5, "somebody"),
)
