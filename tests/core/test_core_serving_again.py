"""A link that is lost while pages follow the guest, and comes back [RES-13]."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_support import EPOCH, HERE, VERDICT, code_of
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_support import (
    RESUMED,
    FirstFetchingRig,
    FirstServingRig,
    SecondFetchingRig,
    SecondServingRig,
)

from sterna.core import events as e
from sterna.core.deadlines import WAITS, Deadlines
from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState as D
from sterna.core.tables import SourceState as S
from sterna.errors import GuestError, LocalProtocolError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.registry import ErrorCode
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire import records as r

LOST = TransportError(ErrorCode.CONNECTION_LOST, "nobody came back")
ASK = r.PageRequest(0, 1, 2)


# ---- the source ----


def pages_of(rig) -> list[tuple[int, int, int]]:
    """First page, count and round of every run that was sent."""
    return [
        (int(run["first"]), int(run["count"]), each.round)
        for each in rig.heard
        if isinstance(each, r.Pages) and each.attempt
        for run in each.runs
    ]


def test_a_source_that_loses_its_link_keeps_what_it_serves():
    """[RES-13] [ONE-20] It runs nothing and frees nothing."""
    rig = FirstServingRig().until(S.HANDED_OVER)
    rig.running_early()
    carry = rig.lose()
    assert (rig.machine.state, rig.machine.result.outcome) == (S.PARTED, Outcome.SUSPENDED)
    assert rig.wishes == []
    assert carry.serving.pages_owed == 2
    assert carry.sealed == rig.machine.digest != b""
    with pytest.raises(LocalProtocolError) as caught:
        rig.machine.cancel(rig.now)
    assert caught.value.code is ErrorCode.TOO_LATE


@pytest.mark.parametrize("moment", [D.RECORDING, D.CLAIMING, D.COMMITTING, D.STARTING])
def test_a_destination_without_a_link_waits_for_the_source_once_the_guest_runs(moment):
    """[RES-13] [ONE-30] [PCY-16] What it knows of the pages stays where it outlives the process."""
    rig = FirstFetchingRig().until(moment)
    place = bytearray(rig.machine._digest.size_bytes)
    rig.machine._digest.move_to(place)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is moment
    while rig.machine.result is None:
        request = rig.take()
        rig.machine.complete(request, rig.answer(request), rig.now)
    assert (rig.machine.state, rig.machine.result.outcome) == (D.PARTED, Outcome.SUSPENDED)
    carry = rig.machine.carry
    carry.digest.mark_stale(0, [0], [1])
    assert place[8 * 4] == 0xFE


def test_nothing_is_sent_again_that_is_installed():
    """[RES-13] [PCY-8]"""
    rig = SecondServingRig().until(S.MOVED)
    (event,) = rig.events(e.SessionResumed)
    assert (event.times, event.complete_round, event.pages_missing) == (1, 2, 0)
    rig.drain()
    assert pages_of(rig) == []
    rig.say(ASK)
    rig.drain()
    assert pages_of(rig) == [(1, 2, 3)]  # whoever asks, gets [PCY-9]
    assert rig.machine._serving.repeated == 2


def test_what_was_asked_for_before_the_loss_is_not_answered_behind_it():
    """[RES-13] Whoever still waits for it asks again; the rest would come twice."""
    asked = [r.PageRequest(0, 1, 2, urgent=urgent) for urgent in (True, False)]
    rig = SecondServingRig(asked=asked).until(S.MOVED)
    rig.drain()
    assert pages_of(rig) == []


def test_what_may_be_lost_is_sent_again_and_counted_once():
    """[RES-13] [PCY-13]"""
    rig = SecondServingRig().until(S.RETURNING)
    assert rig.last() == rig.first.machine.carry.ticket.next_hello()
    rig.say(rig.welcome_back())
    rig.drain()
    assert pages_of(rig) == [(1, 2, 3)]
    serving = rig.machine._serving
    assert (serving.pushed, serving.repeated, serving.pages_left) == (2, 2, 0)
    rig.do(e.Persist)  # RUNNING may have been lost
    rig.say(r.Complete(EPOCH + 1, rig.machine._memory.complete()))
    rig.do(e.Persist)
    rig.do(e.ReleaseImage)
    rig.drain()
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.resumed, result.after.stale) == (Outcome.COMPLETED, 1, 2)


@pytest.mark.parametrize("state", [S.RETURNING, S.CATCHING_UP, S.MOVED], ids=str)
def test_a_link_lost_again_is_come_back_from_again(state):
    """[RES-13] [RES-1]"""
    rig = SecondServingRig().until(state)
    carry = rig.lose()
    assert rig.machine.state is S.PARTED
    assert (carry.attempt, carry.account.losses) == (1, 2)
    assert carry.ticket.next_hello().generation == 2


@pytest.mark.parametrize(
    ("changes", "held", "code"),
    [
        ({"complete_round": 1}, {}, ErrorCode.BAD_ROUND),
        ({"complete_round": 3}, {}, ErrorCode.BAD_ROUND),
        ({"session": b"\7" * 16}, {}, ErrorCode.BAD_VALUE),
        ({"held_frames": 1}, {"round": 4}, ErrorCode.COUNT_MISMATCH),
        ({"held_frames": 1}, {}, ErrorCode.COUNT_MISMATCH),  # of pages that were never sent
    ],
    ids=str,
)
def test_a_wrong_answer_ends_the_serving_and_not_the_guest(changes, held, code):
    """[RES-5] [RES-6] [RES-13] [CON-64]"""
    rig = SecondServingRig(sent=False).until(S.RETURNING)
    rig.say(rig.welcome_back(**changes))
    if code is ErrorCode.COUNT_MISMATCH:
        rig.say(rig.held(**held))
    assert code_of(rig) is code
    assert (rig.machine.state, rig.machine.result.outcome) == (S.DEPARTED, Outcome.MOVED)
    assert rig.wishes == []


@pytest.mark.parametrize(
    "answer", [r.Refuse(ErrorCode.BAD_TOKEN, 0, (), "no"), VERDICT], ids=["no", "verdict"]
)
def test_a_destination_that_takes_no_more_ends_it(answer):
    """[RES-3] [RES-15] [ONE-20] The guest is there, whatever that one says."""
    rig = SecondServingRig().until(S.RETURNING)
    rig.say(answer)
    result = rig.machine.result
    assert (rig.machine.state, result.outcome, result.epoch) == (S.DEPARTED, Outcome.MOVED, EPOCH + 1)
    assert rig.wishes == []


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.FULL])
def test_a_refusal_that_passes_is_a_lost_connection(code):
    """[RES-18] [REF-2] Who has the guest's records or its holder is done with them in a moment."""
    rig = SecondServingRig().until(S.RETURNING)
    rig.say(r.Refuse(code, 2500, (), "not now"))
    result = rig.machine.result
    assert (rig.machine.state, result.outcome, result.code) == (S.PARTED, Outcome.SUSPENDED, code)
    assert result.error.retry_after_ms == 2500
    assert rig.machine.carry.account.losses == 2
    assert rig.wishes == []


def test_a_source_that_gives_up_keeps_the_image():
    """[CON-64] [ONE-38]"""
    rig = SecondServingRig()
    assert rig.machine.state is S.APART
    rig.machine.give_up(LOST, rig.now)
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.MOVED, ErrorCode.CONNECTION_LOST)
    assert result.after.stale == result.after.pushed == 2
    assert rig.wishes == []


# ---- the clocks ----


@pytest.mark.parametrize(("rig", "state"), [each for each in RESUMED if each[1] in WAITS], ids=str)
def test_a_peer_that_does_not_go_on_is_a_lost_link(rig, state):
    """[CON-74] [RES-13] It may be there again on the next connection, and what is kept is kept."""
    rig = rig(deadlines=Deadlines(**{WAITS[state]: 3.0, "silence_s": 1000.0, "heartbeat_s": 1.0})).until(
        state
    )
    for _ in range(10):
        rig.now += 1.0
        rig.machine.handle_timeout(rig.now)
        rig.drain()
    while (request := rig.machine.poll_request()) is not None:
        rig.machine.complete(request, rig.answer(request), rig.now)
    assert rig.machine.result.outcome is Outcome.SUSPENDED
    assert rig.events(e.Suspended)[-1].error.code is ErrorCode.PHASE_DEADLINE


# ---- the destination ----


def test_a_destination_that_loses_its_link_installs_what_has_come():
    """[RES-13] [PCY-12]"""
    rig = FirstFetchingRig().until(D.FETCHING)
    rig.machine.fault(0, 1, 1, rig.now)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is D.PARTED
    assert rig.machine.result.outcome is Outcome.SUSPENDED
    carry = rig.machine.carry
    assert not carry.fetching.is_complete
    rig.machine.fault(0, 2, 1, rig.now)  # nobody is there to be asked
    result = carry.strand(LOST, rig.now)
    assert (result.outcome, result.code, result.epoch) == (
        Outcome.STRANDED,
        ErrorCode.CONNECTION_LOST,
        EPOCH + 1,
    )
    assert (result.after.stale, result.digest) == (2, carry.sealed)


@pytest.mark.parametrize("taken", [False, True])
def test_the_last_pages_may_be_installed_behind_the_loss(taken):
    """[CMP-1] [CON-64] Then the guest lacks nothing, and the records say so."""
    rig = FirstFetchingRig().until(D.FETCHING)
    rig.follow()
    request = rig.take(e.Installed) if taken else None
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is D.PARTING
    request = request or rig.take(e.Installed)
    rig.machine.complete(request, None, rig.now)
    assert (rig.machine.state, rig.machine.result.outcome) == (D.SETTLED, Outcome.MOVED)
    assert rig.machine.result.digest == rig.digest.value()
    rig.do(e.Persist)


def test_pages_that_cannot_be_installed_behind_the_loss_strand_the_guest():
    """[CON-64]"""
    rig = FirstFetchingRig().until(D.FETCHING)
    rig.follow()
    rig.machine.connection_lost(None, rig.now)
    rig.break_(e.Installed, GuestError("the holder is gone"))
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.STRANDED, ErrorCode.GUEST_FAILED)


def test_a_destination_tells_what_is_installed_and_asks_again():
    """[RES-13] [RES-5] [BMP-7] WELCOME, HELD, and behind them what is unanswered [PCY-11]."""
    first = FirstFetchingRig().until(D.FETCHING)
    first.machine.fault(0, 2, 1, first.now)
    assert first.last() == r.PageRequest(0, 1, 2, urgent=True)
    rig = SecondFetchingRig(first).until(D.FETCHING)
    rig.drain()
    welcome, request = rig.heard
    assert (welcome.generation, welcome.complete_round, welcome.held_frames) == (1, 2, 0)
    assert request == r.PageRequest(0, 1, 2, urgent=True)
    (event,) = rig.events(e.SessionResumed)
    assert (event.times, event.complete_round, event.pages_missing) == (1, 2, 2)
    rig.follow()
    rig.do(e.Installed)
    rig.do(e.Persist)
    assert rig.last() == r.Complete(EPOCH + 1, rig.digest.value())
    rig.say(r.Release(EPOCH + 1))
    rig.do(e.Persist)
    rig.say(r.Bye())
    assert (rig.machine.result.outcome, rig.machine.result.resumed) == (Outcome.COMPLETED, 1)


def test_a_resumption_that_is_not_right_leaves_the_guest_waiting():
    """[RES-4]"""
    rig = SecondFetchingRig()
    rig.say(rig.hello_back(token=b"\1" * 32))
    rig.do(e.Readmit, rig.carry)
    assert code_of(rig) is ErrorCode.BAD_TOKEN
    assert rig.machine.state is D.PARTED
    assert rig.machine.carry.fetching is rig.carry.fetching


def test_a_link_lost_during_the_resumption_leaves_the_guest_waiting():
    """[RES-13]"""
    rig = SecondFetchingRig().until(D.RESUMING)
    request = rig.take(e.Readmit)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is D.SUSPENDING
    rig.machine.complete(request, rig.carry, rig.now)
    assert rig.machine.state is D.PARTED
    again = SecondFetchingRig().until(D.FETCHING)
    again.machine.connection_lost(None, again.now)  # WELCOME has not left
    assert again.machine.state is D.PARTED


# ---- both ----

PARAMETERS = WorkloadParameters(seed=7, pages=256, hot_pages=64, cold_every=4, block_pages=4, zero_pages=16)
RATE = 20 << 20


def migration(switchover: str) -> Pair:
    """Guests that write while they run; a link that loses its bytes whenever it is cut."""
    journal: list = []
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=RATE)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(rate_bytes_s=RATE, journal=journal)

    def between(pair: Pair) -> None:
        pair.now += 0.01
        source.advance(0.01)
        destination.advance(0.01)

    policy = PolicySettings(switchover=switchover, max_rounds=2)
    changes = {"epoch": EPOCH, "runner": HERE, "policy": policy}
    return resuming_pair(source, destination, between=between, **changes)


def until_moved(pair: Pair) -> None:
    pair.start()
    while pair.source.state is not S.MOVED:
        assert pair.step(chunk=50_000)


def check_completed(pair: Pair) -> None:
    here, there = pair.source.result, pair.destination.result
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.digest == there.digest != b""
    assert here.after.stale == there.after.stale == there.after.demanded + there.after.pushed
    assert pair.source_guest.released
    guest = pair.destination_guest
    guest.advance(0.1)
    assert guest.workload.errors == 0
    assert guest.workload.audit().errors == 0
    assert all(before.count < after.count for before, after in pairwise(guest.machine.journal))
    installed = [
        (pages.region, page)
        for request in pair.performed["destination"]
        if isinstance(request, e.Installed)
        for pages in request.pages
        for page in range(pages.first, pages.first + pages.count)
    ]
    assert len(installed) == len(set(installed)) == there.after.stale  # each exactly once


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["bitmap", "post-copy"]),
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([1_000, 20_000, 70_000]),
)
def test_wherever_the_link_is_cut_every_page_is_installed_once(switchover, cuts, chunk):
    """[RES-13] [STR-11] [PCY-13] [PCY-14] [same-memory] [no-stale-page] Also during a resumption."""
    pair = migration(switchover)
    until_moved(pair)
    resumed = 0
    for steps, faults in cuts:
        for _ in range(steps):
            pair.step(chunk=chunk)
        pair.cut()
        for name, machine in (("source", pair.source), ("destination", pair.destination)):
            pair.perform(name, machine)
        kept = pair.destination.state is D.PARTED or pair.kept is not None
        if pair.source.state is not S.PARTED or not kept:
            check_settled(pair)
            return
        if faults:  # the guest goes on where it can, and waits
            pair.destination_guest.advance(0.05)
        pair.reconnect()
        resumed += 1
    pair.run(chunk=chunk, steps=200_000)
    check_completed(pair)
    assert pair.source.result.resumed <= resumed


def check_settled(pair: Pair) -> None:
    """What was lost came behind the last page: the guest lacks nothing."""
    assert not pair.source_guest.running
    assert pair.destination_guest.running
    assert pair.destination.state in {D.SETTLED, D.CLOSED}
    assert pair.destination_guest.workload.audit().errors == 0
