from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sterna.cli import endpoint
from sterna.cli.endpoint import (
    Ending,
    Security,
    deadlines,
    ending_signals,
    holder_missing,
    open_process,
    tell_progress,
)
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.core.deadlines import Deadlines
from sterna.errors import ConfigError, GuestError
from sterna.guest.holder_client import connect_holder
from sterna.host.pki import init_ca, issue
from sterna.net.memory import memory_transport_pair

PEERS = '[[peer]]\nidentity = "host-a"\nmay_send = ["*"]\n'


def nobody(_identity: str, _fingerprint: bytes) -> None:
    """A check that is not asked."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    init_ca(directory)
    issue(directory, "host-a")
    return directory


# ---- who this host is ----


def test_certificates_are_found_by_name(pki: Path) -> None:
    config = Security(pki=pki, name="host-a").tls(nobody)
    assert config is not None
    assert (config.certificate, config.key, config.authority) == (
        pki / "host-a.pem",
        pki / "host-a.key",
        pki / "ca.pem",
    )
    assert config.check_peer is nobody


def test_plaintext_is_asked_for() -> None:
    """[TLS-1]"""
    assert Security(insecure=True).tls(nobody) is None


def test_certificates_that_cannot_be_looked_at_are_not_missing(tmp_path: Path) -> None:
    """As in the directory of another user; here it has a name that no file system takes."""
    with pytest.raises(ConfigError, match=r"cannot read .*: File name too long"):
        Security(pki=tmp_path / ("x" * 300), name="host-a").tls(nobody)


@pytest.mark.parametrize("both", [True, False])
def test_neither_and_both_are_no_choice(pki: Path, both: bool) -> None:
    """[TLS-1] Nobody speaks plaintext because something was left out."""
    security = Security(pki=pki, insecure=True) if both else Security()
    with pytest.raises(ConfigError, match=r"either --pki DIR .* or --insecure"):
        security.tls(nobody)


def test_a_missing_certificate_says_how_to_get_it(pki: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Security(pki=pki, name="host-b").tls(nobody)
    for said in ("host-b.pem", "--name", "sterna pki issue DIR host-b"):
        assert said in str(caught.value)


def test_a_peer_list_goes_with_certificates(tmp_path: Path, pki: Path) -> None:
    """With --insecure it would look like protection and be none."""
    path = tmp_path / "peers.toml"
    path.write_text(PEERS)
    peers = Security(pki=pki, peers=path).peer_list()
    assert peers is not None
    assert set(peers.rules) == {"host-a"}
    assert Security(pki=pki).peer_list() is None
    with pytest.raises(ConfigError, match="--peers goes with --pki"):
        Security(insecure=True, peers=path).peer_list()


@pytest.mark.parametrize(
    ("machine", "name"),
    [("host-a", "host-a"), ("HOST-A", "host-a"), ("no name!", "localhost"), ("", "localhost")],
)
def test_the_machine_s_name_is_taken_if_it_can_be_one(
    machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint.socket, "gethostname", lambda: machine)
    assert Security().own_name == name


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no host name"):
        assert Security(name="../../etc/passwd").own_name


# ---- patience ----


@given(st.floats(0.1, 86400.0))
def test_whoever_has_little_patience_has_it_in_every_phase(patience_s: float) -> None:
    usual, found = Deadlines(), deadlines(patience_s)
    for one in fields(Deadlines):
        assert 0 < getattr(found, one.name) <= patience_s
    # A heartbeat must come, and more than once, before silence is one.
    assert found.heartbeat_s <= found.silence_s / 2
    for name in ("heartbeat_s", "silence_s", "stall_s"):
        assert getattr(found, name) <= getattr(usual, name)


def test_without_a_wish_deadlines_are_the_usual_ones() -> None:
    assert deadlines(None) == Deadlines()


def test_no_peer_is_that_quick() -> None:
    with pytest.raises(ConfigError, match="--patience"):
        deadlines(0.05)


# ---- endings ----


async def watching(nursery: trio.Nursery, *, process: int | None = None) -> tuple[Ending, trio.CancelScope]:
    scope = trio.CancelScope()
    ending = Ending(scope)
    await nursery.start(partial(ending.watch, process=process))
    return ending, scope


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_asks_and_the_second_ends(
    nursery: trio.Nursery, number: signal.Signals
) -> None:
    ending, scope = await watching(nursery)
    asked: list[str] = []
    heard = trio.Event()

    def ask(why: str) -> None:
        asked.append(why)
        heard.set()

    ending.ask = ask
    os.kill(os.getpid(), number)
    await heard.wait()
    assert asked == [number.name]
    assert not scope.cancel_called
    assert not ending.interrupted
    os.kill(os.getpid(), number)
    with scope:
        await trio.sleep_forever()
    assert ending.interrupted
    assert asked == [number.name]


async def test_with_nobody_to_ask_the_first_signal_ends(nursery: trio.Nursery) -> None:
    ending, scope = await watching(nursery)
    os.kill(os.getpid(), signal.SIGTERM)
    with scope:
        await trio.sleep_forever()
    assert ending.interrupted


async def test_the_end_of_a_process_is_a_reason_to_end(nursery: trio.Nursery) -> None:
    process = await trio.lowlevel.open_process([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ending, scope = await watching(nursery, process=process.pid)
    asked: list[str] = []
    heard = trio.Event()

    def ask(why: str) -> None:
        asked.append(why)
        heard.set()

    ending.ask = ask
    assert process.stdin is not None
    await process.stdin.send_all(b"\n")
    await process.stdin.aclose()
    await heard.wait()
    await process.wait()
    assert asked == [f"process {process.pid} has ended"]
    assert not scope.cancel_called


async def test_a_process_that_has_ended_before_is_noticed_too(nursery: trio.Nursery) -> None:
    process = await trio.lowlevel.open_process([sys.executable, "-c", ""])
    await process.wait()
    assert open_process(process.pid) is None
    ending, scope = await watching(nursery, process=process.pid)
    with scope:
        await trio.sleep_forever()
    assert ending.interrupted


def test_nohup_is_honoured() -> None:
    """A closed terminal ends a command in order, unless it was told to go on."""
    assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM}
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- the rest ----


async def test_progress_is_told_again_and_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    told: list[tuple[int, int]] = []

    class Listening(Reporter):
        def emit(self, fields: object) -> None:
            assert isinstance(fields, dict)
            told.append((fields["bytes_sent"], fields["bytes_received"]))

    near, _far = memory_transport_pair()
    nursery.start_soon(tell_progress, Listening(Output()), lambda: (near.bytes_sent, near.bytes_received))
    await trio.testing.wait_all_tasks_blocked()
    await near.send([memoryview(b"12345")])
    await trio.sleep(2.1 * endpoint.PROGRESS_S)
    assert told == [(0, 0), (5, 0), (5, 0)]


async def test_a_missing_holder_can_be_started(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"

    async def said() -> str:
        with pytest.raises(GuestError) as caught:
            await connect_holder(path)
        return str(holder_missing(caught.value, path, "--destination"))

    start = f"start one with sterna holder --socket {path} --destination"
    assert (await said()).endswith(start)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # by a holder that was killed
    assert (await said()).endswith(start)
    path.unlink()
    path.touch()
    assert (await said()).endswith(f"no holder at {path}: Connection refused: that is no holder's socket")
    path = tmp_path / ("x" * 300)
    assert "AF_UNIX path too long" in await said()
