"""Etcd for tests: the real server as a process, and a small one in the test's own event loop.

The small one passes the same check as the real one, runs everywhere, and can be told to give wrong answers.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import trio

from sterna.host.etcd import EtcdAccess

_LOOKS = 3000
_LOOK_EVERY_S = 0.01
_LOG_LINES_SHOWN = 20


# Below what the kernel gives to connections, for one of these may take a port between looking and listening,
# or while a server that was killed is not up again.
_TAKEN = itertools.count()
_PORTS_APART = 997  # where another run begins to look


def free_port() -> int:
    """A port of the loopback that nobody has at this moment, another one at each call."""
    while True:
        port = 20_000 + (next(_TAKEN) + os.getpid() * _PORTS_APART) % 10_000
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class EtcdProcess:
    """A server on the loopback, its data and its log in a directory of the test's.

    Args:
        directory: an empty one, or one that a server has left.
        options: more of etcd's own.
        scheme: of the clients' side.
        member: its name in a cluster.
        peers: the address of each member for the others; by default it is alone.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        scheme: str = "http",
        member: str = "alone",
        peers: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self._log = directory / "log"
        peers = peers or {member: f"http://127.0.0.1:{free_port()}"}
        client, peer = f"{scheme}://127.0.0.1:{self.port}", peers[member]
        self._command = [
            "etcd", "--name", member, "--data-dir", os.fspath(directory / "data"), "--log-level", "warn",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", ",".join(f"{name}={url}" for name, url in peers.items()),
            "--heartbeat-interval", "10", "--election-timeout", "100", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """As `open_store` takes it."""
        return f"etcd://127.0.0.1:{self.port}"

    @property
    def access(self) -> EtcdAccess:
        """As `EtcdLeaseStore` takes it."""
        return EtcdAccess((("127.0.0.1", self.port),))

    def start(self) -> None:
        """Start it, for the first time or after `kill`. It listens when this returns."""
        self.launch()
        self.wait_until_it_listens()

    def launch(self) -> None:
        """The first half of `start`: members of a cluster listen only when there are enough of them."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_it_listens(self) -> None:
        """The other half."""
        assert self._process is not None
        for _ in range(_LOOKS):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_EVERY_S)
                break
        tail = "\n".join(self._log.read_text().splitlines()[-_LOG_LINES_SHOWN:])
        raise AssertionError(f"etcd does not come up:\n{tail}")

    def kill(self) -> None:
        """SIGKILL: what was not synced is lost, if the machine's cache is too."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: what has come meanwhile is worked off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def etcd(directory: Path, *options: str, scheme: str = "http") -> Iterator[EtcdProcess]:
    """A running server."""
    server = EtcdProcess(directory, *options, scheme=scheme)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def etcd_cluster(directory: Path, count: int) -> Iterator[list[EtcdProcess]]:
    """So many members of one cluster."""
    peers = {f"m{number}": f"http://127.0.0.1:{free_port()}" for number in range(count)}
    members = []
    for name in peers:
        (directory / name).mkdir()
        members.append(EtcdProcess(directory / name, member=name, peers=peers))
    try:
        for member in members:
            member.launch()
        for member in members:
            member.wait_until_it_listens()
        yield members
    finally:
        for member in members:
            member.kill()


Row = dict[str, str]
Answer = dict[str, object]


class SmallEtcd:
    """As much of the gateway as a lease store uses, with the answers' texts as etcd 3.4 gives them.

    Attributes:
        rows: key -> row, both as the gateway has them.
        spoil: changes an answer on its way out; bytes are sent as they are, as the whole HTTP response.
        requests: the paths that were asked for.
        asked: set when the first request has come.
        watched: set when somebody watches a key.
        password: what authentication takes; None if it is off.
        token: what it gives, None for a good one.
        hang_up: close connections behind an answer.
        drip: send an answer, and then single bytes for as long as somebody reads.
        hung_up: set when the reader of a dripping answer has gone.
        connections: how many were made.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.cluster = "324952591200643719"
        self.revision = 1
        self.rows: dict[bytes, Row] = {}
        self.spoil: Callable[[Answer], Answer | bytes] = lambda answer: answer
        self.requests: list[str] = []
        self.password: str | None = None
        self.token: str | None = None
        self.tokens: set[str] = set()
        self.hang_up = False
        self.drip = False
        self.hung_up = trio.Event()
        self.connections = 0
        self.asked = trio.Event()
        self.watched = trio.Event()
        self._changed = trio.Event()

    @property
    def access(self) -> EtcdAccess:
        """As `EtcdLeaseStore` takes it."""
        return EtcdAccess((("127.0.0.1", self.port),))

    def put(self, key: bytes, value: bytes) -> None:
        """Write a key, in the place of what it has."""
        self.revision += 1
        now = str(self.revision)
        old = self.rows.get(key, {"create_revision": now, "version": "0"})
        self.rows[key] = {
            "key": base64.b64encode(key).decode(),
            "create_revision": old["create_revision"],
            "mod_revision": now,
            "version": str(int(old["version"]) + 1),
            "value": base64.b64encode(value).decode(),
        }
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        self.connections += 1
        data = b""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                while b"\r\n\r\n" not in data:
                    piece = await stream.receive_some()
                    if not piece:
                        return
                    data += piece
                head, data = data.split(b"\r\n\r\n", 1)
                lines = head.decode().split("\r\n")
                fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
                while len(data) < int(fields["content-length"]):
                    data += await stream.receive_some()
                body, data = data[: int(fields["content-length"])], data[int(fields["content-length"]) :]
                path = lines[0].split(" ")[1]
                self.requests.append(path)
                self.asked.set()
                if path == "/v3/watch":
                    await self._watch(stream, json.loads(body)["create_request"])
                    return
                await stream.send_all(self._respond(path, json.loads(body), fields.get("authorization")))
                if self.drip:
                    await self._drip(stream)
                if self.hang_up or self.drip:
                    return

    async def _drip(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_the_end, stream, nursery.cancel_scope)
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.005)
        self.hung_up.set()

    async def _wait_for_the_end(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
        scope.cancel()

    def _respond(self, path: str, body: Answer, token: str | None) -> bytes:
        if path == "/v3/auth/authenticate":
            if body.get("password") != self.password:
                return response(
                    400, {"error": "etcdserver: authentication failed, invalid user ID or password"}
                )
            token = self.token or f"token.{len(self.requests)}"
            self.tokens.add(token)
            return response(200, {"header": self._header(), "token": token})
        if self.password is not None and token not in self.tokens:
            return response(401, {"error": "etcdserver: invalid auth token", "code": 16})
        answer = self._transaction(body) if path == "/v3/kv/txn" else self._range(body)
        spoilt = self.spoil({"header": self._header(), **answer})
        return spoilt if isinstance(spoilt, bytes) else response(200, spoilt)

    def _header(self) -> Row:
        return {
            "cluster_id": self.cluster,
            "member_id": "1",
            "revision": str(self.revision),
            "raft_term": "2",
        }

    def _range(self, body: Answer) -> Answer:
        first = base64.b64decode(str(body["key"]))
        end = base64.b64decode(str(body.get("range_end", ""))) or first + b"\0"
        found = [row for key, row in sorted(self.rows.items()) if first <= key < end]
        if not found:
            return {}
        shown = found[-1:] if body.get("limit") == "1" else found
        return {"kvs": shown, "count": str(len(found))}

    def _transaction(self, body: dict[str, list[dict[str, dict[str, str]]]]) -> Answer:
        def holds(compare: dict[str, str]) -> bool:
            made = self.rows.get(base64.b64decode(compare["key"]), {}).get("create_revision", "0")
            return {"EQUAL": made == "0", "GREATER": made != "0"}[compare["result"]]

        good = all(holds(compare) for compare in body["compare"])
        responses: list[Answer] = []
        for step in body["success" if good else "failure"]:
            if "request_put" in step:
                put = step["request_put"]
                self.put(base64.b64decode(put["key"]), base64.b64decode(put["value"]))
                responses.append({"response_put": {"header": {"revision": str(self.revision)}}})
            else:
                header = {"header": {"revision": str(self.revision)}}
                responses.append({"response_range": {**header, **self._range(step["request_range"])}})
        return {"responses": responses, **({"succeeded": True} if good else {})}

    async def _watch(self, stream: trio.SocketStream, body: Row) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head.encode() + chunk({"result": {"header": self._header(), "created": True}}))
        key = base64.b64decode(body["key"])
        self.watched.set()
        while key not in self.rows:
            await self._changed.wait()
        await stream.send_all(
            chunk({"result": {"header": self._header(), "events": [{"kv": self.rows[key]}]}})
        )


def response(status: int, answer: object) -> bytes:
    """An HTTP response with this JSON."""
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} So\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(answer: object) -> bytes:
    """A chunk of a streamed response: a line of JSON."""
    body = json.dumps(answer).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(body), body)


@contextlib.asynccontextmanager
async def small_etcd() -> AsyncIterator[SmallEtcd]:
    """A small server that runs."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = SmallEtcd(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()
