"""The command in the test's own process: it serves in the main thread, another one is the controller."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sterna.cli import holder as module
from sterna.cli.holder import check_size
from sterna.cli.main import main
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership
from sterna.errors import ConfigError, StoreUnavailable
from sterna.guest.holder_client import HolderConnection, HolderStatus, connect_holder
from sterna.guest.holder_server import HolderServer
from sterna.wire.records import NO_RUNNER, Runner

MIB = 1 << 20
Visit = Callable[[HolderConnection], Awaitable[None]]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """What the command changes of its process, which is usually its own."""
    interval = sys.getswitchinterval()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    sys.setswitchinterval(interval)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Visit], None]:
    """Have somebody visit the holder as soon as it serves. The holder ends in any case."""

    def arrange(act: Visit) -> None:
        serve = HolderServer.serve

        def with_visitor(server: HolderServer) -> None:
            async def attend() -> None:
                async with await connect_holder(server.path) as connection:
                    await act(connection)

            def attend_and_stop() -> None:
                try:
                    trio.run(attend)
                finally:
                    server.stop()

            thread = threading.Thread(target=attend_and_stop)
            thread.start()
            serve(server)
            thread.join()

        monkeypatch.setattr(HolderServer, "serve", with_visitor)

    return arrange


async def leave(connection: HolderConnection) -> None:
    await connection.detach()


def test_a_guest_runs_until_the_holder_ends(
    tmp_path: Path, visit: Callable[[Visit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[HolderStatus] = []

    async def look(connection: HolderConnection) -> None:
        seen.append(await connection.status())
        await connection.detach()

    visit(look)
    path = tmp_path / "h"
    arguments = ["--memory", "1MiB", "--hot", "256KiB", "--dirty-rate", "4MiB/s", "--name", "web-1"]
    assert main(["holder", "--socket", str(path), *arguments, "--json"]) == 0
    (status,) = seen
    assert status.state == "running"
    assert status.figure("memory_bytes") == MIB
    assert status.figure("hot_set_bytes") == MIB // 4
    assert status.figure("rate_requested_bytes_s") == 4 * MIB
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    said = json.loads(line)
    assert said["schema"] == 1
    assert (said["role"], said["pid"], said["socket"]) == ("source", os.getpid(), str(path))
    assert said["guest"]["name"] == "web-1"
    assert len(bytes.fromhex(said["guest"]["id"])) == 16
    assert f"sterna migrate --holder {path} --to HOST:PORT" in err
    assert err.endswith("the holder ends, and its guest with it\n")
    assert not path.exists()


def test_room_for_a_guest(
    tmp_path: Path, visit: Callable[[Visit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its size is the guest's own, so no size is checked."""
    visit(leave)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--destination", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["role"] == "destination"
    assert "sterna serve --holder" in err
    assert err.endswith("the holder ends; no guest has come\n")


@pytest.mark.needs("minor_faults")
@pytest.mark.parametrize("options", [[], ["--no-post-copy"]])
def test_whether_pages_may_come_later_is_for_the_owner_to_say(
    tmp_path: Path, visit: Callable[[Visit], None], options: list[str]
) -> None:
    found: list[bool] = []

    async def look(connection: HolderConnection) -> None:
        found.append(connection.attached.post_copy)
        await connection.detach()

    visit(look)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--destination", *options]) == 0
    assert found == [not options]


@pytest.mark.parametrize(
    ("arguments", "figure", "expected"),
    [
        (["--dirty-rate", "0B/s"], "rate_requested_bytes_s", 1),  # not "as fast as it goes"
        (["--hot", "0B"], "hot_set_bytes", 32 * 4096),  # the least there is, not "half of it"
        (["--hot", "1GiB"], "hot_set_bytes", MIB),
    ],
)
def test_extreme_wishes(
    arguments: list[str], figure: str, expected: int, tmp_path: Path, visit: Callable[[Visit], None]
) -> None:
    seen: list[HolderStatus] = []

    async def look(connection: HolderConnection) -> None:
        seen.append(await connection.status())
        await connection.detach()

    visit(look)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--memory", "1MiB", *arguments, "--json"]) == 0
    assert seen[0].figure(figure) == expected


def test_a_guest_that_has_moved_away_is_not_mourned(
    tmp_path: Path, visit: Callable[[Visit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    async def send_away(connection: HolderConnection) -> None:
        for operation in ("pause", "grant", "release"):
            await connection.call(operation, {"epoch": 2} if operation == "grant" else None)
        await connection.detach()

    visit(send_away)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--memory", "1MiB"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("the guest has moved away (epoch 2); its holder ends\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_in_order(
    number: signal.Signals, tmp_path: Path, visit: Callable[[Visit], None]
) -> None:
    async def interrupt(connection: HolderConnection) -> None:
        await connection.detach()
        os.kill(os.getpid(), number)

    visit(interrupt)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--memory", "1MiB", "--json"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_the_process_that_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._say_ready
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        def ready(*arguments: Any) -> None:
            real(*arguments)
            process.communicate(b"\n")  # not before: a process that has ended cannot be watched

        monkeypatch.setattr(module, "_say_ready", ready)
        arguments = ["--memory", "1MiB", "--die-with", str(process.pid), "--json"]
        assert main(["holder", "--socket", str(tmp_path / "h"), *arguments]) == 0


def test_somebody_who_watches_sees_a_line_that_moves(
    tmp_path: Path,
    visit: Callable[[Visit], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = threading.Event()
    real = module._line

    def line(status: HolderStatus) -> str:
        shown.set()
        return real(status)

    monkeypatch.setattr(module, "_line", line)

    async def wait(connection: HolderConnection) -> None:
        await trio.to_thread.run_sync(shown.wait)
        await connection.detach()

    visit(wait)
    assert main(["holder", "--socket", str(tmp_path / "h"), "--memory", "1MiB"]) == 0
    assert "and its guest with it" in capsys.readouterr().err.splitlines()[-1]


def test_a_line_about_a_guest() -> None:
    guest = {"writes": 256, "rate_bytes_s": 5e6, "errors": 0}
    status = HolderStatus("running", 2, 0, NO_RUNNER, "compare", False, guest)
    assert module._line(status) == "running, epoch 2: 1 MiB written, 5 MB/s, 0 errors"
    assert module._line(replace(status, missing=512)).endswith(", 0 errors, 2 MiB missing")
    nothing = HolderStatus("empty", 0, 0, NO_RUNNER, "none", False, {})
    assert module._line(nothing) == "empty"


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--memory", "100B"], "whole pages of 4096 bytes, and at least 128KiB"),
        (["--memory", "64KiB"], "at least 128KiB"),
        (["--memory", "1048577B"], "whole pages"),
        (["--memory", "1000TiB"], "are available here"),
        (["--memory", "1"], "has no unit"),
        (["--memory", "1MiB", "--tracker", "magic"], "magic"),
        (["--memory", "1MiB", "--vcpus", "2"], "--vcpus: 1 to 16, with --guest kvm"),
        (["--memory", "1MiB", "--guest", "kvm", "--vcpus", "17"], "--vcpus: 1 to 16"),
        (["--memory", "1MiB", "--room", "1MiB"], "--room is for the guest that comes"),
        (["--memory", "1MiB", "--heads", "--guest", "kvm"], "--heads: not with --guest kvm"),
        (["--memory", "1MiB", "--journal", "/proc/nothing"], ": /proc/nothing: No such file or directory"),
        (["--memory", "1MiB", "--name", "x" * 300], "1 to 255 bytes of printable text"),
        (["--memory", "1MiB", "--name", "a\nb"], "1 to 255 bytes of printable text"),
    ],
)
def test_wrong_wishes_are_usage_errors(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["holder", "--socket", str(tmp_path / "h"), *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == "usage"
    assert complaint in error["text"]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    arguments = ["--socket", str(tmp_path / "h"), "--die-with", str(process.pid), "--json"]
    assert main(["holder", *arguments]) == 2
    assert f"there is no process {process.pid}" in json.loads(capsys.readouterr().out)["error"]["text"]


def test_a_socket_where_another_holder_answers_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its guest would run on, and nobody could reach it."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "h"))
        other.listen()
        assert main(["holder", "--socket", str(tmp_path / "h"), "--memory", "1MiB", "--json"]) != 0
        assert "error" in json.loads(capsys.readouterr().out)
        assert (tmp_path / "h").is_socket()


def test_memory_is_asked_for_before_it_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filling a guest that does not fit would first take what all other programs have."""
    monkeypatch.setattr(module, "available_bytes", lambda: 10 * MIB)
    check_size(10 * MIB)
    check_size(5 * MIB, copies=2)
    with pytest.raises(ConfigError, match="11 MiB is more than the 10 MiB that are available here"):
        check_size(11 * MIB)
    with pytest.raises(ConfigError, match="2 times 6 MiB is more than the 10 MiB"):
        check_size(6 * MIB, copies=2)


async def test_a_store_that_is_silent_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often it is asked: a line each time would hide what else there is to read."""
    runner = Runner("here", bytes(16))

    async def claim_first(*_: object, silent: Callable[[StoreUnavailable], None]) -> Runner:
        for text in ("no answer", "no answer", "no store"):
            silent(StoreUnavailable(text))
        await trio.lowlevel.checkpoint()
        return runner

    monkeypatch.setattr(module, "claim_first", claim_first)
    ownership = Ownership(store=str(tmp_path), records=tmp_path)
    options = argparse.Namespace(host="here", guest_id=bytes(16))
    assert await module._claim(ownership, options, bytes(16), Output()) == runner
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "no answer",
        "no store",
    ]
