"""One cell with shims that are not Sterna: what they do to each other is told by whom it was done."""

from __future__ import annotations

from pathlib import Path

import pytest
from interop_support import implementation, settings

from sterna_interop.cases_matrix import SCENARIOS
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.matrix import Transport
from sterna_interop.pairs import matrix_cell
from sterna_interop.results import CaseResult, Verdict

# Two liars that never speak the protocol: they meet through the relay, and claim to have migrated.
LIAR = """
sock = dial()
sock.sendall(told["role"].encode()[:6])
met = b""
while len(met) < 6:
    met += sock.recv(6 - len(met))
assert met.decode() == {"source": "destin", "destination": "source"}[told["role"]], met
if told["role"] == "source":
    say(outcome="completed", guest="none")
else:
    say(outcome="completed", guest="running", epoch=told["epoch"] + 1, memory=MEMORY, state=STATE)
"""
KNOWN = f"MEMORY = {GuestSpec().memory_hash()!r}; STATE = {state_hash(GuestSpec().state)!r}\n"
GUESSED = "MEMORY = STATE = '0' * 64\n"

# Comes, shows its token, and is gone with a reset before the kit can answer.
RESET = """
sock = socket.create_connection((host, int(port)))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
sock.sendall(bytes.fromhex(told["token"]))
sock.close()
sys.exit(1)
"""


async def run(source: str, destination: str, directory: Path) -> CaseResult:
    mine, other = implementation(source, "mine"), implementation(destination, "other")
    cell = matrix_cell(settings(directory), SCENARIOS[0], Transport.PLAIN, mine, other)
    result = await cell.run()
    assert (result.case, result.source, result.destination) == ("matrix-001", "mine", "other")
    return result


async def test_they_meet_and_their_reports_are_compared(tmp_path: Path) -> None:
    assert (await run(KNOWN + LIAR, KNOWN + LIAR, tmp_path)).verdict is Verdict.PASS


async def test_memory_is_recomputed_and_not_believed(tmp_path: Path) -> None:
    result = await run(GUESSED + LIAR, GUESSED + LIAR, tmp_path)
    assert (result.verdict, result.actual) == (Verdict.FAIL, "another memory")


@pytest.mark.parametrize(
    ("source", "destination", "verdict", "detail"),
    [
        ("sys.exit(89)", "dial().recv(1); sys.exit(1)", Verdict.UNSUPPORTED, "the source does not know"),
        (RESET, "dial().recv(1); sys.exit(1)", Verdict.FAIL, "destination: the shim says"),
        ("dial(); sys.exit(3)", "dial().recv(1); sys.exit(1)", Verdict.CRASH, "source: exit code 3"),
        (
            "dial(); say(outcome='completed', guest='none')",
            "sys.exit(1)",
            Verdict.FAIL,
            "destination: the shim",
        ),
    ],
)
async def test_one_that_does_not_play(
    source: str, destination: str, verdict: Verdict, detail: str, tmp_path: Path
) -> None:
    result = await run(source, destination, tmp_path)
    assert result.verdict is verdict
    assert result.detail.startswith(detail)
