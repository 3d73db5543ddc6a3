"""Every way in which a shim can end, and nothing of it is left afterwards."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import trio
from interop_support import params, shim

from sterna_interop.contract import Outcome
from sterna_interop.process import GO, TEXT_BYTES_MAX, Ended, run_shim
from sterna_interop.start import program

GOOD = 'dial().recv(1); say(outcome="completed", guest="none")'


async def run(code: str, directory: Path, timeout_s: float = 20.0) -> Ended:
    async def serve(sock: socket.socket) -> None:
        sock.close()

    return await run_shim(program(shim(code)), params(), directory, serve, timeout_s=timeout_s)


async def test_a_shim_that_behaves(tmp_path: Path) -> None:
    ended = await run(GOOD + '; print("hello")', tmp_path)
    assert ended.trouble is None
    assert ended.supported
    assert ended.report is not None
    assert ended.report.outcome is Outcome.COMPLETED
    assert (ended.stdout, ended.dialled) == ("hello\n", True)


@pytest.mark.parametrize(
    ("code", "crash", "text"),
    [
        ("sys.exit(1)", False, "says that it failed"),
        ("sys.exit(77)", True, "exit code 77, which the contract does not have"),
        ("os.kill(os.getpid(), 9)", True, "ended by SIGKILL"),
        ("os.kill(os.getpid(), 40)", True, "ended by"),
        ("dial()", False, "exit code 0, but there is no result.json"),
        ("say(outcome='fine', guest='none')", False, "exit code 0, but result.json: outcome is none of"),
        ("open(result, 'w').truncate(1 << 40)", False, "has more than"),
        ("os.mkfifo(result)", False, "there is no result.json"),
        ("os.symlink('/dev/zero', result)", False, "there is no result.json"),
    ],
)
async def test_a_shim_that_does_not(code: str, crash: bool, text: str, tmp_path: Path) -> None:
    trouble = (await run(code, tmp_path)).trouble
    assert trouble is not None
    assert (trouble[0], text in trouble[1]) == (crash, True), trouble[1]


async def test_further_connections_are_for_those_who_want_them(tmp_path: Path) -> None:
    came: list[str] = []

    async def first(sock: socket.socket) -> None:
        came.append("first")
        sock.send(GO)
        sock.close()

    async def more(sock: socket.socket) -> None:
        came.append("more")
        sock.send(GO)
        sock.close()

    code = "[dial() for _ in range(3)]; say(outcome='completed', guest='none')"
    start = program(shim(code))
    for each, count in ((more, 3), (None, 1)):
        came.clear()
        # The second dial of one that is let in once hangs until its time is over.
        seconds = 20.0 if each else 6.0
        ended = await run_shim(start, params(), tmp_path, first, timeout_s=seconds, more=each)
        assert came == ["first", "more", "more"][:count]
        assert (ended.report is not None) == (each is not None)


async def test_not_supported_is_no_trouble_to_be_told(tmp_path: Path) -> None:
    assert not (await run("sys.exit(89)", tmp_path)).supported


@pytest.mark.slow
async def test_a_shim_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    code = """
child = os.fork()
if child:
    open(os.path.join(arguments["--out"], "pid"), "w").write(str(child))
    print("waiting", flush=True)
while True:
    time.sleep(60)
"""
    ended = await run(code, tmp_path, timeout_s=1.5)
    assert ended.trouble == (False, "the shim had not ended after 1.5 s, and had not even connected; killed")
    assert ended.stdout == "waiting\n"
    await _gone(int((tmp_path / "pid").read_text()))


async def test_a_child_that_stays_behind_is_killed(tmp_path: Path) -> None:
    code = """
child = os.fork()
if not child:
    signal = __import__("signal"); signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)
open(os.path.join(arguments["--out"], "pid"), "w").write(str(child))
"""
    ended = await run(code + GOOD, tmp_path)
    assert ended.trouble is None
    await _gone(int((tmp_path / "pid").read_text()))


async def _gone(pid: int) -> None:
    """Init, or whoever adopts orphans here, may take a moment to collect it."""
    with trio.fail_after(10):
        while _lives(pid):
            await trio.lowlevel.checkpoint()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_endless_garbage_is_read_and_not_kept(tmp_path: Path) -> None:
    code = 'sys.stdout.buffer.write(b"\\xff<script>" * 1000000); sys.stderr.write("x" * 1000000);' + GOOD
    ended = await run(code, tmp_path)
    assert ended.trouble is None
    assert len(ended.stdout) < 5 * TEXT_BYTES_MAX
    assert ended.stdout.startswith("\\xff<script>")
    assert ended.stderr.endswith("and more, which was not kept)")


async def test_only_the_token_opens_the_door(tmp_path: Path) -> None:
    """A stray connection, before the right one, is closed and does not get into the case."""
    code = """
stray = socket.create_connection((host, int(port)))
stray.sendall(b"12345678")
if stray.recv(1) != b"":
    sys.exit(7)
"""
    ended = await run(code + GOOD, tmp_path)
    assert ended.trouble is None
    assert ended.dialled


async def test_what_follows_the_token_is_not_swallowed(tmp_path: Path) -> None:
    got = b""

    async def serve(sock: socket.socket) -> None:
        nonlocal got
        sock.send(GO)
        while data := await _receive(sock):
            got += data
        sock.close()

    code = 'sock = dial(); sock.sendall(b"preface"); sock.close(); say(outcome="completed", guest="none")'
    await run_shim(program(shim(code)), params(), tmp_path, serve, timeout_s=20)
    assert got == b"preface"


async def _receive(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(100)


async def test_no_such_command(tmp_path: Path) -> None:
    async def serve(sock: socket.socket) -> None:
        sock.close()

    with pytest.raises(OSError, match="No such file"):
        await run_shim(program(("/nonexistent/shim",)), params(), tmp_path, serve, timeout_s=5)


def test_a_signal_without_a_name() -> None:
    assert Ended(-200, "", "").trouble == (True, "the shim was ended by signal 200")
    assert Ended(-signal.SIGTERM, "", "").trouble == (True, "the shim was ended by SIGTERM")
