"""One endpoint case of every misbehaviour."""

from __future__ import annotations

from typing import Final

from sterna.registry import ErrorCode
from sterna_interop.case import Case, Ends, completed
from sterna_interop.contract import GuestState, Outcome, Role
from sterna_interop.misbehaviours import Misbehaviour, Stage, of_any
from sterna_interop.misbehaviours_blackout import of_blackout
from sterna_interop.misbehaviours_destination import of_destination
from sterna_interop.misbehaviours_early import of_early
from sterna_interop.misbehaviours_ends import of_ends
from sterna_interop.misbehaviours_packed import of_packed
from sterna_interop.misbehaviours_pages import of_pages
from sterna_interop.misbehaviours_source import of_source
from sterna_interop.misbehaviours_streams import of_granted_streams, of_streams
from sterna_interop.misbehaviours_takeover import of_takeover
from sterna_interop.misbehaviours_unhashed import of_unhashed
from sterna_interop.peer_play import Script

MISBEHAVIOURS: Final = (
    *of_any(Role.SOURCE),
    *of_source(),
    *of_pages(),
    *of_packed(),
    *of_unhashed(Role.SOURCE),
    *of_blackout(),
    *of_ends(Role.SOURCE),
    *of_streams(),
    *of_early(Role.SOURCE),
    *of_any(Role.DESTINATION),
    *of_destination(),
    *of_takeover(),
    *of_ends(Role.DESTINATION),
    *of_granted_streams(),
    *of_unhashed(Role.DESTINATION),
    *of_early(Role.DESTINATION),
)

_KEPT: Final = frozenset({GuestState.PAUSED, GuestState.NONE})  # as the endpoint sees an image that it keeps


def case_of(row: Misbehaviour) -> Case:
    """The endpoint case that plays a misbehaviour."""
    tested = row.role.other
    script = Script(
        role=row.role,
        plan=row.plan,
        manner=row.manner,
        place=row.place,
        act=row.act,
        answers=frozenset() if row.by_peer else frozenset(row.codes),
        mute=row.mute or row.understood,
        silent=row.by_peer is True,
        refused=row.refused,
        named=row.named,
        optional=row.optional or row.legal,
        about=row.about,
        completes=not row.codes,
        lanes=row.lanes,
        early=row.early,
    )
    return Case(
        id=row.case,
        title=f"The {row.role} {row.what}",
        clauses=row.clauses,
        role=tested,
        play=script,
        expect=ends_of(row),
        tolerated=((completed(tested), "it has not come to where the peer misbehaves"),)
        if row.optional
        else (),
        severity=row.severity,
        order=row.order,
        guest=row.guest,
        limits=row.limits,
        deadline_s=row.deadline_s,
        wire=row.wire,
        streams=1 if row.early is not None else 0 if row.lanes is None else row.lanes.count,
        unverified=row.unverified,
        follows=row.early is not None,
        chooses=row.chooses,
    )


def ends_of(row: Misbehaviour) -> Ends:
    """What must have become of the endpoint and its guest."""
    tested = row.role.other
    if not row.codes:
        return completed(tested)
    outcome, guest = _FATE[tested, row.stage]
    codes = frozenset(code.name.lower() for code in row.codes)
    if row.understood:
        codes |= {ErrorCode.UNDECIDED.name.lower()}
    if row.legal:
        whole = completed(tested)
        return Ends(whole.outcomes | {outcome}, whole.codes | codes, whole.guests | guest, row.by_peer)
    if row.stage is Stage.DONE:
        return Ends(frozenset({outcome}), frozenset({"", *codes}), guest)
    return Ends(frozenset({outcome}), codes, guest, row.by_peer)


_FATE: Final = {
    (Role.SOURCE, Stage.BEFORE): (Outcome.ROLLED_BACK, frozenset({GuestState.RUNNING})),
    (Role.SOURCE, Stage.GRANTED): (Outcome.UNDECIDED, frozenset({GuestState.PAUSED})),
    (Role.SOURCE, Stage.AFTER): (Outcome.MOVED, _KEPT),
    (Role.SOURCE, Stage.DONE): (Outcome.COMPLETED, frozenset({GuestState.NONE})),
    (Role.DESTINATION, Stage.BEFORE): (Outcome.ROLLED_BACK, frozenset({GuestState.NONE})),
    (Role.DESTINATION, Stage.GRANTED): (Outcome.MOVED, frozenset({GuestState.RUNNING})),
    (Role.DESTINATION, Stage.AFTER): (Outcome.MOVED, frozenset({GuestState.RUNNING})),
    (Role.DESTINATION, Stage.DONE): (Outcome.COMPLETED, frozenset({GuestState.RUNNING})),
}
