"""One cell with shims that are not Sterna: what they do to each other is told by whom it was done."""

from __future__ import annotations

from pathlib import Path

import pytest
from interop_support import implementation, settings

from sterna.observe.recording import Passed, RecordingReader
from sterna_interop.cases_matrix import SCENARIOS
from sterna_interop.faults import clean
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.matrix import PLAIN, ROLLED_BACK, Scenario, Transport
from sterna_interop.pairs import NO_DEMAND, matrix_cell
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


# Each opens three connections, and says on the nth of them, if its peer is at the other end, what it should.
SEVERAL = """
for number in range(3):
    sock = dial()
    sock.sendall(bytes([number]))
    assert sock.recv(1) == bytes([number])
say(outcome="rolled_back", guest="running" if told["role"] == "source" else "none", code="connection_lost",
    memory=MEMORY if told["role"] == "source" else None)
"""


def scenario(streams: int = 2, **more: object) -> Scenario:
    return Scenario(
        id="matrix-999",
        title="a test",
        clauses=(),
        transports=PLAIN,
        fault=clean,
        ends=ROLLED_BACK,
        streams=streams,
        **more,  # type: ignore[arg-type]
    )


async def several(code: str, directory: Path, **more: object) -> CaseResult:
    mine, other = implementation(KNOWN + code, "mine"), implementation(KNOWN + code, "other")
    return await matrix_cell(settings(directory), scenario(**more), Transport.PLAIN, mine, other).run()


async def test_connections_meet_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    result = await several(SEVERAL, tmp_path)
    assert result.verdict is Verdict.PASS, result
    with (tmp_path / "cases" / "matrix-999-mine-other-plain" / "recording").open("rb") as file:
        assert len({each.connection for each in RecordingReader(file) if isinstance(each, Passed)}) == 3


async def test_who_makes_no_data_connection_has_not_done_what_it_was_told(tmp_path: Path) -> None:
    result = await several(SEVERAL.replace("range(3)", "range(1)"), tmp_path)
    assert (result.verdict, result.expected) == (Verdict.FAIL, "data connections")


async def test_who_makes_no_demand_connection_may(tmp_path: Path) -> None:
    assert (await several(SEVERAL, tmp_path / "2", streams=1, follows=True)).verdict is Verdict.PASS
    result = await several(SEVERAL, tmp_path / "3", streams=2, follows=True)
    assert (result.verdict, result.detail) == (Verdict.UNSUPPORTED, NO_DEMAND)


async def test_what_a_shim_puts_in_the_recording_s_place_is_its_failure(tmp_path: Path) -> None:
    in_the_way = "os.mkdir(os.path.join(arguments['--out'], '..', 'recording'));" + LIAR
    result = await run(in_the_way, LIAR.replace("dial()", "dial()", 1), tmp_path)
    assert result.verdict is Verdict.FAIL
    assert result.expected == "nothing of a shim's named recording"


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
