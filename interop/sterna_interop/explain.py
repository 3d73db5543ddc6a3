"""What a case is about, in words: for `sterna interop explain`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from sterna_interop import plan, vectors
from sterna_interop.case import Case, Ends, Wire
from sterna_interop.cases import CASES
from sterna_interop.cases_matrix import SCENARIOS
from sterna_interop.matrix import Scenario
from sterna_interop.report import CaseInfo
from sterna_interop.resources import clauses

SHOWN: Final = 600  # characters of a vector's bytes, context and value
FOLLOWS: Final = "Pages may follow the guest, and come early."

_WIRES = {
    Wire.PLAIN: "plaintext",
    Wire.TLS: "mutual TLS",
    Wire.NAKED: "the endpoint is told to speak TLS, the kit speaks none",
    Wire.STRANGER: "TLS; the kit shows another identity than the endpoint expects",
    Wire.OTHER_ALPN: "TLS; the kit does not offer the protocol's ALPN id",
}


def explain(info: CaseInfo) -> Iterator[str]:
    """Lines for people: what happens, what is right, and the clauses."""
    yield f"{info.id}: {info.title}"
    yield f"  {info.level}, severity {info.severity}"
    yield ""
    case = next((case for case in CASES if case.id == info.id), None)
    scenario = next((scenario for scenario in SCENARIOS if scenario.id == info.id), None)
    if case is not None:
        yield from _endpoint(case)
    elif scenario is not None:
        yield from _matrix(scenario)
    elif info.kind == "vector" and info.id != vectors.PROBE:
        yield from _vector(info.id)
    for clause in info.clauses:
        yield ""
        yield f"[{clause}] {clauses()[clause].text}"


def _endpoint(case: Case) -> Iterator[str]:
    yield f"The endpoint under test is the {case.role}, the kit plays the {case.role.other}."
    yield f"Between them: {_WIRES[case.wire]}."
    names = ("round", "rounds", "times", "code")
    order = [f"{name} {value}" for name in names if (value := getattr(case.order, name))]
    yield f"The shim is told: {' '.join([case.order.do, *order])}."
    if case.unverified:
        yield "It is told to go without page hashes."
    if case.streams:
        yield f"Data connections: {case.streams}."
    if case.follows:
        yield FOLLOWS
    if case.limits:
        yield f"Its limits: {', '.join(f'{name} {value}' for name, value in case.limits.items())}."
    yield f"Right is {_ends(case.expect)}; all within {case.timeout_s:g} s."
    for ends, reason in case.tolerated:
        yield f"Tolerated is {_ends(ends)}: {reason}"


def _ends(ends: Ends) -> str:
    parts = []
    for name, allowed in (("outcome", ends.outcomes), ("guest", ends.guests), ("code", ends.codes)):
        if allowed:
            parts.append(f"{name} {' or '.join(sorted(one or 'none' for one in allowed))}")
    if ends.by_peer is not None:
        parts.append("named by the kit" if ends.by_peer else "named by the endpoint itself")
    return ", ".join(parts) or "any end"


def _matrix(scenario: Scenario) -> Iterator[str]:
    yield f"Any source and any destination, through the relay: {' and '.join(scenario.transports)}."
    if scenario.streams:
        yield f"Data connections: {scenario.streams}."
    if scenario.follows:
        yield FOLLOWS
    ends = sorted(f"{source} / {destination}" for source, destination in scenario.ends)
    yield f"Right is {' or '.join(ends)} (source / destination); all within {scenario.timeout_s:g} s."
    if scenario.codes:
        yield f"One side at least ends with {' or '.join(sorted(scenario.codes))}."


def _vector(id_: str) -> Iterator[str]:
    vector = next(vector for vector in vectors.load() if vector.id == id_)
    group, test = vector.group, vector.test
    yield f"Bytes ({group['kind']}): {_short(str(test['hex']))}"
    if context := group.get("context"):
        yield f"The receiver knows: {_short(json.dumps(context))}"
    if "error" in test:
        yield f"Right is {test['result']}, {test['error']}."
    else:
        yield f"Right is {test['result']}: {_short(json.dumps(test['value']))}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def find(id_: str) -> CaseInfo | None:
    """The case with this id."""
    return next((info for info in plan.catalogue() if info.id == id_), None)
