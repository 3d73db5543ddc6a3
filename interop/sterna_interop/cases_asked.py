"""Cases in which a destination is asked who owns a guest, by a HELLO of mode verdict.

No process of an endpoint outlives its case, so nobody here has had a session that could be asked about. What
a destination says of one that it does not know is `undecided`, whatever else it is asked [ONE-46]. One that
does not implement VERDICT refuses [CON-10], and one that cannot have its host's records, too [ONE-60].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sterna.registry import ErrorCode
from sterna.wire.records import NO_TOKEN
from sterna_interop.case import Case, Ends, Severity
from sterna_interop.contract import GuestState, Outcome, Role
from sterna_interop.misbehaviours import FUTURE_VERSION
from sterna_interop.peer_play import Script
from sterna_interop.peer_source import Question

_NONE: Final = frozenset({GuestState.NONE})
_TOKEN: Final = b"this is a token of thirty-two by"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question.

    Attributes:
        id, title, clauses: of the case.
        question: what is asked.
        codes: with which it must be refused; none: `undecided` is the answer, or the endpoint lacks VERDICT.
    """

    id: str
    title: str
    clauses: tuple[str, ...]
    question: Question
    codes: tuple[ErrorCode, ...] = ()
    plan: dict[str, object] = field(default_factory=dict)

    def case(self) -> Case:
        """The endpoint case."""
        codes = self.codes or (ErrorCode.UNSUPPORTED, ErrorCode.BUSY)
        names = frozenset(code.name.lower() for code in codes)
        told = Ends(frozenset({Outcome.ROLLED_BACK}), names, _NONE)
        answered = Ends(frozenset({Outcome.ROLLED_BACK, Outcome.ANSWERED}), names | {""}, _NONE)
        return Case(
            id=self.id,
            title=f"The source {self.title}",
            clauses=self.clauses,
            role=Role.DESTINATION,
            play=Script(
                role=Role.SOURCE,
                plan={"question": self.question, **self.plan},
                answers=frozenset(codes),
                optional=not self.codes,
            ),
            expect=told if self.codes else answered,
            severity=Severity.SPLIT_BRAIN,
        )


_SOME: Final = b"some session id."
_ASKED: Final = (
    Asked(
        id="verdict-001",
        title="asks about a session that never was",
        clauses=("ONE-46", "ONE-60", "CON-10"),
        question=Question(_SOME, _TOKEN),
    ),
    Asked(
        id="verdict-002",
        title="asks about a session without its token",
        clauses=("ONE-46", "ONE-60"),
        question=Question(_SOME, NO_TOKEN),
    ),
    Asked(
        id="verdict-003",
        title="asks about a guest that nobody has claimed",
        clauses=("ONE-15", "ONE-46"),
        question=Question(_SOME, _TOKEN),
        plan={"epoch": 0},
    ),
    Asked(
        id="verdict-004",
        title="asks, and offers no feature that anybody needs",
        clauses=("ONE-15", "ONE-46"),
        question=Question(_SOME, _TOKEN, features=()),
    ),
    Asked(
        id="verdict-005",
        title="asks, and goes on as if the session were open",
        clauses=("ONE-60", "CON-67"),
        question=Question(_SOME, _TOKEN, goes_on=True),
    ),
    Asked(
        id="verdict-006",
        title="asks about no session",
        clauses=("HEL-6",),
        question=Question(bytes(16), _TOKEN),
        codes=(ErrorCode.BAD_VALUE,),
    ),
    Asked(
        id="verdict-007",
        title="asks in a version of the future",
        clauses=("NEG-1", "VRS-3"),
        question=Question(_SOME, _TOKEN, versions=(FUTURE_VERSION,)),
        codes=(ErrorCode.NO_COMMON_VERSION,),
    ),
)
ASKED: Final[tuple[Case, ...]] = tuple(each.case() for each in _ASKED)
