"""As much of etcd's API as a lease store needs, by its own HTTP/JSON gateway.

Why no client library: those that are kept speak gRPC on asyncio or on threads, and would bring protobuf and a
C extension for three calls. The gateway is part of every etcd server since 3.4, and http.client in a worker
thread is enough for what a migration asks, a handful of calls. One connection is kept open between them: the
call that counts is made while the guest is paused, and must not wait for a TLS handshake.

The server's answers are hostile until checked. Here their size is bounded, and that they are JSON objects
from the cluster that answered first, whose revision never goes back; what they say of slots is checked by
`sterna.host.lease_etcd`. A call ends within its deadline even if the server sends a byte a minute: the socket
is shut down under the thread that reads from it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from sterna.errors import StoreDamaged, StoreUnavailable

Json: TypeAlias = Mapping[str, object]

_ANSWER_BYTES_MAX: Final = 64 * 1024  # two slots in base64, and what stands around them, many times over
_TEXT_SHOWN: Final = 120
_UNAUTHENTICATED: Final = 401
_OK: Final = 200
_SERVERS_TROUBLE: Final = 500
_THREADS: Final = 8  # an endpoint
_WATCHES: Final = 64
_U64_DIGITS: Final = 20
# A ValueError comes of a chunk with a negative length, and of a host that can be no name.
_TROUBLE: Final = (OSError, http.client.HTTPException, ValueError)


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """Where an etcd cluster is, and how to be let in.

    Attributes:
        endpoints: host and port of members; all of one cluster. The first that answers is kept.
        tls: None for plain TCP. A client certificate is the context's business.
        user: for etcd's own authentication; empty if it is off. (The gateway does not take a certificate's
            common name for a user, as etcd's gRPC does.)
        password: the user's.
    """

    endpoints: tuple[tuple[str, int], ...]
    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes


class _Exchange:
    """One request on one connection. `run` is called in a worker thread, `abort` from anywhere.

    Whichever comes last closes the connection: an answer that nobody waits for any more must not leave
    it open.
    """

    def __init__(self, connection: http.client.HTTPConnection, path: str, body: bytes, token: str) -> None:
        self.connection = connection
        self._path = path
        self._body = body
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = token
        self._lock = threading.Lock()
        self._aborted = False
        self._done = False

    def run(self) -> _Reply:
        """The whole answer. The connection is closed unless it can be used again."""
        keep = False
        try:
            response = self._send()
            with response:
                reply = _Reply(response.status, response.read(_ANSWER_BYTES_MAX + 1))
                keep = response.isclosed() and not response.will_close
        finally:
            self._end(keep=keep)
        return reply

    def run_until_event(self) -> None:
        """Read a stream of answers until one tells of an event, or the stream ends."""
        try:
            response = self._send()
            with response:
                while line := response.readline(_ANSWER_BYTES_MAX + 1):
                    if b'"events"' in line or len(line) > _ANSWER_BYTES_MAX:
                        break
        finally:
            self._end(keep=False)

    def _send(self) -> http.client.HTTPResponse:
        if self.connection.sock is None:
            self.connection.connect()
        if self._aborted:  # while it was connecting; what nobody waits for need not be sent
            raise TimeoutError("given up")
        self.connection.request("POST", self._path, self._body, self._headers)
        return self.connection.getresponse()

    def _end(self, *, keep: bool) -> None:
        with self._lock:
            self._done = True
            if self._aborted or not keep:
                self.connection.close()

    def abort(self) -> None:
        """End what `run` waits for."""
        with self._lock:
            self._aborted = True
            sock: socket.socket | None = self.connection.sock
            if self._done:
                self.connection.close()
            elif sock is not None:
                # Closing would not wake the thread, and ending TLS in good manners would wait for the peer.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class EtcdClient:
    """Calls of an etcd cluster. All raise `StoreUnavailable`, and `StoreDamaged` for another cluster.

    Args:
        access: where and how.
        within_s: a call without an answer for so long is `StoreUnavailable`. Several endpoints share it, so
            that one which hangs does not keep the others from being asked.
    """

    def __init__(self, access: EtcdAccess, within_s: float) -> None:
        self._access = access
        self._within_s = within_s
        self._preferred = 0
        self._idle: http.client.HTTPConnection | None = None
        self._token = ""
        # Each endpoint's own: threads that hang at one that is gone keep nobody from asking another.
        self._threads = tuple(trio.CapacityLimiter(_THREADS) for _ in access.endpoints)
        self._watches = trio.CapacityLimiter(_WATCHES)
        self._cluster = ""
        self._revision = 0

    async def call(self, path: str, body: Json) -> Json:
        """One call, at whichever endpoint answers. Making it twice must do no harm: it may be."""
        floor = self._revision
        try:
            with trio.fail_after(self._within_s):
                answer = await self._authenticated(path, body)
        except trio.TooSlowError:
            raise StoreUnavailable(f"etcd: {self._silence()}; look after the cluster") from None
        self._check_header(answer, floor)
        return answer

    async def wait_for_event(self, body: Json, within_s: float) -> None:
        """Return when a watch tells of something, ends, fails, or after a while: then look for yourself."""
        exchange = _Exchange(
            self._connect(self._preferred, within_s), "/v3/watch", json.dumps(body).encode(), self._token
        )
        try:
            with trio.move_on_after(within_s):
                await trio.to_thread.run_sync(
                    exchange.run_until_event, abandon_on_cancel=True, limiter=self._watches
                )
        except _TROUBLE:
            pass
        finally:
            exchange.abort()

    async def aclose(self) -> None:
        """Close the connection that is kept."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()
        await trio.lowlevel.checkpoint()

    # ---- authentication ----

    async def _authenticated(self, path: str, body: Json) -> Json:
        if self._access.user and not self._token:
            await self._log_in()
        reply = await self._anywhere(path, body)
        if reply.status == _UNAUTHENTICATED and self._access.user:
            await self._log_in()  # tokens end when a server likes
            reply = await self._anywhere(path, body)
        return _parse(reply)

    async def _log_in(self) -> None:
        self._token = ""
        names = {"name": self._access.user, "password": self._access.password}
        token = _parse(await self._anywhere("/v3/auth/authenticate", names)).get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreUnavailable("etcd: the answer to authentication has no token; is this an etcd server?")
        self._token = token

    # ---- endpoints ----

    async def _anywhere(self, path: str, body: Json) -> _Reply:
        """Ask the endpoint that answered last, then the others."""
        count = len(self._access.endpoints)
        failures: list[str] = []
        for number in range(self._preferred, self._preferred + count):
            index = number % count
            host, port = self._access.endpoints[index]
            try:
                reply = await self._ask(index, path, json.dumps(body).encode())
            except _TROUBLE as error:
                failures.append(f"{host}:{port}: {_words(error)}")
                continue
            if reply.status < _SERVERS_TROUBLE:
                self._preferred = index
                return reply
            failures.append(f"{host}:{port}: {_message(reply)}")
        raise StoreUnavailable(f"etcd: {'; '.join(failures)}; look after the cluster")

    async def _ask(self, index: int, path: str, body: bytes) -> _Reply:
        idle, self._idle = self._idle, None
        if idle is not None and index == self._preferred:
            # The server may have closed it meanwhile, which shows only now; repeating the call is harmless.
            with contextlib.suppress(ConnectionError, ssl.SSLError, http.client.HTTPException):
                return await self._exchange(idle, index, path, body)
        elif idle is not None:
            idle.close()
        return await self._exchange(self._connect(index, self._share_s), index, path, body)

    async def _exchange(
        self, connection: http.client.HTTPConnection, index: int, path: str, body: bytes
    ) -> _Reply:
        exchange = _Exchange(connection, path, body, self._token)
        try:
            with trio.fail_after(self._share_s):
                reply = await trio.to_thread.run_sync(
                    exchange.run, abandon_on_cancel=True, limiter=self._threads[index]
                )
        except trio.TooSlowError:
            exchange.abort()
            raise TimeoutError(self._silence()) from None
        except BaseException:
            exchange.abort()
            raise
        self._keep(connection)
        return reply

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        """For the next call; one is enough."""
        if self._idle is None and connection.sock is not None:
            self._idle = connection
        else:
            connection.close()

    def _connect(self, index: int, within_s: float) -> http.client.HTTPConnection:
        host, port = self._access.endpoints[index]
        if self._access.tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=within_s, context=self._access.tls)
        return http.client.HTTPConnection(host, port, timeout=within_s)

    @property
    def _share_s(self) -> float:
        return self._within_s / len(self._access.endpoints)

    def _silence(self) -> str:
        return f"no answer for {self._within_s:g} s"

    # ---- what every answer says ----

    def _check_header(self, answer: Json, floor: int) -> None:
        """One cluster, whose history grows: a restored backup or another cluster is another store."""
        header = answer.get("header")
        if not isinstance(header, dict):
            raise StoreUnavailable("etcd: an answer without a header; is this an etcd server?")
        cluster = str(number(header.get("cluster_id")))
        if cluster != (self._cluster or cluster):
            raise StoreDamaged(
                f"etcd: cluster {cluster} answers, and {self._cluster} did before; use one cluster"
            )
        revision = number(header.get("revision"))
        if revision < floor:
            text = f"etcd: revision {revision} after {floor}: the cluster was put back to an earlier state"
            raise StoreDamaged(f"{text}; find out which claims it has lost")
        self._cluster = cluster
        self._revision = max(self._revision, revision)


def encode(data: bytes) -> str:
    """Bytes as the gateway has them."""
    return base64.b64encode(data).decode()


def decode(text: object) -> bytes:
    """Bytes in an answer; none if there is no such field, as the gateway leaves out what is empty."""
    if text is None:
        return b""
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    raise StoreUnavailable(f"etcd: {_shown(text)} is no base64; is this an etcd server?")


def number(value: object) -> int:
    """A number of 64 bits in an answer; 0 if there is no such field."""
    if value is None:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _U64_DIGITS:
        return int(value)
    raise StoreUnavailable(f"etcd: {_shown(value)} is no number; is this an etcd server?")


def objects(value: object) -> Sequence[Json]:
    """A list of objects in an answer; an empty one if there is no such field."""
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise StoreUnavailable(f"etcd: {_shown(value)} is no list of objects; is this an etcd server?")
    return found


def _parse(reply: _Reply) -> Json:
    if reply.status != _OK:
        raise StoreUnavailable(f"etcd: {_message(reply)}")
    if len(reply.body) > _ANSWER_BYTES_MAX:
        raise StoreUnavailable(
            f"etcd: an answer of more than {_ANSWER_BYTES_MAX} bytes; is this an etcd server?"
        )
    found = _load(reply.body)
    if not isinstance(found, dict):
        raise StoreUnavailable(
            f"etcd: {_shown(reply.body)} is no answer of etcd's gateway; is this its port?"
        )
    return found


def _load(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(reply: _Reply) -> str:
    """What the server says of its trouble, quoted: it is the server's text."""
    found = _load(reply.body[:_ANSWER_BYTES_MAX])
    text = found.get("error", "") if isinstance(found, dict) else reply.body
    return f"HTTP status {reply.status}, {_shown(text)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."


def _words(error: OSError | http.client.HTTPException | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} {error}".strip()
