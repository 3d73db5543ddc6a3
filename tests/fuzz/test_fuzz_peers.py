"""Machines that hear a recording end as they must, and each way not to is noticed."""

from __future__ import annotations

import pytest

from sterna.core.destination import DestinationMachine
from sterna.core.events import Outcome
from sterna.core.session import Session
from sterna.errors import RemoteProtocolError
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.memory.pages import RegionPages
from sterna.wire import framing, unchecked
from sterna.wire.records import Abort, Bye
from sterna_fuzz import peers
from sterna_fuzz.conversations import DESTINATION, SCRIPTS, SOURCE, conversation
from sterna_fuzz.mutators import Step
from sterna_fuzz.peers import check, check_held, check_machine, check_pieces, check_skipped, hear, understand
from sterna_fuzz.plans import Plan, spoil

END = Plan("dirty", DESTINATION, (Step("end_early", 4),))


@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recording_is_as_good_as_the_peer(name, side):
    """Fed with what its peer said, a machine says what it said to its peer; a PONG may come a frame later."""
    plan = Plan(name, side)
    heard = hear(plan, plan.frames)
    check(plan, heard)
    if conversation(name).completed and name != "rejected":  # there the page bytes were damaged on their way
        other = DESTINATION if side == SOURCE else SOURCE
        said = b"".join(conversation(name).frames[other])
        assert bodies(heard.said, name) == bodies(said, name)
    assert (heard.result.outcome is Outcome.COMPLETED) == conversation(name).completed


def test_good_machines_pass():
    assert check_machine(END) == ("connection_lost",)
    assert check_pieces(END, (1,)) == ("connection_lost",)
    assert check_skipped(Plan("dirty", SOURCE, (Step("unknown", 3, 0, 5),))) == ("completed",)
    assert check_held(Plan("dirty", SOURCE, (Step("flip_bulk", 0, 5),))) == ("completed",)


def test_what_was_said_can_be_read():
    plan = Plan("dirty", SOURCE)
    words = understand(hear(plan, plan.frames).said, ())
    assert isinstance(words[-1], Bye)
    wrong = Plan("dirty", SOURCE, (Step("flip_header", 4),))
    assert isinstance(understand(hear(wrong, spoil(wrong).parts).said, ())[-1], Abort)


def bodies(said, name):
    return sorted(map(unchecked.body, understand(said, conversation(name).regions)))


def noticed(plan, text, checked=check_machine):
    with pytest.raises(AssertionError, match=text):
        checked(plan)


def test_pages_that_nobody_verifies_are_noticed(monkeypatch):
    """[CON-47] The bytes differ from their hash, and the guest would run with them."""
    monkeypatch.setattr(RegionPages, "commit", lambda self, table, *, hashed: [])
    noticed(Plan("plain", SOURCE, (Step("flip_bulk", 0, 5),)), "it runs with another memory")


def test_without_hashes_damage_is_content(monkeypatch):
    """[MEM-20] But the guest runs with no other pages than those that came."""
    damage, pause = Plan("unhashed", SOURCE, (Step("flip_bulk", 0, 5),)), Plan("unhashed", SOURCE)
    assert check_machine(damage) == check_machine(pause) == ("completed",)
    monkeypatch.setattr(RegionPages, "targets", lambda self, table: [bytearray(table.bulk_bytes)])
    assert check_machine(damage) == ("completed",)
    noticed(pause, "it runs with another memory")


def test_pages_that_are_rejected_without_hashes_are_noticed():
    """[RAK-6]"""
    whole = conversation("rejected")
    said = list(whole.frames[DESTINATION])
    assert understand(b"".join(said), whole.regions)
    said[1] = conversation("unhashed").frames[DESTINATION][1]
    with pytest.raises(RemoteProtocolError, match="RAK-6"):
        understand(b"".join(said), whole.regions)


def test_a_guest_that_is_not_set_running_again_is_noticed(monkeypatch):
    """[CON-62]"""

    async def nothing(self):
        pass

    monkeypatch.setattr(SimulatedSourceGuest, "resume", nothing)
    noticed(Plan("dirty", DESTINATION, (Step("drop", 7),)), "the guest stands still at the source")


def test_an_end_that_is_taken_for_success_is_noticed(monkeypatch):
    """[CON-69]"""
    monkeypatch.setattr(DestinationMachine, "connection_lost", lambda self, error, now: None)
    noticed(Plan("dirty", SOURCE, (Step("end_early", 4),)), "the connection has ended, and the machine is")


def test_a_peer_that_is_told_nothing_is_noticed(monkeypatch):
    """[ABT-1]"""
    send = Session._send

    def silent(self, record, buffers=()):
        if not isinstance(record, Abort):
            send(self, record, buffers)

    monkeypatch.setattr(Session, "_send", silent)
    noticed(Plan("dirty", SOURCE, (Step("flip_header", 4),)), "the peer is not told of header_checksum")


def test_skipped_frames_that_change_something_are_noticed(monkeypatch):
    """[FRM-7]"""
    monkeypatch.setattr(framing, "UNKNOWN_FRAMES_IN_A_ROW", 0)
    noticed(Plan("dirty", SOURCE, (Step("unknown", 3, 0, 5),)), "other words", check_skipped)


def test_another_end_than_the_mutator_s_is_noticed(monkeypatch):
    """[HDR-10]"""
    monkeypatch.setattr(framing.FrameReader, "_check_crc", lambda self, crc: None)
    noticed(Plan("plain", SOURCE, (Step("flip_body", 0, 2 * 8),)), "instead of body_checksum|was not noticed")


def test_memory_beyond_the_limits_is_noticed(monkeypatch):
    monkeypatch.setattr(peers, "HELD_BYTES_MAX", 1000)
    noticed(Plan("dirty", SOURCE), "bytes held, allowed are 1000", check_held)


def test_pieces_that_matter_are_noticed(monkeypatch):
    """[FRM-13]"""
    receive = Session.receive_data

    def forgetful(self, data, now):
        receive(self, data[:1000], now)

    monkeypatch.setattr(Session, "receive_data", forgetful)
    noticed(Plan("plain", SOURCE), "in pieces", lambda plan: check_pieces(plan, (100,)))
