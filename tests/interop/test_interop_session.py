"""A run from beginning to end, with Sterna's endpoints and with shims that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from interop_support import implementation, report_of

from sterna.cli.output import Output
from sterna.observe.recording import Passed, RecordingReader
from sterna_interop.contract import Role
from sterna_interop.implementations import MINIMAL
from sterna_interop.report_html import write_html
from sterna_interop.results import CaseResult, Kind, Verdict
from sterna_interop.session import RunOptions, last_words, line_of, play

NAMES = ["sterna", "minimal"]


@pytest.mark.slow
def test_all_migrate_to_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[CON-57] Plain and over TLS, and one cut that leaves the source undecided."""
    run = play([], RunOptions(tmp_path, ("matrix-001", "matrix-022")), Output())
    assert {result.verdict for result in run.results} == {Verdict.PASS}, run.results
    seen = {(result.case, result.transport, result.source, result.destination) for result in run.results}
    pairs = [(source, destination) for source in NAMES for destination in NAMES]
    assert seen == {
        *(("contract-001", "plain", name, "kit") for name in NAMES),
        *(("matrix-001", "plain", *pair) for pair in pairs),
        *(("matrix-001", "tls", *pair) for pair in pairs),
        *(("matrix-022", "plain", *pair) for pair in pairs),
    }
    assert [peer.name for peer in run.peers] == NAMES
    assert 0 < run.musts.covered < run.musts.total
    assert run.started <= run.ended
    assert "14 of 14 done" in capsys.readouterr().err
    run.write_json(tmp_path)
    assert len(report_of(tmp_path)["results"]) == 14


@pytest.mark.slow
def test_who_does_not_know_the_contract_is_not_asked_further(tmp_path: Path) -> None:
    liar = implementation("")
    liar = type(liar)("liar", (liar.command[0], "-c", "raise SystemExit(0)"))
    run = play([liar], RunOptions(tmp_path, ("matrix-001",)), Output(json=True))
    probe = [result for result in run.results if result.case == "contract-001" and result.source == "liar"]
    assert [result.verdict for result in probe] == [Verdict.FAIL]
    rest = [result for result in run.results if "liar" in {result.source, result.destination}]
    assert {result.verdict for result in rest if result not in probe} == {Verdict.SKIP}
    assert all("liar: its shim does not answer" in result.detail for result in rest if result not in probe)
    assert run.musts.covered == 0, "what was not tried shows nothing"


@pytest.mark.slow
def test_vectors_are_asked_of_who_has_a_codec(tmp_path: Path) -> None:
    run = play([], RunOptions(tmp_path, ("ping/*",)), Output(json=True))
    assert {(result.kind, result.source, result.verdict) for result in run.results} == {
        (Kind.VECTOR, name, Verdict.PASS) for name in ("sterna", "minimal")
    }
    assert len(run.results) > 5
    assert run.musts.covered > 0


@pytest.mark.slow
def test_what_went_wrong_is_kept_with_its_recording(tmp_path: Path) -> None:
    """A pair that does not get on: what passed can be looked at afterwards."""
    silent = implementation("dial().recv(1000); say(outcome='rolled_back', guest='none', code='internal')")
    silent = replace(silent, roles=frozenset({Role.DESTINATION}))
    run = play([silent], RunOptions(tmp_path, ("matrix-001",)), Output(json=True))
    failed = [result for result in run.results if result.verdict is Verdict.FAIL]
    assert failed
    (plain,) = (one for one in failed if one.transport == "plain" and one.source == "minimal")
    recording = Path(plain.artifacts["recording"].removeprefix("sterna inspect "))
    with recording.open("rb") as file:
        assert any(isinstance(item, Passed) for item in RecordingReader(file))
    assert "destination result.json" in plain.artifacts
    assert not (tmp_path / "pki").exists()


BAD = {
    "crashes": ("dial(); os.abort()", Verdict.CRASH),
    "invents": ("dial(); sys.exit(42)", Verdict.CRASH),
    "fails": ("sys.exit(1)", Verdict.FAIL),
    "prints": ("sys.stdout.write('\\x1b[2J<script>' * 200000); dial()", Verdict.FAIL),
    "huge": ("open(result, 'w').truncate(1 << 40); dial()", Verdict.FAIL),
    "lies": ("dial(); say(outcome='completed', guest='running', memory='0' * 64)", Verdict.FAIL),
    "babbles": (
        "s = dial(); s.sendall(os.urandom(1 << 16)); say(outcome='moved', guest='none')",
        Verdict.FAIL,
    ),
    "knows nothing": ("sys.exit(89)", Verdict.UNSUPPORTED),
}


@pytest.mark.slow
def test_whatever_a_shim_does_is_a_verdict(tmp_path: Path) -> None:
    """The kit itself never fails, and is not made to say that something passed."""
    given = [implementation(code, name.replace(" ", "-")) for name, (code, _) in BAD.items()]
    run = play(given, RunOptions(tmp_path, ("hello-001", "seal-001")), Output(json=True))
    found = {(one.source, one.verdict) for one in run.results if one.case != "contract-001"}
    found |= {(one.destination, one.verdict) for one in run.results if one.case != "contract-001"}
    expected = {(name.replace(" ", "-"), verdict) for name, (_, verdict) in BAD.items()}
    assert {pair for pair in found if pair[0] != "kit"} == expected
    write_html(run, tmp_path)
    assert not run.summary.kit_errors


@pytest.mark.slow
def test_announced_failures_and_keeping(tmp_path: Path) -> None:
    failing = replace(implementation("sys.exit(1)"), expect_fail={"hello-*": "it is young"})
    passing = replace(MINIMAL, name="passing", module="", expect_fail={"hello-*": "so they say"})
    options = RunOptions(tmp_path, ("hello-001",), keep=True)
    run = play([failing, passing], options, Output(json=True))
    verdicts = {one.source + one.destination: one.verdict for one in run.results if one.case == "hello-001"}
    assert verdicts == {"kitmine": Verdict.XFAIL, "kitpassing": Verdict.XPASS}
    kept = {path.name for path in (tmp_path / "cases" / "hello-001-kit-passing-plain").iterdir()}
    assert kept == {"params.json", "result.json", "recording"}
    assert run.summary.unexpected == 1


def test_nothing_to_run(tmp_path: Path) -> None:
    assert not play([], RunOptions(tmp_path, ("nothing-*",)), Output()).results


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"expected": "this", "actual": "that"}, "expected this, got that"),
        ({"detail": "first\nlast"}, "last"),
        ({"code": "bad_magic"}, "bad_magic"),
    ],
)
def test_a_line(fields: dict[str, str], text: str) -> None:
    result = CaseResult(
        case="x-001",
        kind=Kind.MATRIX,
        source="a",
        destination="b",
        transport="tls",
        verdict=Verdict.FAIL,
        **fields,
    )
    assert line_of(result) == f"fail x-001 tls a to b: {text}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("first\nlast\n", ["  source stderr: last"]),
        ("Traceback\nValueError: 3\n", ["  source stderr: ValueError: 3"]),
        ("Error: boom\n    at x.js:1\n\nNode.js v20\n", ["  source stderr: Error: boom"]),
        ("\n", []),
    ],
)
def test_the_last_words_of_a_shim(text: str, said: list[str]) -> None:
    artifacts = {"source stdout": "1", "source stderr": text}
    result = CaseResult(
        case="x-001",
        kind=Kind.MATRIX,
        source="a",
        destination="b",
        verdict=Verdict.FAIL,
        artifacts=artifacts,
    )
    assert list(last_words(result)) == said
