"""The demo around its migration: what it is asked for, what it leaves behind, how it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_support import only_object

from sterna.cli import demo as module
from sterna.cli import demo_guest
from sterna.cli.demo import _make_pki, _security, _tls
from sterna.cli.demo_run import DemoRun, Wishes
from sterna.cli.main import main
from sterna.errors import ConfigError, GuestError
from sterna.host.peers import Direction, PeerList
from sterna.linux.errors import CapabilityMissing
from sterna.registry import ErrorCode

MIB = 1 << 20
GOOD = DemoRun(
    guest="process",
    tracker="compare",
    hot_bytes=MIB,
    source={"outcome": "completed", "digest": "d", "seconds_blackout": 0.01, "tls": None, "rounds": []},
    destination={"digest": "d"},
    write_rate_bytes_s=1,
    dirty_rate_bytes_s=1,
    blackout_guest_s=0.01,
    writes_before=1,
    audit={"pages_checked": 256, "errors": 0, "writes": 2},
    processes={},
)


class Stage:
    """Stands for both kinds of demo.

    Attributes:
        acts: what a run does; gives the run, or raises.
        wishes: of the last run.
        kinds: of all runs.
    """

    def __init__(self) -> None:
        self.acts: Callable[[], DemoRun] = lambda: GOOD
        self.wishes: Wishes | None = None
        self.kinds: list[str] = []
        self.directories: list[Path] = []

    def kind(self, name: str) -> Callable[..., object]:
        async def run() -> DemoRun:
            return self.acts()

        def make(wishes: Wishes, *arguments: object) -> object:
            self.wishes = wishes
            self.kinds.append(name)
            self.directories += [one for one in arguments if isinstance(one, Path)]
            return SimpleNamespace(run=run)

        return make


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    stage = Stage()
    for name, kind in (("ProcessDemo", "process"), ("SimulatedDemo", "simulated")):
        monkeypatch.setattr(module, name, stage.kind(kind))
    monkeypatch.setattr(demo_guest, "try_machine", no_machine)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return stage


def no_machine() -> bool:
    raise CapabilityMissing("kvm", "no such file", "load it")


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").iterdir())


def test_a_good_run(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--memory", "1MiB", "--json"]) == 0
    out, err = capsys.readouterr()
    assert only_object(out)["outcome"] == "completed"
    why, start = err.splitlines()
    assert why.startswith(
        "A process moves, because no virtual machine runs here: no such file; its writes are"
    )
    assert why.removesuffix(".").endswith(only_object(out)["guest_reason"])
    assert start == "A guest with 1 MiB of memory starts, and runs for a second before it moves."
    assert stage.kinds == ["process"]
    assert stage.wishes is not None
    assert stage.wishes.hot_bytes == MIB  # of a guest that is smaller than the usual hot set
    assert stage.directories[0].parent == tmp_path / "tmp"
    assert left(tmp_path) == []


@pytest.mark.parametrize("options", [[], ["--heads"]])
def test_whether_whole_pages_are_written(
    options: list[str], stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--memory", "1MiB", "--json", *options]) == 0
    assert stage.wishes is not None
    assert only_object(capsys.readouterr().out)["heads_only"] is stage.wishes.heads is bool(options)
    assert stage.kinds == ["process"]


def test_people_get_a_report_and_no_data(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--memory", "1MiB", "--guest", "simulated", "--insecure"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "no TLS" in err
    assert err.endswith("The guest has moved, whole, and runs on.\n")
    assert stage.kinds == ["simulated"]


def test_a_run_with_a_flaw_is_said_in_full_and_fails(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.acts = lambda: replace(GOOD, destination={"digest": "other"})
    assert main(["demo", "--memory", "1MiB", "--json"]) == 1
    assert only_object(capsys.readouterr().out)["digest"]["equal"] is False


def fail(error: BaseException) -> Callable[[], DemoRun]:
    def act() -> DemoRun:
        raise error

    return act


@pytest.mark.parametrize(
    "end",
    [
        (GuestError("the source holder has ended", ErrorCode.GUEST_FAILED), "guest_failed", 6),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError(), "internal", 70),
        (ConfigError("TMPDIR"), "usage", 2),
    ],
)
def test_however_it_ends_it_leaves_nothing_behind(
    end: tuple[BaseException, str, int],
    stage: Stage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error, code, expected = end
    stage.acts = fail(error)
    assert main(["demo", "--memory", "1MiB", "--json"]) == expected
    assert only_object(capsys.readouterr().out)["error"]["code"] == code
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--memory", "1000TiB"], "2 times 1000 TiB is more than"),
        (["--memory", "1000TiB", "--guest", "simulated"], "2 times 1000 TiB is more than"),
        (["--memory", "1000TiB", "--evidence", "{}/evidence"], "3 times 1000 TiB is more than"),
        (["--memory", "4097B"], "whole pages"),
        (["--memory", "0B"], "at least 128KiB"),
        (["--memory", "1"], "has no unit"),
        (["--dirty-rate", "0"], "write for example 50MiB/s"),
        (["--dirty-rate", "50MiB"], "write for example 50MiB/s"),
        (["--bandwidth", "0B/s"], "64KiB/s is the least"),
        (["--downtime", "2h"], "the units are"),
        (["--downtime", "500us"], "it is from 1ms to 60min"),
        (["--guest", "virtual"], "virtual"),
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["--evidence", "/proc/nothing"], "cannot make the directory /proc/nothing"),
        (["--record", "/proc/nothing"], "cannot write /proc/nothing"),
        (["--room", "--guest", "simulated"], "--room needs --guest process"),
        (["--heads", "--guest", "kvm"], "--guest kvm: --heads is not for virtual machines"),
        (["--store", "{}/leases"], "/leases: mount it, or make one with `sterna lease init "),
    ],
)
def test_wrong_wishes_are_usage_errors(
    arguments: list[str],
    complaint: str,
    stage: Stage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", *(one.format(tmp_path) for one in arguments), "--json"]) == 2
    out, err = capsys.readouterr()
    error = only_object(out)["error"]
    assert error["code"] == "usage"
    assert complaint in error["text"]
    assert "Traceback" not in err
    assert stage.kinds == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert left(tmp_path) == []


# ---- evidence ----


def test_evidence_of_an_earlier_run_is_replaced_and_other_files_are_not(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is found afterwards is this run's, or it is not there."""
    directory, precious = tmp_path / "evidence", tmp_path / "precious"
    directory.mkdir()
    precious.write_text("precious")
    for name in ("source.img", "journal.ndjson", "notes.txt"):
        (directory / name).write_text("earlier")
    (directory / "destination.img").symlink_to(precious)
    assert main(["demo", "--memory", "1MiB", "--evidence", str(directory), "--json"]) == 0
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in directory.iterdir()) == ["journal.ndjson", "notes.txt"]
    assert (directory / "journal.ndjson").read_text() == ""
    assert (directory / "notes.txt").read_text() == "earlier"
    assert "every secret" in capsys.readouterr().err


def test_evidence_that_cannot_be_replaced_is_a_usage_error(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evidence" / "source.img").mkdir(parents=True)
    arguments = ["--memory", "1MiB", "--evidence", str(tmp_path / "evidence"), "--json"]
    assert main(["demo", *arguments]) == 2
    assert "cannot replace" in only_object(capsys.readouterr().out)["error"]["text"]


# ---- how it is secured ----


def test_the_throw_away_authority_lets_each_do_its_part_alone(tmp_path: Path) -> None:
    pki = _make_pki(tmp_path)
    peers = PeerList.load(tmp_path / "peers.toml")
    assert peers.rules["source"].allows(Direction.SEND, bytes(16), "process")
    assert not peers.rules["source"].allows(Direction.RECEIVE, bytes(16), "process")
    assert peers.rules["destination"].allows(Direction.RECEIVE, bytes(16), "process")
    assert not peers.rules["destination"].allows(Direction.SEND, bytes(16), "process")
    configs = _tls(pki)
    assert configs is not None
    for name, config in zip(("source", "destination"), configs, strict=True):
        assert config.certificate == pki / f"{name}.pem"
        assert (pki / f"{name}.key").stat().st_mode & 0o777 == 0o600
    options = _security(pki, tmp_path)
    assert options["source"][-2:] == ["--peer", "destination"]
    assert "--peer" not in options["destination"]
    assert all("--insecure" not in one for one in options.values())


def test_insecure_is_insecure_on_both_sides(tmp_path: Path) -> None:
    assert _tls(None) is None
    assert all("--insecure" in options for options in _security(None, tmp_path).values())
