"""`sterna interop` on the command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from interop_support import BEGIN

from sterna.cli.main import main
from sterna_interop import session

SHIM = "import sys; sys.exit(89)"
GOOD = BEGIN + "sys.exit(89)"


def interop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    status = main(["interop", *arguments, "--json"])
    out = capsys.readouterr().out
    return status, json.loads(out) if out else {}


def peer(directory: Path, code: str) -> str:
    path = directory / "shim.py"
    path.write_text(code)
    return f"mine=/usr/bin/env python3 -I {path}"


@pytest.mark.slow
def test_the_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["run", "--only", "matrix-00[1]", "--out", str(tmp_path / "out")]
    status, summary = interop(capsys, *arguments)
    assert status == 0
    musts = summary.pop("musts")
    assert musts["total"] > musts["covered"] + musts["excused"]
    assert summary == {
        "schema": 1,
        "cases": {"endpoint": 2, "matrix": 8, "vector": 0},
        "as_expected": 10,
        "unexpected": 0,
        "unsupported": 0,
        "peers": ["sterna", "minimal"],
        "report": str(tmp_path / "out" / "report.json"),
    }
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["report.html", "report.json"]


@pytest.mark.slow
def test_a_peer_that_supports_nothing_has_passed_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, summary = interop(capsys, "run", "--only", "honest-001", "--peer", peer(tmp_path, SHIM))
    assert (status, summary["unsupported"], summary["unexpected"]) == (4, 1, 0)


@pytest.mark.slow
def test_something_unexpected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = peer(tmp_path, "raise SystemExit(0)")
    status, summary = interop(capsys, "run", "--only", "matrix-004", "--peer", wrong)
    assert (status, summary["unexpected"]) == (1, 1)
    assert summary["peers"] == ["mine", "sterna", "minimal"]


@pytest.mark.slow
def test_what_to_do_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = peer(tmp_path, "raise SystemExit('cannot do that')")
    assert main(["interop", "run", "--only", "honest-001", "--peer", wrong]) == 1
    said = capsys.readouterr().err
    assert "source stderr: cannot do that" in said
    assert "skipped: mine: its shim does not answer an unknown order with exit code 89" in said
    assert "sterna interop explain contract-001" in said


def test_nothing_ran(capsys: pytest.CaptureFixture[str]) -> None:
    status, summary = interop(capsys, "run", "--only", "nothing-*")
    assert (status, summary["as_expected"]) == (4, 0)


@pytest.mark.parametrize(
    ("only", "told"),
    [
        (["--only", "vectors"], "no case's id matches 'vectors'; `sterna interop list --vectors`"),
        (["--only", "matrix-001"], "Vectors need a `codec`, other cases a `command`"),
    ],
)
def test_why_nothing_ran(
    only: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A peer that has only a codec is asked about vectors and started for nothing else."""
    peers = tmp_path / "peers.toml"
    peers.write_text('[peers.mine]\ncodec = ["/nonexistent"]\n')
    out = str(tmp_path / "out")
    assert main(["interop", "run", "--peers", str(peers), "--out", out, *only]) == 4
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--jobs", "0"],
        ["run", "--peer", "nothing"],
        ["run", "--peer", "a=x", "--peer", "a=y"],
        ["run", "--peers", "/nonexistent"],
        ["run", "--out", "/dev/null/x"],
        ["run", "--peer", "a=/nonexistent/shim", "--only", "matrix-001"],
        ["run", "--wrong"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = interop(capsys, *arguments)
    assert status == 2
    assert answer["error"]["code"] == "usage"


@pytest.mark.slow
def test_trouble_of_the_kit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "probe_cell", _broken)
    assert interop(capsys, "run", "--only", "matrix-001", "--peer", "a=true")[0] == 3


def _broken(settings: object, implementation: object) -> object:
    from sterna_interop.results import CaseResult, Kind, Verdict
    from sterna_interop.runner import Cell

    blank = CaseResult(
        case="contract-001", kind=Kind.ENDPOINT, source="a", destination="kit", verdict=Verdict.SKIP
    )

    async def run() -> CaseResult:
        raise RuntimeError

    return Cell(blank, run)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = interop(capsys, "list", "--only", "matrix-*")
    assert status == 0
    assert {case["kind"] for case in answer["cases"]} == {"matrix"}
    assert interop(capsys, "list", "--only", "nothing-*")[0] == 4
    everything = interop(capsys, "list")[1]["cases"]
    assert {case["kind"] for case in everything} == {"matrix", "endpoint"}
    assert len(interop(capsys, "list", "--vectors")[1]["cases"]) > len(everything) + 1000


def test_text_for_people_can_be_piped(capsys: pytest.CaptureFixture[str]) -> None:
    """One case is one line, whatever the width of the terminal."""
    assert main(["interop", "list", "--only", "matrix-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("matrix-") for line in lines)
    assert any(line.startswith("matrix-022  matrix       HANDOVER is lost") for line in lines)
    assert main(["interop", "explain", "matrix-022"]) == 0
    assert capsys.readouterr().out.startswith("matrix-022: HANDOVER is lost")


def test_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = interop(capsys, "explain", "matrix-022")
    assert status == 0
    assert answer["id"] == "matrix-022"
    assert "HANDOVER is lost" in answer["text"]
    status, answer = interop(capsys, "explain", "matrix-999")
    assert (status, "there is no case" in answer["error"]["text"]) == (2, True)


def test_what_is_somebody_elses_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "thesis.tex").touch()
    status, answer = interop(capsys, "run", "--only", "nothing-*", "--out", str(tmp_path))
    assert (status, "thesis.tex" in answer["error"]["text"]) == (2, True)
    (tmp_path / "thesis.tex").unlink()
    status, answer = interop(capsys, "run", "--only", "nothing-*", "--out", str(tmp_path))
    # No report is beside it, so it may be anybody's.
    assert (status, "has 'cases' in it" in answer["error"]["text"]) == (2, True)
    (tmp_path / "report.json").touch()
    assert interop(capsys, "run", "--only", "nothing-*", "--out", str(tmp_path))[0] == 4
    assert not (tmp_path / "cases").exists()
