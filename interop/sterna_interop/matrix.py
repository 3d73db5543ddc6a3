"""Two endpoints, one as source and one as destination, with the relay between them: what is right and wrong.

The judge believes neither side about memory: it computes the image from the guest's numbers. What it
holds every pair to, whatever the scenario did to their connection:

- the guest does not run on both sides;
- it runs on one of them, unless a side says that it is undecided;
- where it runs at the destination, memory and state are the whole image of the pause;
- where it runs at the source, memory is what the script had written at some point;
- what each side says of the session and of its guest fits together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sterna_interop.case import Severity, Unexpected
from sterna_interop.contract import GuestState, Order, Outcome, Report, Role
from sterna_interop.faults import Clean, Fault, MakeFault, OfIndex, clean
from sterna_interop.guest import GuestSpec, state_hash


class Transport(StrEnum):
    """What the endpoints speak through the relay."""

    PLAIN = "plain"
    TLS = "tls"


BOTH: Final = (Transport.PLAIN, Transport.TLS)
PLAIN: Final = (Transport.PLAIN,)
TLS: Final = (Transport.TLS,)

Ends = frozenset[tuple[Outcome, Outcome]]
COMPLETED: Final[Ends] = frozenset({(Outcome.COMPLETED, Outcome.COMPLETED)})
ROLLED_BACK: Final[Ends] = frozenset({(Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens to the connection, and which ends are right.

    Attributes:
        fault: makes the relay's fault from the seed of the run.
        ends: outcomes of source and destination.
        codes: at least one side ends with one of these; empty if no code is asked for.
        orders, limits: what source and destination are told.
        guest: its seed is the run's.
        deadline_s: what both endpoints are told about waiting; 0: as usual.
        severity: what it would cost if a pair got this wrong.
        streams: data connections that both are told of.
        data_fault: that of one of them: its number in the order in which they come, from 1, and what makes
            the fault. Where pages follow the guest there is one, or none.
        follows: whether both are told that pages may follow the guest, and come early.
        chooses: whether both are told that the source decides that.
        demand_fault: what makes the fault of the demand connection, which is none of those.
    """

    id: str
    title: str
    clauses: tuple[str, ...]
    transports: Sequence[Transport]
    fault: MakeFault
    ends: Ends
    codes: frozenset[str] = field(default_factory=frozenset)
    orders: Mapping[Role, Order] = field(default_factory=dict)
    limits: Mapping[Role, Mapping[str, int]] = field(default_factory=dict)
    guest: GuestSpec = field(default_factory=GuestSpec)
    epoch: int = 7
    deadline_s: float = 0.0
    timeout_s: float = 20.0
    severity: Severity = Severity.DATA_LOSS
    streams: int = 0
    data_fault: tuple[int, MakeFault] | None = None
    follows: bool = False
    chooses: bool = False
    demand_fault: MakeFault = clean

    def fault_on(self, number: int, seed: int) -> Fault:
        """What happens to a connection; number 0 is the control connection.

        Where pages follow the guest every other one is an `OfIndex`.
        """
        if not number:
            return self.fault(seed)
        if self.follows:
            groups = clean if self.data_fault is None else self.data_fault[1]
            return OfIndex(self.streams, self.demand_fault(seed), groups(seed))
        if self.data_fault is None or self.data_fault[0] != number:
            return Clean()
        return self.data_fault[1](seed)


def judge(scenario: Scenario, guest: GuestSpec, source: Report, destination: Report) -> Unexpected | None:
    """What is wrong, the gravest first; None if nothing is."""
    return (
        _one_runner(source, destination)
        or judge_side(Role.SOURCE, guest, source)
        or judge_side(Role.DESTINATION, guest, destination, memory=not _may_lack(scenario, destination))
        or _digests(source, destination)
        or _scenario(scenario, source, destination)
    )


def judge_side(role: Role, guest: GuestSpec, report: Report, *, memory: bool = True) -> Unexpected | None:
    """What is wrong with what one side says, without regard to the other."""
    return _coherent(role, report) or (_memory(role, guest, report) if memory else None)


def _may_lack(scenario: Scenario, destination: Report) -> bool:
    """Whether its guest may wait for pages that nobody sends any more [CON-64]."""
    return scenario.follows and destination.outcome is Outcome.MOVED


def _one_runner(source: Report, destination: Report) -> Unexpected | None:
    running = [report for report in (source, destination) if report.guest is GuestState.RUNNING]
    if len(running) == 2:
        return Unexpected("the guest to run on one side", "it runs on both")
    if not running and Outcome.UNDECIDED not in {source.outcome, destination.outcome}:
        return Unexpected("the guest to run on one side, or to be undecided", "it runs nowhere")
    return None


_GUESTS: Final = {
    Role.SOURCE: {
        Outcome.COMPLETED: GuestState.NONE,
        Outcome.MOVED: GuestState.NONE,
        Outcome.ROLLED_BACK: GuestState.RUNNING,
        Outcome.UNDECIDED: GuestState.PAUSED,
        Outcome.GUEST_FAILED: GuestState.PAUSED,
    },
    Role.DESTINATION: {
        Outcome.COMPLETED: GuestState.RUNNING,
        Outcome.MOVED: GuestState.RUNNING,
        Outcome.ROLLED_BACK: GuestState.NONE,
        Outcome.UNDECIDED: GuestState.PAUSED,
        Outcome.ANSWERED: GuestState.NONE,
    },
}


def _coherent(role: Role, report: Report) -> Unexpected | None:
    expected = _GUESTS[role].get(report.outcome)
    if expected is None:
        return Unexpected(f"an outcome that a {role} can have", report.outcome)
    if report.guest is not expected:
        return Unexpected(
            f"{role}: the guest {expected} after {report.outcome}", f"the guest is {report.guest}"
        )
    if (report.outcome in {Outcome.COMPLETED, Outcome.ANSWERED}) != (report.code is None):
        return Unexpected(
            f"{role}: an error code exactly if not completed or answered",
            f"{report.outcome}, code {report.code}",
        )
    return None


@functools.lru_cache(maxsize=64)
def images(guest: GuestSpec) -> tuple[str, ...]:
    """The hash of the memory after each entry of the script, that of no entry first."""
    return tuple(guest.memory_hash(entries) for entries in range(len(guest.writes) + 1))


def _memory(role: Role, guest: GuestSpec, report: Report) -> Unexpected | None:
    if report.guest is not GuestState.RUNNING:
        return None
    if role is Role.SOURCE:
        if report.memory not in images(guest):
            return Unexpected("source: a memory that the script has written", "another memory")
        return None
    if report.memory != images(guest)[-1]:
        known = {image: number for number, image in enumerate(images(guest))}
        number = known.get(report.memory or "")
        what = "another memory" if number is None else f"the memory after entry {number} of the script"
        return Unexpected("destination: the memory of the pause", what)
    if report.state != state_hash(guest.state):
        return Unexpected("destination: the state of the pause", "another state")
    return None


def _digests(source: Report, destination: Report) -> Unexpected | None:
    whole = destination.guest is GuestState.RUNNING and source.digest and destination.digest
    if whole and source.digest != destination.digest:
        return Unexpected(f"the digest {source.digest} on both sides", f"{destination.digest} at one")
    return None


def _scenario(scenario: Scenario, source: Report, destination: Report) -> Unexpected | None:
    if (source.outcome, destination.outcome) not in scenario.ends:
        wanted = " or ".join(sorted(f"{one} / {other}" for one, other in scenario.ends))
        return Unexpected(f"{wanted} (source / destination)", f"{source.outcome} / {destination.outcome}")
    codes = {source.code or "", destination.code or ""}
    if scenario.codes and not codes & scenario.codes:
        return Unexpected(
            f"one side to end with {' or '.join(sorted(scenario.codes))}",
            f"{source.code or 'no code'} / {destination.code or 'no code'}",
        )
    return None
