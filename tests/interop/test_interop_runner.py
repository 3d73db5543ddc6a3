"""Cells run so many at a time, in order, and nothing that goes wrong in one touches another."""

from __future__ import annotations

from pathlib import Path

import trio

from sterna_interop.case import Unexpected
from sterna_interop.contract import GuestState, Outcome, Report, Role
from sterna_interop.process import Ended
from sterna_interop.results import CaseResult, Kind, Verdict
from sterna_interop.runner import (
    RECORDING,
    WAITING_EACH,
    WAITS_AFTER_S,
    Cell,
    artifacts,
    judged,
    not_judged,
    run_cells,
)

BLANK = CaseResult(case="x-001", kind=Kind.MATRIX, source="a", destination="b", verdict=Verdict.SKIP)
REPORT = Report(outcome=Outcome.COMPLETED, guest=GuestState.NONE)
GOOD = Ended(0, "out", "", REPORT)


async def test_results_come_in_order_and_a_bug_is_the_kits(autojump_clock: trio.testing.MockClock) -> None:
    at_once, most = 0, 0

    def cell(seconds: float) -> Cell:
        async def run() -> CaseResult:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await trio.sleep(seconds)
            at_once -= 1
            if not seconds:
                raise RuntimeError("a bug")
            return judged(BLANK, None)

        return Cell(BLANK, run)

    seen: list[Verdict] = []
    cells = [cell(seconds) for seconds in (0.3, 0.1, 0, 0.2)]
    results = await run_cells(cells, jobs=2, on_result=lambda result: seen.append(result.verdict))
    verdicts = [result.verdict for result in results]
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.KIT_ERROR, Verdict.PASS]
    assert "RuntimeError: a bug" in results[2].detail
    assert (most, len(seen)) == (2, 4)


async def test_who_waits_for_long_lets_others_run(autojump_clock: trio.testing.MockClock) -> None:
    """But not without end."""
    running: set[int] = set()
    began: list[float] = []

    def cell(number: int) -> Cell:
        async def run() -> CaseResult:
            running.add(number)
            began.append(trio.current_time())
            assert len(running) <= 2 + 2 * WAITING_EACH
            await trio.sleep(10)
            running.remove(number)
            return BLANK

        return Cell(BLANK, run)

    start = trio.current_time()
    await run_cells([cell(number) for number in range(10)], jobs=2, on_result=lambda _: None)
    assert [round(time - start, 3) for time in began] == [
        *(0, 0, WAITS_AFTER_S, WAITS_AFTER_S, 2 * WAITS_AFTER_S, 2 * WAITS_AFTER_S),
        *(10, 10, 10 + WAITS_AFTER_S, 10 + WAITS_AFTER_S),
    ]


def test_verdicts_of_what_is_left() -> None:
    hang = Ended(None, "", "", timeout_s=3)
    cases = {
        Verdict.UNSUPPORTED: {Role.SOURCE: hang, Role.DESTINATION: Ended(89, "", "")},
        Verdict.CRASH: {Role.SOURCE: Ended(-11, "", ""), Role.DESTINATION: GOOD},
        Verdict.FAIL: {Role.SOURCE: GOOD, Role.DESTINATION: hang},
    }
    for verdict, sides in cases.items():
        result = not_judged(BLANK, sides)
        assert result is not None
        assert result.verdict is verdict
    assert not_judged(BLANK, {Role.SOURCE: GOOD, Role.DESTINATION: GOOD}) is None


def test_a_judgement() -> None:
    assert judged(BLANK, None).verdict is Verdict.PASS
    failed = judged(BLANK, Unexpected("this", "that"))
    assert (failed.verdict, failed.expected, failed.actual) == (Verdict.FAIL, "this", "that")


def test_what_is_kept(tmp_path: Path) -> None:
    sides = {Role.SOURCE: GOOD, Role.DESTINATION: Ended(1, "", "err")}
    assert RECORDING not in artifacts(sides, tmp_path)
    (tmp_path / RECORDING).touch()
    assert artifacts(sides, tmp_path) == {
        RECORDING: f"sterna inspect {tmp_path / RECORDING}",
        "source stdout": "out",
        "source result.json": REPORT.to_json(),
        "destination stderr": "err",
    }
