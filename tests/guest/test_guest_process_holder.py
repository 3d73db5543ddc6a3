"""The program, in this process and as one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_guest_holder_server import Other, Peer, attach_when_free

from sterna.guest import process_holder
from sterna.guest.process_holder import main, make_engine
from sterna.guest.workload import WorkloadState
from sterna.linux.pidfd import Pidfd
from sterna.registry import Architecture

MIB = 1 << 20
SMALL = ("--memory", str(2 * MIB), "--hot", str(MIB), "--rate", str(MIB))
WITHIN_S = 30


def start(path: Path, role: str, *options: str) -> subprocess.Popen[str]:
    """A holder that is ready."""
    command = [sys.executable, "-m", "sterna.guest.process", "--socket", str(path), "--role", role, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert (ready["socket"], ready["pid"], ready["role"]) == (str(path), process.pid, role)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_source_runs_until_it_is_told_to_end(tmp_path: Path, number: int) -> None:
    journal = tmp_path / "journal"
    holder = start(tmp_path / "holder", "source", *SMALL, "--journal", str(journal), "--epoch", "3")
    with holder:
        peer = Peer(tmp_path / "holder")
        assert peer.attach()["state"] == "running"
        assert peer.ask("describe")["description"]["regions"][0]["bytes"] == 2 * MIB
        assert peer.ask("status")["epoch"] == 3
        while not peer.ask("status")["guest"]["writes"]:  # the journal begins with the first write
            assert holder.poll() is None
        peer.close()
        holder.send_signal(number)
        assert holder.wait(WITHIN_S) == 0
    assert not (tmp_path / "holder").exists()
    assert json.loads(journal.read_text().splitlines()[-1])[4] == "end"


def test_a_killed_endpoint_leaves_the_guest_running_unharmed(tmp_path: Path) -> None:
    """[HOL-18]: real processes, killed in the blackout."""
    with start(tmp_path / "holder", "source", *SMALL) as holder:
        endpoint = Other(tmp_path / "holder")
        for operation in ("track_start", "pause", "save_state"):
            assert "ok" in endpoint.ask(operation)
        endpoint.kill()
        peer = attach_when_free(tmp_path / "holder")
        status = peer.ask("status")
        assert (status["state"], status["tracking"]) == ("running", False)
        count = status["guest"]["writes"]
        while peer.ask("status")["guest"]["writes"] == count:  # its rate is a MiB a second
            assert holder.poll() is None
        audit = peer.ask("audit")["audit"]
        assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
        assert peer.ask("shutdown") == {}
        peer.close()
        assert holder.wait(WITHIN_S) == 0


def test_a_destination_waits(tmp_path: Path) -> None:
    with start(tmp_path / "holder", "destination") as holder:
        peer = Peer(tmp_path / "holder")
        assert peer.attach()["state"] == "empty"
        assert peer.ask("shutdown") == {}
        peer.close()
        assert holder.wait(WITHIN_S) == 0


def test_dies_with_its_parent_if_told_so(tmp_path: Path) -> None:
    """The one that was not told lives on; the test ends it."""
    program = """
import subprocess, sys
for name, more in (("mortal", ["--die-with-parent"]), ("immortal", [])):
    command = [sys.executable, "-m", "sterna.guest.process", "--socket", f"{sys.argv[1]}/{name}"]
    holder = subprocess.Popen([*command, "--role", "destination", *more], stdout=subprocess.PIPE)
    holder.stdout.readline()
    print(holder.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    mortal, immortal = (Pidfd.open(int(parent.stdout.readline())) for _ in range(2))
    parent.kill()
    parent.communicate()
    try:
        assert mortal.ended(WITHIN_S)
        assert not immortal.ended()
        peer = Peer(tmp_path / "immortal")
        peer.attach()
        peer.ask("shutdown")
        peer.close()
        assert immortal.ended(WITHIN_S)
    finally:
        immortal.kill()
        mortal.close()
        immortal.close()


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "4097"),
        ("--memory", "0"),
        ("--memory", str(MIB), "--journal", "/none/such"),
        ("--memory", str(MIB), "--tracker", "compare", "--socket", "/none/such"),
        ("--memory", str(1 << 40)),  # more than there is
        ("--memory", str(MIB), "--rate", "-1"),  # would write nothing, and never sleep
        ("--memory", str(MIB), "--hot", "-1"),
        ("--memory", str(MIB), "--memory-limit", "-1"),
        ("--memory", str(MIB), "--epoch", "0"),
        ("--memory", str(MIB), "--epoch", str(1 << 53)),
        ("--memory", str(MIB), "--name", "x" * 256),
        ("--memory", str(MIB), "--host", "a\nb"),
        ("--memory", str(MIB), "--guest", "kvm", "--tracker", "compare"),
        ("--role", "destination", "--guest", "kvm", "--room", str(MIB)),
        ("--role", "destination", "--room", str(1 << 40)),
        ("--memory", str(MIB), "--die-with-parent", str(os.getpid())),  # not the parent, any more
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.getswitchinterval()
    try:
        assert main(["--socket", str(tmp_path / "holder"), "--role", "source", *options]) == 1
    finally:
        sys.setswitchinterval(before)
    assert capsys.readouterr().err.startswith("holder: ")
    # A guest that goes on writing would write to memory that is gone.
    assert "workload" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("options", [(), ("--role", "king"), ("--role", "source", "--guest-id", "00")])
def test_usage(tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket", str(tmp_path / "holder"), *options])
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_ids_can_be_given(tmp_path: Path) -> None:
    arguments = ["--socket", "unused", "--role", "source", *SMALL, "--tracker", "compare"]
    arguments += ["--guest-id", "ab" * 16, "--runner", "cd" * 16, "--host", "alpha", "--name", "beta"]
    engine = make_engine(process_holder._arguments(arguments))
    try:
        assert engine.guest.description.id == b"\xab" * 16
        assert engine.guest.description.name == "beta"
        assert (engine.runner.host, engine.runner.id) == ("alpha", b"\xcd" * 16)
    finally:
        engine.close()


@pytest.mark.parametrize(("options", "version"), [([], 1), (["--heads"], 2)])
def test_whether_whole_pages_are_written(options: list[str], version: int) -> None:
    arguments = ["--socket", "unused", "--role", "source", *SMALL, "--tracker", "compare", *options]
    engine = make_engine(process_holder._arguments(arguments))
    try:
        engine.guest.pause()
        (state,) = engine.guest.save_state()
        assert WorkloadState.from_bytes(state.data).version == state.version == version
    finally:
        engine.close()


@pytest.mark.needs("kvm")
def test_a_virtual_machine_is_held_likewise() -> None:
    arguments = ["--socket", "unused", "--role", "source", *SMALL, "--guest", "kvm", "--vcpus", "2"]
    engine = make_engine(process_holder._arguments(arguments))
    try:
        assert (engine.guest.kind, engine.guest.description.vcpus) == ("kvm", 2)
        assert engine.guest.description.architecture == Architecture.X86_64
    finally:
        engine.close()


@pytest.mark.needs("minor_faults")
@pytest.mark.parametrize("options", [[], ["--no-post-copy"]])
def test_its_owner_says_whether_pages_may_come_later(options: list[str]) -> None:
    arguments = ["--socket", "unused", "--role", "destination", *options]
    engine = make_engine(process_holder._arguments(arguments))
    try:
        assert engine.guest.can_post_copy is not bool(options)
    finally:
        engine.close()


def test_the_program_ends_in_this_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the interpreter sees a signal: between two bytecodes of `serve`."""
    serve = process_holder.HolderServer.serve

    def told_to_end(server: process_holder.HolderServer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        serve(server)

    monkeypatch.setattr(process_holder.HolderServer, "serve", told_to_end)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = sys.getswitchinterval()
    try:
        assert main(["--socket", str(tmp_path / "holder"), "--role", "destination"]) == 0
    finally:
        sys.setswitchinterval(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert json.loads(capsys.readouterr().out)["tracker"] == "none"
