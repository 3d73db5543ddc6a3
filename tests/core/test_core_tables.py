"""Every input in every state, and what the tables promise as graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_support import BOTH, DestinationRig, SourceRig
from resume_support import RESUMED

from sterna.core.deadlines import WAITS
from sterna.core.tables import (
    COMMITTED,
    DEAF,
    DESTINATION,
    PHASES,
    SOURCE,
    TERMINAL,
    DestinationInput,
    DestinationState,
    SourceInput,
    SourceState,
)
from sterna.errors import LocalProtocolError, PeerMisbehaved
from sterna.registry import FRAMES, IMPLEMENTED_FRAMES, ErrorCode, FrameType, Phase, Sender

TABLES = {SourceState: SOURCE, DestinationState: DESTINATION}
RIGS = {SourceState: SourceRig, DestinationState: DestinationRig}
INPUTS = {SourceState: SourceInput, DestinationState: DestinationInput}
STATES = [*SourceState, *DestinationState]
PROTOCOL = (Path(__file__).parents[2] / "spec" / "protocol.md").read_text(encoding="utf-8")

# A session whose guest runs here already [RES-13].
REJOINS = {
    (state, DestinationInput.REJOINED) for state in (DestinationState.RESUMING, DestinationState.SUSPENDING)
}

ROLES = pytest.mark.parametrize("role", [SourceState, DestinationState])


def reachable(role, start, without=()):
    """States that rows lead to, `start` included, with the rows in `without` taken out."""
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for (here, what), row in TABLES[role].items():
            if here is state and (here, what) not in without and row.next not in found:
                found.add(row.next)
                new.append(row.next)
    return found


def test_what_rows_send():
    """[CON-44] What a row does names its frames; every frame that a machine sends is in a row."""
    sent = {role: [row for row in table.values() if row.sends] for role, table in TABLES.items()}
    assert SOURCE[SourceState.DECIDING, SourceInput.ROUND_CHOSEN].sends == (
        (FrameType.ROUND, False),
        (FrameType.PAGES, True),
    )
    assert DESTINATION[DestinationState.RECORDING, DestinationInput.RECORDED].sends == ()  # record, not send
    for role, sender in ((SourceState, Sender.SOURCE), (DestinationState, Sender.DESTINATION)):
        frames = {frame for row in sent[role] for frame, _ in row.sends}
        own = {frame for frame in IMPLEMENTED_FRAMES if FRAMES[frame].sender in {sender, Sender.BOTH}}
        anywhere = {FrameType.PING, FrameType.PONG, FrameType.PROGRESS, FrameType.ABORT}
        # What ends a session is in no row, nor is what is said on data connections.
        assert frames == own - anywhere - {FrameType.REFUSE, FrameType.ATTACH, FrameType.ATTACHED}


@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_input_in_every_state(state):
    """[CON-3] What is in the table happens; the rest is an error."""
    role = type(state)
    for what in (*INPUTS[role], *FrameType):
        machine = RIGS[role]().machine
        machine._state = state
        row = TABLES[role].get((state, what))
        if row is None and isinstance(what, FrameType):
            with pytest.raises(PeerMisbehaved) as caught:
                machine._step(what, 0.0)
            assert (caught.value.code, caught.value.frame) == (ErrorCode.UNEXPECTED_FRAME, what)
        elif row is None:
            with pytest.raises(LocalProtocolError):
                machine._step(what, 0.0)
        else:
            machine._step(what, 0.0)
        assert machine.state is (state if row is None else row.next)


@ROLES
def test_every_state_can_be_reached(role):
    assert reachable(role, role.IDLE) == set(role)


@ROLES
def test_every_state_is_reached_by_a_rig_or_is_an_end(role):
    """So that tests which are parametrised over the rigs' states leave none out."""
    seen = {state for rig, state in BOTH if issubclass(rig, RIGS[role])}
    seen |= {state for _, state in RESUMED if isinstance(state, role)}
    transient = {SourceState.DECIDING}  # the policy answers at once
    # Of more connections than one: tests/core/test_core_joining.py.
    transient |= {SourceState.ATTACHING, SourceState.REATTACHING, SourceState.REPLACING}
    transient |= {DestinationState.JOINING}
    assert set(role) - seen - transient <= TERMINAL | DEAF


@ROLES
def test_every_state_has_a_way_out_to_an_end(role):
    for state in role:
        if state not in TERMINAL:
            assert reachable(role, state) & TERMINAL


def test_the_end_has_no_rows():
    assert not [key for table in TABLES.values() for key in table if key[0] in TERMINAL]


def test_what_is_deaf_takes_no_frame():
    assert TERMINAL <= DEAF
    frames = [key for table in TABLES.values() for key in table if isinstance(key[1], FrameType)]
    assert not [key for key in frames if key[0] in DEAF]


@ROLES
def test_a_loss_is_defined_wherever_the_peer_is_heard(role):
    lost = INPUTS[role].LOST
    for state in reachable(role, role.IDLE) - DEAF:
        assert (state, lost) in TABLES[role]


@ROLES
def test_clauses_exist(role):
    for row in TABLES[role].values():
        assert f"**[{row.clause}]**" in PROTOCOL
        assert row.does


@ROLES
def test_frames_come_from_the_other_side(role):
    """[CON-4]"""
    mine = Sender.SOURCE if role is SourceState else Sender.DESTINATION
    for _, what in TABLES[role]:
        if isinstance(what, FrameType):
            assert FRAMES[what].sender is not mine
            assert what in IMPLEMENTED_FRAMES


def test_what_is_legal_everywhere_stands_nowhere():
    """[CON-1]"""
    anywhere = {FrameType.PING, FrameType.PONG, FrameType.PROGRESS, FrameType.ABORT}
    assert not anywhere & {what for table in TABLES.values() for _, what in table}


@ROLES
def test_every_state_that_waits_or_works_has_its_phase(role):
    assert {state for state in role if state not in DEAF} == {each for each in PHASES if each in role}
    assert Phase.ANY not in PHASES.values()
    assert {state for state in WAITS if state in role} <= reachable(role, role.IDLE) - DEAF


# ---- exactly one runner, as far as tables can tell ----


def test_a_source_that_may_have_handed_over_never_runs_the_guest_by_itself():
    """[ONE-20] ROLLING_BACK is where it is set running again; implemented rows do not lead there."""
    after = reachable(SourceState, SourceState.HANDED_OVER)
    assert SourceState.ROLLING_BACK not in after
    assert after <= COMMITTED


def test_a_source_that_has_not_handed_over_always_runs_the_guest_again():
    """[CON-62] [ONE-19]"""
    handover = (SourceState.RECORDING, SourceInput.RECORDED)
    asks = (SourceState.IDLE, SourceInput.START_VERDICT)
    serves = (SourceState.IDLE, SourceInput.SERVES_ON)  # handed over long ago [RES-13]
    before = reachable(SourceState, SourceState.IDLE, without={handover, asks, serves})
    assert not before & COMMITTED - {SourceState.UNDECIDED}
    assert before & TERMINAL <= {SourceState.ENDED, SourceState.SUSPENDED, SourceState.UNDECIDED}
    for state in before - DEAF:
        marked = state in {SourceState.GRANTING, SourceState.RECORDING}
        wanted = SourceState.VOIDING if marked else SourceState.ROLLING_BACK
        assert SOURCE[state, SourceInput.LOST].next is wanted
    # If the grant can be voided, always.
    cannot = (SourceState.VOIDING, SourceInput.LOST)
    without = {handover, asks, serves, cannot}
    runs = reachable(SourceState, SourceState.IDLE, without=without)
    assert runs & TERMINAL == {SourceState.ENDED, SourceState.SUSPENDED}  # in both it runs


def test_a_grant_is_void_before_the_guest_runs_again():
    """[ONE-19] From the order to mark on, there is no way to ROLLING_BACK but by the record VOIDED."""
    voided = (SourceState.VOIDING, SourceInput.RECORDED)
    without = reachable(SourceState, SourceState.GRANTING, without={voided})
    assert SourceState.ROLLING_BACK not in without
    assert SourceState.ROLLING_BACK in reachable(SourceState, SourceState.GRANTING)


@ROLES
def test_a_question_changes_nothing(role):
    """[ONE-15] [ONE-60] Whoever asks, or is asked, neither runs the guest nor frees it."""
    asked = SourceState.ASKING if role is SourceState else DestinationState.ANSWERING
    assert reachable(role, asked) == {asked, role.ANSWERED, role.UNANSWERED}


def test_a_destination_runs_the_guest_only_with_handover_and_its_records():
    """[ONE-24] [ONE-25] [ONE-28]"""
    for key in (
        (DestinationState.LOADED, FrameType.HANDOVER),
        (DestinationState.RECORDING, DestinationInput.RECORDED),
        (DestinationState.CLAIMING, DestinationInput.CLAIM_WON),
        (DestinationState.COMMITTING, DestinationInput.RECORDED),
    ):
        without = reachable(DestinationState, DestinationState.IDLE, without={key, *REJOINS})
        assert not without & {DestinationState.STARTING, DestinationState.RUNNING}


def test_a_destination_without_handover_frees_everything():
    """[CON-63]"""
    handover = (DestinationState.LOADED, FrameType.HANDOVER)
    asked = (DestinationState.IDLE, DestinationInput.HELLO_VERDICT)
    late = (DestinationState.ADMITTING, DestinationInput.ANSWERED)  # nothing was made room for [ONE-14]
    verdict = (DestinationState.RESUMING, DestinationInput.ANSWERED)  # handed over long ago [RES-15]
    joins = (DestinationState.IDLE, FrameType.ATTACH)  # of another machine's session
    without = {handover, asked, late, verdict, joins, *REJOINS}
    before = reachable(DestinationState, DestinationState.IDLE, without=without)
    assert before & TERMINAL == {DestinationState.ENDED, DestinationState.SUSPENDED}
    assert not before & COMMITTED
    for state in before - DEAF:
        to = DESTINATION[state, DestinationInput.LOST].next
        # A resumption that is not admitted yet has nothing to free, and must not free what is kept [RES-4].
        kept = state is DestinationState.RESUMING
        assert to is (DestinationState.SUSPENDING if kept else DestinationState.DISCARDING)


def test_a_guest_that_is_handed_back_is_never_run():
    """[ONE-26] [ONE-27] [ONE-35] One of START and HANDBACK; the latter is sent when it is durable."""
    back = reachable(DestinationState, DestinationState.HANDING_BACK)
    assert not back & {DestinationState.STARTING, DestinationState.COMPLETING, DestinationState.RUNNING}
    recorded = (DestinationState.HANDING_BACK, DestinationInput.RECORDED)
    sending = [key for key, row in DESTINATION.items() if (FrameType.HANDBACK, False) in row.sends]
    assert sending == [recorded]


def test_complete_is_sent_when_it_is_recorded():
    """[ONE-39]"""
    sending = [key for key, row in DESTINATION.items() if (FrameType.COMPLETE, False) in row.sends]
    assert sending == [(DestinationState.COMPLETING, DestinationInput.RECORDED)]


def test_a_loss_takes_no_permission_back():
    """[ONE-30] [CON-64]"""
    for state in reachable(DestinationState, DestinationState.RECORDING) - DEAF:
        assert DESTINATION[state, DestinationInput.LOST].next in COMMITTED
