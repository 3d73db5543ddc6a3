"""The server over a real socket, in a thread; controllers are this process and others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_guest_holder_backend import FakeHeld

from sterna.errors import GuestError
from sterna.guest import holder_connection, holder_server
from sterna.guest import holder_fields as fields_of
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_frames import FRAME_BYTES, FrameReader, encode_frame
from sterna.guest.holder_server import CONNECTIONS, HolderServer
from sterna.linux.memfd import MemoryFile
from sterna.linux.pidfd import PeerCredentials, Pidfd

WITHIN_S = 30.0

# Another process: attaches, tells the answer, and does what it is told until its standard input ends.
OTHER = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
def ask(fields):
    body = json.dumps(fields).encode(); s.sendall(len(body).to_bytes(4, "little") + body)
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"): data += s.recv(65536)
    print(data[4:].decode(), flush=True)
ask({"id": 1, "op": "attach", "version": 1, "role": "controller"})
for line in sys.stdin:
    if line == "close\\n": s.close(); print("{}", flush=True)
    else: ask({"id": 2, "op": line.strip(), "epoch": 5})
"""


class Other:
    """A process that attaches."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.attached = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, operation: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(operation + "\n")
        self.process.stdin.flush()
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Peer:
    """A connection of this process."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WITHIN_S)
        self.socket.connect(str(path))
        self.reader = FrameReader()

    def send(self, fields: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        data = encode_frame(fields, descriptors)
        if descriptors:
            socket.send_fds(self.socket, [data], list(descriptors))
        else:
            self.socket.sendall(data)

    def read(self) -> dict[str, Any] | None:
        """The next answer; None if the holder has closed."""
        while (frame := self.reader.next_frame()) is None:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 64)
            except ConnectionResetError:
                return None
            self.reader.receive(data, descriptors)
            if not data:
                return None
        frame.close()
        return frame.fields

    def ask(self, operation: str, **fields: Any) -> Any:
        self.send({"id": 7, "op": operation, **fields})
        answer = self.read()
        assert answer is not None
        assert answer["id"] == 7
        return answer.get("ok", answer.get("error", {}).get("code"))

    def attach(self, role: str = "controller", **fields: Any) -> Any:
        return self.ask("attach", version=1, role=role, **fields)

    def close(self) -> None:
        self.socket.close()
        self.reader.close()


@contextlib.contextmanager
def serving(path: Path, engine: HolderEngine, parent: Pidfd | None = None) -> Iterator[threading.Thread]:
    """The engine behind a socket, in a thread that has ended afterwards."""
    server = HolderServer(path, engine, parent=parent)
    thread = threading.Thread(target=server.serve, name="holder")
    thread.start()
    try:
        yield thread
    finally:
        if thread.is_alive():
            with contextlib.suppress(OSError):  # it ends by itself at this very moment
                server.stop()
        thread.join(WITHIN_S)
        assert not thread.is_alive()
        assert not path.exists()


class Rig:
    """A served fake guest that runs under epoch 4."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self.path = path
        self.guest = FakeHeld()
        self.engine = HolderEngine(self.guest, state=HeldState.RUNNING, epoch=4)
        self.stack = stack
        self.thread = stack.enter_context(serving(path, self.engine))

    def peer(self) -> Peer:
        return self.stack.enter_context(contextlib.closing(Peer(self.path)))

    def other(self) -> Other:
        other = Other(self.path)
        self.stack.callback(other.kill)
        return other

    def state(self) -> str:
        """As an observer sees it, after everything that was noticed before."""
        with contextlib.closing(Peer(self.path)) as peer:
            peer.attach("observer")
            return peer.ask("status")["state"]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        yield Rig(tmp_path / "holder", stack)


FRAMES = st.builds(
    lambda name, fields: encode_frame({"id": 1, "op": name, **fields}),
    st.sampled_from(
        ["attach", "pause", "status", "revoke", "throttle", "memory", "track_start", "detach", "x"]
    ),
    st.dictionaries(
        st.sampled_from(["version", "role", "epoch", "share"]), st.integers(0, 9) | st.text(max_size=3)
    ),
)


def open_descriptors(name: str) -> int:
    """How many descriptors of this process, so of the holder too, are of the memory file `name`."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found += name in os.readlink(f"/proc/self/fd/{entry}")
    return found


def attach_when_free(path: Path) -> Peer:
    """Controllers that have gone are noticed by the holder's next look; ask until it has looked."""
    while True:
        peer = Peer(path)
        answer = peer.attach()
        if answer != "busy":
            return peer
        peer.close()


def test_only_this_user_can_connect(rig: Rig) -> None:
    """[HOL-1]"""
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


def test_other_users_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-1]: whatever the socket's mode has become."""
    monkeypatch.setattr(holder_server, "peer_credentials", lambda _: PeerCredentials(1, 12345, 1))
    answer = rig.peer().read()
    assert answer is not None
    assert answer["error"]["code"] == "not_authorised"


def test_requests_and_answers(rig: Rig) -> None:
    """[HOL-9] [HOL-12]"""
    peer = rig.peer()
    assert peer.ask("status") == "unexpected_frame"
    assert peer.attach()["rights"] == "run"
    assert peer.attach() == "unsupported"
    assert peer.ask("pause") == {}
    assert peer.ask("pause") == {}
    assert peer.ask("save_state")["bytes"] == 9
    assert peer.ask("memory")["writable"] is False
    assert peer.ask("resume") == {}
    assert rig.guest.calls == ["pause", "save_state", "resume"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"op": "status"},
        {"id": "1", "op": "status"},
        {"id": 1.5, "op": "status"},
        {"id": -1, "op": "status"},
    ],
)
def test_requests_without_a_number(rig: Rig, fields: dict[str, Any]) -> None:
    """[HOL-9] [HOL-10]"""
    peer = rig.peer()
    peer.attach()
    peer.send(fields)
    answer = peer.read()
    assert answer is not None
    assert answer["id"] is None
    assert answer["error"]["code"] == "bad_value"
    assert peer.ask("status")["state"] == "running"


def test_answers_repeat_the_number_even_if_the_name_is_wrong(rig: Rig) -> None:
    peer = rig.peer()
    peer.attach()
    for name in (None, 5, "x" * 256):
        peer.send({"id": 9, "op": name})
        answer = peer.read()
        assert answer is not None
        assert (answer["id"], answer["error"]["code"]) == (9, "bad_value")


def test_broken_messages_leave_the_guest_alone(rig: Rig) -> None:
    """[HOL-4] [HOL-7] [HOL-10]"""
    peer = rig.peer()
    peer.attach()
    peer.socket.sendall(b"\x03\0\0\0{{{")
    answer = peer.read()
    assert answer is not None
    assert (answer["id"], answer["error"]["code"]) == (None, "malformed")
    assert peer.ask("status")["state"] == "running"
    peer.socket.sendall((FRAME_BYTES + 1).to_bytes(4, "little"))
    answer = peer.read()
    assert answer is not None
    assert answer["error"]["code"] == "limit_control"
    assert peer.read() is None
    assert rig.state() == "running"


def test_descriptors_that_nobody_asked_for(rig: Rig) -> None:
    """[HOL-6]"""
    mine = MemoryFile("nobody-asked", 4096)
    for role, count, announced in (
        ("controller", 3, 3),
        ("controller", 1, 0),
        ("controller", 0, 1),
        ("observer", 1, 1),
    ):
        peer = attach_when_free(rig.path) if role == "controller" else Peer(rig.path)
        if role == "observer":
            peer.attach(role)
        body = json.dumps({"id": 1, "op": "status", "descriptors": announced}).encode()
        data = len(body).to_bytes(4, "little") + body
        socket.send_fds(peer.socket, [data], [mine.fileno()] * count)
        answer = peer.read()
        assert answer is not None
        assert answer["error"]["code"] == ("bad_value" if count == 3 else "malformed")
        if count != 3:
            assert peer.read() is None
        peer.close()
    assert rig.state() == "running"
    assert open_descriptors("nobody-asked") == 1
    mine.close()


def test_more_descriptors_than_a_frame_may_carry(rig: Rig) -> None:
    """[HOL-5] [HOL-6]"""
    peer = rig.peer()
    peer.attach()
    socket.send_fds(peer.socket, [b"\x02\0\0\0{}"], [0] * 100)
    answer = peer.read()
    assert answer is not None
    assert answer["error"]["code"] == "malformed"
    assert peer.read() is None
    assert rig.state() == "running"


@given(data=st.lists(st.binary(max_size=40) | FRAMES, max_size=5), attached=st.booleans())
def test_any_bytes_leave_the_guest_running(data: list[bytes], attached: bool) -> None:
    """[HOL-10]: and the holder answers others afterwards."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        rig = Rig(Path(directory) / "holder", stack)
        peer = rig.peer()
        if attached:
            peer.attach()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.socket.sendall(b"".join(data))
            peer.socket.shutdown(socket.SHUT_WR)
        while peer.read() is not None:  # every answer is a frame, and they end
            pass
        assert rig.state() == "running"
        assert rig.guest.running


def test_who_connects_and_cannot_be_known_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-1]"""

    def gone(_: socket.socket) -> Pidfd:
        raise ProcessLookupError

    with monkeypatch.context() as patch:
        patch.setattr(holder_server.Pidfd, "of_peer", gone)
        assert rig.peer().read() is None
    assert rig.state() == "running"


def test_one_controller_of_one_process(rig: Rig) -> None:
    """[HOL-14] [HOL-15]"""
    first = rig.peer()
    assert first.attach()["rights"] == "run"
    assert rig.peer().attach() == "busy"
    assert rig.peer().attach("observer")["rights"] == "read"
    assert rig.other().attached["error"]["code"] == "busy"
    first.close()
    again = attach_when_free(rig.path)
    assert again.ask("pause") == {}
    again.close()


def test_a_controller_that_has_closed_and_lives_keeps_others_out(rig: Rig) -> None:
    """[HOL-14]: it may still map the memory."""
    other = rig.other()
    assert "ok" in other.attached
    other.ask("pause")
    other.ask("close")
    assert rig.peer().attach() == "busy"
    assert rig.state() == "running"  # [HOL-18]
    other.kill()
    peer = rig.peer()
    assert peer.attach()["rights"] == "run"


def test_after_detach_everybody_may_attach(rig: Rig) -> None:
    """[HOL-15] [HOL-18]"""
    other = rig.other()
    other.ask("pause")
    assert other.ask("detach") == {"id": 2, "ok": {}}
    peer = rig.peer()
    assert peer.attach()["state"] == "running"


def test_a_killed_controller_is_noticed_though_a_child_keeps_its_socket(rig: Rig) -> None:
    """[HOL-14] [HOL-18]: the process counts, not the connection."""
    program = OTHER.replace(
        "for line", "import os\nif os.fork() == 0: import signal; signal.pause()\nfor line"
    )
    # The child keeps the pipes too: so nothing is read from them after the kill.
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(rig.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert "ok" in json.loads(process.stdout.readline())
        process.stdin.write("pause\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["ok"] == {}
        process.kill()
        process.wait()
        peer = attach_when_free(rig.path)
        assert peer.ask("status")["state"] == "running"
        peer.close()
    finally:
        os.killpg(process.pid, 9)
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("granted", [False, True])
def test_a_killed_controller_leaves_what_the_grant_says(rig: Rig, granted: bool) -> None:
    """[HOL-18] [HOL-19] [ONE-38]"""
    other = rig.other()
    for operation in ("pause", "grant") if granted else ("pause",):
        assert other.ask(operation)["ok"] == {}
    other.kill()
    peer = attach_when_free(rig.path)
    answer = peer.ask("status")
    assert answer["state"] == ("granted" if granted else "running")
    assert rig.guest.running is not granted
    assert peer.ask("memory")["writable"] is False  # readable in any case
    assert peer.ask("throttle", share=0.1) == ("stale_epoch" if granted else {})
    peer.close()


def test_who_does_not_read_is_not_read_from(rig: Rig) -> None:
    """[HOL-8]: and its answers come when it does."""
    peer = rig.peer()
    peer.attach()
    request = encode_frame({"id": 1, "op": "status"})
    sent = 0
    peer.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < 4 << 20:
            sent += peer.socket.send(request)  # whole frames or nothing: they are small
    assert sent < 4 << 20
    assert rig.state() == "running"  # others are served meanwhile
    peer.socket.settimeout(WITHIN_S)
    for _ in range(sent // len(request)):
        answer = peer.read()
        assert answer is not None
        assert "ok" in answer


def test_answers_with_descriptors_wait_for_a_reader_too(rig: Rig) -> None:
    """[HOL-8]: whoever sends many requests before he reads is no worse for it."""
    peer = rig.peer()
    peer.attach()
    request = encode_frame({"id": 1, "op": "memory"})
    sent = 0
    peer.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += peer.socket.send(request)
    assert rig.state() == "running"
    peer.socket.settimeout(WITHIN_S)
    for _ in range(sent // len(request)):
        answer = peer.read()
        assert answer is not None
        assert answer["descriptors"] == 2


def test_one_that_asks_a_lot_does_not_keep_the_others_waiting(rig: Rig) -> None:
    entered, go = threading.Event(), threading.Event()

    def audit() -> dict[str, Any]:
        rig.guest.calls.append("audit")
        entered.set()
        assert go.wait(WITHIN_S)
        return {}

    def status() -> dict[str, Any]:
        rig.guest.calls.append("status")
        return {}

    rig.guest.audit, rig.guest.status = audit, status
    peer, observer = rig.peer(), rig.peer()
    peer.attach()
    observer.attach("observer")
    peer.socket.sendall(encode_frame({"id": 1, "op": "audit"}) * 100)
    assert entered.wait(WITHIN_S)
    observer.send({"id": 2, "op": "status"})
    go.set()
    assert observer.read() is not None
    for _ in range(100):
        assert peer.read() is not None
    assert rig.guest.calls.index("status") < 10


def test_the_answer_to_attach_tells_what_is_so_now(rig: Rig) -> None:
    """[HOL-18]: also where the former controller's end was not yet noticed when the next one came."""
    entered, go = threading.Event(), threading.Event()

    def status() -> dict[str, Any]:
        entered.set()
        assert go.wait(WITHIN_S)
        return {}

    other, next_one, observer = rig.other(), rig.peer(), rig.peer()
    other.ask("pause")
    assert next_one.attach() == "busy"
    observer.attach("observer")
    rig.guest.status = status
    observer.send({"id": 1, "op": "status"})
    assert entered.wait(WITHIN_S)
    next_one.send({"id": 2, "op": "attach", "version": 1, "role": "controller"})  # is read before the end
    other.kill()
    go.set()
    answer = next_one.read()
    assert answer is not None
    assert answer["ok"]["state"] == "running"


def test_connections_are_bounded(rig: Rig) -> None:
    """[HOL-2]"""
    peers = [rig.peer() for _ in range(CONNECTIONS)]
    for peer in peers:
        peer.attach("observer")
    answer = rig.peer().read()
    assert answer is not None
    assert answer["error"]["code"] == "busy"


def test_who_does_not_attach_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-2]"""
    monkeypatch.setattr(holder_connection, "ATTACH_WITHIN_S", 0.0)
    with contextlib.ExitStack() as stack:
        rig = Rig(tmp_path / "holder", stack)
        peer = rig.peer()
        assert peer.read() is None


def test_a_backend_that_breaks_is_an_internal_error(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """[HOL-10]: its text does not leave the holder."""
    peer = rig.peer()
    peer.attach()
    rig.guest.broken["pause"] = ZeroDivisionError("secret")
    peer.send({"id": 1, "op": "pause"})
    answer = peer.read()
    assert answer == {"id": 1, "error": {"code": "internal", "text": "ZeroDivisionError"}}
    assert "secret" in caplog.text
    assert peer.ask("status")["state"] == "running"


def test_a_guest_that_cannot_be_resumed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    peer = rig.peer()
    peer.attach()
    peer.ask("pause")
    rig.guest.broken["resume"] = GuestError("stuck")
    peer.close()
    attach_when_free(rig.path).close()
    assert "could not be resumed" in caplog.text


def test_descriptors_do_not_pile_up_behind_an_unfinished_frame(rig: Rig) -> None:
    """[HOL-6]: nor can they be had from the holder that way."""
    peer = rig.peer()
    peer.attach()
    socket.send_fds(peer.socket, [(1 << 20).to_bytes(4, "little")], [0] * 60)
    for _ in range(2):
        socket.send_fds(peer.socket, [b"{"], [0] * 60)
    answer = peer.read()
    assert answer is not None
    assert answer["error"]["code"] == "malformed"
    assert peer.read() is None


def test_a_failure_of_our_own_costs_the_connection_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """[HOL-10]"""
    peer = rig.peer()
    peer.attach()
    peer.ask("pause")
    with monkeypatch.context() as patch:
        patch.setattr(FrameReader, "receive", lambda *_: 1 // 0)
        peer.socket.sendall(b"x")
        assert peer.socket.recv(1) == b""
    assert rig.state() == "running"
    assert "a connection failed" in caplog.text


def test_an_answer_that_cannot_be_sent_is_an_internal_error(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    peer = rig.peer()
    peer.attach()
    for figure, code in ((float("nan"), "internal"), ("x" * FRAME_BYTES, "limit_control")):
        rig.guest.status = lambda figure=figure: {"figure": figure}
        assert peer.ask("status") == code
    assert peer.ask("pause") == {}


def test_an_error_is_a_text_whatever_it_quotes(rig: Rig) -> None:
    """[HOL-9]: 255 bytes, not characters."""
    peer = rig.peer()
    peer.attach()
    peer.send({"id": 1, "op": "é" * 127})
    answer = peer.read()
    assert answer is not None
    assert answer["error"]["code"] == "unsupported"
    assert len(fields_of.text(answer["error"], "text").encode()) in {254, 255}


def test_stopping_one_that_has_ended(tmp_path: Path) -> None:
    """A second signal comes while the guest's memory is given back."""
    server = HolderServer(tmp_path / "holder", HolderEngine(FakeHeld()))
    server.stop()
    server.serve()
    server.stop()


@pytest.mark.parametrize("failing", ["__init__", "close"])
def test_no_failure_of_a_connection_ends_the_guest(
    rig: Rig, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """[HOL-10]: neither while it is made nor while it is closed."""
    real = getattr(holder_connection.Connection, failing)

    def fail(connection: holder_connection.Connection, *arguments: Any, **more: Any) -> None:
        monkeypatch.undo()
        real(connection, *arguments, **more)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(holder_connection.Connection, failing, fail)
    peer = rig.peer()
    with contextlib.suppress(BrokenPipeError):
        peer.socket.sendall(b"\xff" * 4)
    while peer.read() is not None:
        pass
    assert rig.state() == "running"
    assert "RuntimeError" in caplog.text


def test_shutdown_ends_the_holder(rig: Rig) -> None:
    """[HOL-31]"""
    peer = rig.peer()
    peer.attach()
    assert peer.ask("shutdown") == {}
    rig.thread.join(WITHIN_S)
    assert not rig.thread.is_alive()
    assert rig.guest.calls[-1] == "close"


def test_a_released_guest_ends_the_holder_when_its_controller_goes(rig: Rig) -> None:
    """[HOL-23]"""
    peer = rig.peer()
    peer.attach()
    for operation in ("pause", "grant", "release"):
        peer.ask(operation, epoch=5)
    assert rig.state() == "released"
    peer.close()
    rig.thread.join(WITHIN_S)
    assert not rig.thread.is_alive()


def test_the_holder_ends_with_its_parent(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    parent = Pidfd.open(process.pid)
    engine = HolderEngine(FakeHeld(), state=HeldState.RUNNING, epoch=1)
    with serving(tmp_path / "holder", engine, parent) as thread:
        process.kill()
        process.wait()
        thread.join(WITHIN_S)
        assert not thread.is_alive()
    parent.close()


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    engine = HolderEngine(FakeHeld())
    for path in (tmp_path / "none" / "holder", tmp_path / ("x" * 200)):
        with pytest.raises(GuestError, match="cannot listen"):
            HolderServer(path, engine)
    engine.close()
