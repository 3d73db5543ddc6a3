"""Recordings of sessions whose pages travel on data connections, made at either end, whatever came first."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.core import shares
from sterna.core.policy import PolicySettings
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.observe.budget import Budget
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended
from sterna.observe.recording import DirectionEnded, How, Passed, RecordClock, Side
from sterna.observe.sessions import Over, Sessions, Stopped
from sterna.registry import ErrorCode, FrameType, Sender
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire import unchecked

PARAMETERS = WorkloadParameters(seed=7, pages=96, hot_pages=32, block_pages=8)
SENDERS = {"source": Sender.SOURCE, "destination": Sender.DESTINATION}
OTHER = {"source": "destination", "destination": "source"}


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * 4096)


class Recorded(Pair):
    """A pair of which one end is recorded, connection by connection."""

    side: str
    items: list[Passed]

    def note(self, name: str, stream: int, data: bytes) -> None:
        if data:
            self.items.append(Passed(stream + 1, SENDERS[name], 0, data))

    def send(self, name: str, stream: int = 0, units: int | None = None) -> bool:
        pipe = self._end(name, stream)[1]
        before = len(pipe)
        moved = super().send(name, stream, units)
        if name == self.side:
            self.note(name, stream, bytes(pipe[before:]))
        return moved

    def receive(self, name: str, stream: int = 0, count: int | None = None) -> bool:
        pipe = self._pipe_to(name, stream)
        before = bytes(pipe)
        moved = super().receive(name, stream, count)
        if name == self.side:
            self.note(OTHER[name], stream, before[: len(before) - len(pipe)])
        return moved


def recorded(side: str, seed: int, streams: int = 3, switchover: str = "stop-and-copy") -> list[Passed]:
    """A whole migration with its connections in any order."""
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=2e7)
    destination = SimulatedDestinationGuest(can_post_copy=True)
    policy = PolicySettings(switchover=switchover, max_rounds=3)
    pair = resuming_pair(source, destination, streams=streams, policy=policy, batch_bytes=4 * 4096)
    pair.__class__ = Recorded
    pair.side, pair.items = side, []
    pair.start()
    dice = Random(seed)
    while pair.source.result is None or pair.destination.result is None:
        for name, machine in (("source", pair.source), ("destination", pair.destination)):
            pair.perform(name, machine)
            pair._events_of(name, machine)
        pair._tell_faults()
        ways = [
            (act, name, stream)
            for stream in (0, *pair.lanes)
            for name in ("source", "destination")
            for act in (pair.send, pair.receive)
        ]
        dice.shuffle(ways)
        for act, name, stream in ways:
            act(name, stream, dice.randint(1, 5000))
        source.advance(0.0005)
        destination.advance(0.0005)
    pair.send("destination")
    pair.receive("source")
    return pair.items


def follow(items: list[Passed], **options: object) -> tuple[Follower, list[Follower], list[int]]:
    """The session, its data connections, and of which connections something was told that is wrong."""
    ends = [
        DirectionEnded(number, sender, 0, How.PROPERLY)
        for number in sorted({item.connection for item in items}, reverse=True)
        for sender in Sender
        if sender is not Sender.BOTH
    ]
    steps = list(Sessions(Side.BETWEEN, RecordClock.NONE, **options).follow([*items, *ends]))
    overs = [step.follower for step in steps if isinstance(step, Over)]
    (session,) = [each for each in overs if each.session is None]
    stopped = [step.connection for step in steps if isinstance(step, Stopped)]
    return session, [each for each in overs if each.session is session], stopped


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["source", "destination"]), st.integers(0, 1 << 32), st.integers(1, 4))
def test_an_honest_session_is_right_at_either_end(side, seed, streams):
    """[STR-13] [RND-4] [STR-8]"""
    session, data, stopped = follow(recorded(side, seed, streams))
    assert (session.fault, session.trouble, stopped) == (None, "", [])
    assert [(each.fault, each.trouble) for each in data] == [(None, "")] * streams
    assert session.outcome().ended is Ended.COMPLETED
    assert session.summary.pages == sum(each.summary.pages for each in data) >= PARAMETERS.pages
    assert session.summary.pages == sum(each.pages for each in session.summary.rounds)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["source", "destination"]), st.integers(0, 1 << 32))
def test_pages_that_follow_the_guest(side, seed):
    """[STR-16]"""
    session, data, stopped = follow(recorded(side, seed, 2, "post-copy"))
    assert (session.fault, session.trouble, stopped) == (None, "", [])
    assert not any(each.stopped for each in data)
    assert session.outcome().ended is Ended.COMPLETED


def changed(items: list[Passed], kind: FrameType, at: int, byte: int) -> list[Passed]:
    """The first frame of a kind that lies in one piece, with one byte of its body changed."""
    head = int(kind).to_bytes(2, "little") + bytes(2)
    for number, item in enumerate(items):
        start = item.data.find(head)
        size = int.from_bytes(item.data[start + 16 : start + 20], "little")
        if start < 0 or size > 4096 or start + 32 + size > len(item.data):
            continue
        old = bytearray(item.data[start + 32 : start + 32 + size])
        old[at] = byte
        stream = int.from_bytes(item.data[start + 4 : start + 6], "little")
        sequence = int.from_bytes(item.data[start + 8 : start + 16], "little")
        frame = unchecked.frame(kind, bytes(old), stream=stream, sequence=sequence)
        data = item.data[:start] + frame + item.data[start + 32 + size :]
        return [*items[:number], replace(item, data=bytes(data)), *items[number + 1 :]]
    raise AssertionError("there is none")


ITEMS = None


def honest() -> list[Passed]:
    """A session with two data connections, made once; nothing overtakes anything."""
    global ITEMS  # noqa: PLW0603 - a cache
    ITEMS = ITEMS or recorded("source", 3, 2)
    return ITEMS


@pytest.mark.parametrize(
    ("kind", "at", "byte", "code", "clause"),
    [
        (FrameType.ATTACH, 20, 0xEE, ErrorCode.BAD_TOKEN, "ATT-3"),
        (FrameType.ATTACH, 52, 5, ErrorCode.BAD_HEADER, "HDR-5"),
        (FrameType.ATTACHED, 8, 9, ErrorCode.BAD_VALUE, "ATT-6"),
        (FrameType.ATTACHED, 0, 9, ErrorCode.BAD_VALUE, "ATT-6"),
        (FrameType.ROUND_END, 40, 0, ErrorCode.COUNT_MISMATCH, "RND-4"),
        (FrameType.ROUND_END, 47, 9, None, "RND-4"),
    ],
)
def test_what_was_altered_is_found(kind, at, byte, code, clause):
    """[ATT-3] [ATT-6] [HDR-5] [RND-4] And only once, on whatever connection it was."""
    session, data, _ = follow(changed(honest(), kind, at, byte))
    faults = [each.fault for each in (session, *data) if each.fault is not None]
    assert [(each.code, each.clause) for each in faults] == [(code, clause)]


def test_a_round_before_all_connections_are_attached():
    """[STR-2]"""
    items = [item for item in honest() if item.connection != 3]
    session, _, _ = follow(items)
    assert session.fault is not None
    assert session.fault.clause == "STR-2"


def test_what_waits_is_bounded():
    """Frames that wait for others take from the budget, as all that is kept."""
    items = honest()
    troubles = {follow(items, budget=Budget(size))[0].trouble for size in range(2000, 40_000, 500)}
    assert "" in troubles
    assert len(troubles) > 1


def test_a_data_connection_of_a_session_that_is_not_here():
    items = [item for item in honest() if item.connection != 1]
    steps = list(Sessions(Side.BETWEEN, RecordClock.NONE).follow(items))
    troubles = {step.follower.trouble for step in steps if isinstance(step, Over)}
    assert troubles == {"a data connection, of a session that began on another connection"}
