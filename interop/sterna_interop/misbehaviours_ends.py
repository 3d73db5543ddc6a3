"""Peers that end, vanish or fall silent, at every frame that they owe.

Wherever that is, one side runs the guest in the end, or nobody does and both know: chapter 11's promise,
frame by frame. The numbers of the cases are those of the frames here, which never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sterna_interop import peer_acts as do
from sterna_interop.case import Severity
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import IMPATIENT_S, E, F, Misbehaviour, Stage, misbehaviour
from sterna_interop.peer_steps import Act, End, Place


@dataclass(frozen=True, slots=True)
class _Owed:
    """A frame, and how far the session has come for the endpoint that waits for it."""

    number: int
    frame: F
    stage: Stage
    where: str
    nth: int = 1


_FRAMES: Final = {
    Role.SOURCE: (
        _Owed(1, F.HELLO, Stage.BEFORE, "HELLO"),
        _Owed(2, F.GUEST, Stage.BEFORE, "GUEST"),
        _Owed(3, F.ROUND, Stage.BEFORE, "the first ROUND"),
        _Owed(4, F.PAGES, Stage.BEFORE, "PAGES"),
        _Owed(5, F.ROUND_END, Stage.BEFORE, "ROUND_END"),
        _Owed(6, F.ROUND, Stage.BEFORE, "the second ROUND", 2),
        _Owed(7, F.SWITCHOVER, Stage.BEFORE, "SWITCHOVER"),
        _Owed(8, F.ROUND, Stage.BEFORE, "the blackout's ROUND", 3),
        _Owed(9, F.ROUND_END, Stage.BEFORE, "the blackout's ROUND_END", 3),
        _Owed(10, F.STATE, Stage.BEFORE, "STATE", 2),
        _Owed(11, F.SEAL, Stage.BEFORE, "SEAL"),
        _Owed(12, F.HANDOVER, Stage.BEFORE, "HANDOVER"),
        _Owed(13, F.RELEASE, Stage.AFTER, "RELEASE"),
        _Owed(14, F.BYE, Stage.DONE, "BYE"),
    ),
    Role.DESTINATION: (
        _Owed(101, F.WELCOME, Stage.BEFORE, "WELCOME"),
        _Owed(102, F.ACCEPT, Stage.BEFORE, "ACCEPT"),
        _Owed(103, F.READY, Stage.BEFORE, "READY"),
        _Owed(104, F.LOADED, Stage.BEFORE, "LOADED"),
        _Owed(105, F.RUNNING, Stage.GRANTED, "RUNNING"),
        _Owed(106, F.COMPLETE, Stage.AFTER, "COMPLETE"),
        _Owed(107, F.BYE, Stage.DONE, "BYE"),
    ),
}

_CUT: Final = do.part(0.5, End.PROPER)
_GONE: Final = do.instead(End.RESET)
_HALF_GONE: Final = do.part(0.5, End.RESET)
_SILENT: Final = do.instead(End.SILENCE)
_HALF_SILENT: Final = do.part(0.5, End.SILENCE)


def of_ends(role: Role) -> tuple[Misbehaviour, ...]:
    """All rows of a role."""
    return tuple(row for owed in _FRAMES[role] for row in _rows(role, owed))


def _rows(role: Role, owed: _Owed) -> tuple[Misbehaviour, ...]:
    where, late, lost = owed.where, (E.PHASE_DEADLINE, E.PEER_SILENT), E.CONNECTION_LOST
    return (
        _row(role, owed, "cut", f"ends properly inside {where} [FRM-10 CON-69]", _CUT, E.TRUNCATED, lost),
        _row(role, owed, "gone", f"is gone where {where} is due [CON-69]", _GONE, lost),
        _row(
            *(role, owed, "torn", f"is gone inside {where} [CON-69 FRM-10]"),
            *(_HALF_GONE, lost, E.TRUNCATED),
        ),
        _row(role, owed, "quiet", f"falls silent where {where} is due [CON-74 CON-75]", _SILENT, *late),
        _row(role, owed, "stuck", f"falls silent inside {where} [CON-74 CON-75]", _HALF_SILENT, *late),
    )


def _row(role: Role, owed: _Owed, area: str, what: str, act: Act, *codes: E) -> Misbehaviour:
    name = owed.frame.name.lower().replace("_", "-")
    head = f"{area}-{owed.number:03} {area}-at-{name}-{owed.nth}: {what}"
    more: dict[str, object] = {"stage": owed.stage, "severity": Severity.SPLIT_BRAIN, "mute": True}
    if area in {"quiet", "stuck"}:
        more["deadline_s"] = IMPATIENT_S
    return misbehaviour(role, head, Place(owed.frame, owed.nth), act, *codes, **more)
