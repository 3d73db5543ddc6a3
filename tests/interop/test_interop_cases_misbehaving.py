"""Misbehaviours as cases; and the teeth of all cases: an endpoint with a check taken away fails them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peer_support import played

from sterna.core import (
    conduct,
    connected,
    departed,
    destination,
    negotiate,
    opening,
    permitted,
    session,
    source,
    tables,
)
from sterna.core.deadlines import Watch
from sterna.core.heartbeat import Heartbeat
from sterna.core.rounds import IncomingRound, OutgoingRound
from sterna.core.state import StateAssembler
from sterna.core.tables import DestinationInput, DestinationState, Row, SourceInput, SourceState
from sterna.limits import Limits
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets
from sterna.registry import ErrorCode, FrameType
from sterna.wire import Hello, Loaded, RoundEnd, Seal, Welcome, framing
from sterna_interop.case import Case, completed
from sterna_interop.cases import CASES, MISBEHAVIOURS
from sterna_interop.cases_misbehaving import case_of, ends_of
from sterna_interop.contract import GuestState, Outcome, Role
from sterna_interop.misbehaviours import Stage, misbehaviour

BY_ID = {case.id: case for case in CASES}
Patch = pytest.MonkeyPatch


# ---- endpoints that lack something ----


def believes_pages(patch: Patch) -> None:
    patch.setattr(RegionPages, "commit", lambda _self, _table, *, hashed: [])


def forgets_rejections(patch: Patch) -> None:
    patch.setattr(OutgoingRound, "rejected", lambda self, _ack: PageSets(self.pages.table))


def believes_acknowledgements(patch: Patch) -> None:
    def rejected(self: OutgoingRound, ack: object) -> PageSets:
        found = PageSets(self.pages.table)
        found.add_ranges(ack.rejected)  # type: ignore[attr-defined]
        return found

    patch.setattr(OutgoingRound, "rejected", rejected)


def believes_seals(patch: Patch) -> None:
    def check(seal: Seal, *_: object) -> bytes:
        return seal.digest

    patch.setattr(destination, "check_seal", check)


def believes_loaded(patch: Patch) -> None:
    def on_loaded(self: source.SourceMachine, record: Loaded, now: float) -> None:
        self._sealed = record.digest
        whole(self, record, now)

    whole = source.SourceMachine._on_loaded
    patch.setattr(source.SourceMachine, "_on_loaded", on_loaded)


def believes_epochs(patch: Patch) -> None:
    for module in (source, departed, destination, permitted):
        patch.setattr(module, "check_epoch", lambda *_: None)


def believes_welcome(patch: Patch) -> None:
    def check(_: Hello, welcome: Welcome) -> negotiate.Selection:
        features = {each.id: each.parameter for each in welcome.features}
        return negotiate.Selection(welcome.version, features, Limits.from_wire(welcome.limits))

    patch.setattr(opening, "check_welcome", check)


def disregards_limits(patch: Patch) -> None:
    patch.setattr(negotiate, "usable_limits", lambda _stated, _frame: Limits())


def disregards_senders(patch: Patch) -> None:
    patch.setattr(connected, "check_sender", lambda *_: None)


def disregards_attempts(patch: Patch) -> None:
    patch.setattr(session, "is_of_old_attempt", lambda *_: False)


def disregards_rounds(patch: Patch) -> None:
    for name in ("check_opening", "check_round", "check_counts", "check_sequences"):
        if hasattr(IncomingRound, name):
            patch.setattr(IncomingRound, name, lambda *_: None)


def disregards_fragments(patch: Patch) -> None:
    def add(self: StateAssembler, fragment: object) -> None:
        self._open = None
        self._begin(fragment) if not fragment.offset else None  # type: ignore[attr-defined, arg-type]
        self._data += fragment.data  # type: ignore[attr-defined]
        if fragment.last:  # type: ignore[attr-defined]
            self._end(fragment)  # type: ignore[arg-type]

    patch.setattr(StateAssembler, "add", add)


def disregards_unasked_pongs(patch: Patch) -> None:
    patch.setattr(Heartbeat, "answered", lambda *_: None)


def disregards_damage(patch: Patch) -> None:
    patch.setattr(framing.FrameReader, "_check_crc", lambda *_: None)


def never_answers_pings(patch: Patch) -> None:
    patch.setattr(session.Session, "_on_ping", lambda *_: None)


def never_has_enough(patch: Patch) -> None:
    patch.setattr(framing, "UNKNOWN_FRAMES_IN_A_ROW", 1 << 30)


def waits_for_ever(patch: Patch) -> None:
    patch.setattr(Watch, "alarms", lambda *_args, **_more: [])


def runs_without_handover(patch: Patch) -> None:
    """It takes HANDOVER for permission wherever it comes."""
    row = tables.DESTINATION[DestinationState.LOADED, FrameType.HANDOVER]
    for state in (DestinationState.STANDBY, DestinationState.FROZEN):
        patch.setitem(tables.DESTINATION, (state, FrameType.HANDOVER), row)


def takes_running_for_loaded(patch: Patch) -> None:
    row = tables.SOURCE[SourceState.HANDED_OVER, FrameType.RUNNING]
    patch.setitem(tables.SOURCE, (SourceState.SEALED, FrameType.RUNNING), row)


def runs_on_after_handover(patch: Patch) -> None:
    """It takes the loss of the connection for the end of its grant."""
    row = Row(SourceState.ROLLING_BACK, "guest runs on", "CON-62")
    patch.setitem(tables.SOURCE, (SourceState.HANDED_OVER, SourceInput.LOST), row)


def gives_up_after_running(patch: Patch) -> None:
    row = Row(DestinationState.DISCARDING, "free everything", "CON-63")
    patch.setitem(tables.DESTINATION, (DestinationState.RUNNING, DestinationInput.LOST), row)


def counts_wrongly(patch: Patch) -> None:
    whole = OutgoingRound.ending

    def ending(self: OutgoingRound) -> RoundEnd:
        end = whole(self)
        return RoundEnd(end.attempt, end.round, end.pages + 1, end.bulk_bytes, end.last_sequences)

    patch.setattr(OutgoingRound, "ending", ending)


def seals_something_else(patch: Patch) -> None:
    patch.setattr(MemoryDigest, "value", lambda _: b"sixteen others..")


def refuses_by_abort(patch: Patch) -> None:
    patch.setattr(destination.DestinationMachine, "_last_words", session.Session._last_words)
    patch.setattr(destination.DestinationMachine, "_refuse", lambda self, error, now: self._fail(error, now))


def says_another_code(patch: Patch) -> None:
    patch.setattr(conduct, "ErrorCode", type("Codes", (), {"UNEXPECTED_FRAME": ErrorCode.INTERNAL}))


TEETH: list[tuple[Callable[[Patch], None], str]] = [
    (believes_pages, "hash-001"),
    (believes_pages, "hash-002"),
    (believes_pages, "hash-003"),
    (forgets_rejections, "honest-121"),
    (forgets_rejections, "ack-014"),
    (believes_acknowledgements, "ack-005"),
    (believes_acknowledgements, "ack-012"),
    (believes_seals, "seal-001"),
    (believes_seals, "seal-002"),
    (believes_seals, "seal-005"),
    (believes_seals, "hash-005"),
    (believes_seals, "hash-006"),
    (believes_loaded, "loaded-002"),
    (believes_epochs, "commit-003"),
    (believes_epochs, "running-003"),
    (believes_epochs, "complete-002"),
    (believes_welcome, "welcome-001"),
    (believes_welcome, "welcome-004"),
    (disregards_limits, "honest-115"),
    (disregards_limits, "welcome-010"),
    (disregards_senders, "talk-103"),
    (disregards_attempts, "round-013"),
    (disregards_attempts, "ready-008"),
    (disregards_fragments, "state-001"),
    (disregards_unasked_pongs, "talk-001"),
    (disregards_damage, "skip-004"),
    (never_answers_pings, "honest-005"),
    (never_answers_pings, "honest-117"),
    (never_has_enough, "skip-003"),
    (waits_for_ever, "time-101"),
    (waits_for_ever, "time-106"),
    (waits_for_ever, "time-004"),
    (runs_without_handover, "commit-001"),
    (runs_without_handover, "commit-002"),
    (takes_running_for_loaded, "running-001"),
    (runs_on_after_handover, "running-009"),
    (gives_up_after_running, "commit-017"),
    (counts_wrongly, "honest-101"),
    (seals_something_else, "honest-101"),
    (refuses_by_abort, "hello-003"),
    (says_another_code, "talk-006"),
]


@pytest.mark.parametrize(
    ("defect", "case"), TEETH, ids=[f"{case}-{defect.__name__}" for defect, case in TEETH]
)
def test_a_defect_is_found(defect: Callable[[Patch], None], case: str, monkeypatch: Patch) -> None:
    """The same case passes without the defect: see the tests of the tables."""
    defect(monkeypatch)
    assert played(BY_ID[case]).wrong is not None


# ---- from a row to a case ----


def expected(stage: Stage, role: Role) -> Case:
    row = misbehaviour(role, "end-042 goes: is gone [CON-69]", None, None, ErrorCode.INTERNAL, stage=stage)
    return case_of(row)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("role", Role)
def test_one_side_runs_the_guest_whatever_the_stage(stage: Stage, role: Role) -> None:
    """[CON-62] [CON-63] [CON-64] [ONE-49]: nothing that a peer does makes both run."""
    case = expected(stage, role)
    assert case.role is role.other
    runs = case.expect.guests == {GuestState.RUNNING}
    before = stage is Stage.BEFORE
    assert runs == (before if case.role is Role.SOURCE else not before)
    if case.role is Role.SOURCE and stage is Stage.GRANTED:
        assert case.expect.outcomes == {Outcome.UNDECIDED}


def test_what_has_to_be_borne_completes() -> None:
    row = misbehaviour(Role.SOURCE, "end-042 nothing: does nothing [CON-6]", None, None)
    assert ends_of(row) == completed(Role.DESTINATION)
    assert sum(not row.codes for row in MISBEHAVIOURS) >= 8
