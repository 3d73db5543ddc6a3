"""The shim of the minimal endpoint (interop/README.md)."""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
from pathlib import Path
from typing import Any, Final

from sterna_interop.minimal.checks import DEFAULT_LIMITS
from sterna_interop.minimal.codes import NUMBERS, SessionError
from sterna_interop.minimal.connection import Connection, Times
from sterna_interop.minimal.destination import Destination
from sterna_interop.minimal.image import memory_sha256, state_sha256
from sterna_interop.minimal.source import Source

ALPN: Final = "sterna/1-draft.1"
BEHAVED, FAILED, UNSUPPORTED = 0, 1, 89
ORDERS: Final = {
    "source": {"migrate", "cancel"},
    "destination": {"migrate", "refuse", "not_ready", "reject_state"},
}
IDENTITY: Final = re.compile(r"sterna:host:([a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)")

KNOWN: Final = {
    *("schema", "case", "role", "connect", "token", "tls", "guest", "epoch", "runner"),
    *("order", "limits", "deadline_s"),
}

Fields = dict[str, Any]


def main(arguments: list[str]) -> int:
    """One case; the exit code."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    told = json.loads(Path(options["--params"]).read_text())
    if not supported(told):
        return UNSUPPORTED
    host, _, port = told["connect"].rpartition(":")
    try:
        sock = socket.create_connection((host, int(port)), timeout=10)
        sock.sendall(bytes.fromhex(told["token"]))
        if not sock.recv(1):  # the kit's sign that the peer is there
            raise ConnectionError("the kit has closed the connection")
    except OSError as error:
        print(f"minimal: {error}", file=sys.stderr)
        return FAILED
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    report = {"schema": 1, "agent": "minimal", **migrate(sock, told)}
    (Path(options["--out"]) / "result.json").write_text(json.dumps(report))
    return BEHAVED


def supported(told: Fields) -> bool:
    """Whether we know everything in the parameters."""
    order = told["order"]
    return (
        told["schema"] == 1
        and told.keys() <= KNOWN
        and order["do"] in ORDERS.get(told["role"], ())
        and told["limits"].keys() <= DEFAULT_LIMITS.keys()
        and (order["do"] != "refuse" or order["code"] in NUMBERS)
    )


def migrate(sock: socket.socket, told: Fields) -> Fields:
    """One session, and what is to be said of it."""
    wait, sends = told["deadline_s"], "S" if told["role"] == "source" else "D"
    times = Times(wait / 4, wait, wait, wait, wait) if wait else Times()
    error: SessionError | None = None
    try:
        if told["tls"] is not None:
            sock = secure(sock, told, times)
    except SessionError as failure:
        error = failure
        sock.close()
    line = Connection(sock, sends, told["limits"], times)
    side = Source(line, told) if sends == "S" else Destination(line, told["order"], told["limits"])
    if error is None:
        error = run(side, line)
    outcome, guest = judge_source(side, error) if isinstance(side, Source) else judge_destination(side, error)
    kept = side.guest if isinstance(side, Source) else side
    return {
        "outcome": outcome,
        "guest": guest,
        "code": None if outcome == "completed" or error is None else error.code,
        "by_peer": error is not None and error.by_peer and outcome != "completed",
        "epoch": told["epoch"] + side.moved if isinstance(side, Source) else side.epoch,
        "memory": memory_sha256(kept.memory) if kept.memory else None,
        "state": None if kept.sections is None else state_sha256(kept.sections),
        "digest": side.digest.hex(),
        "rounds": side.rounds,
        "bytes_sent": line.sent,
        "bytes_received": line.received,
    }


def run(side: Source | Destination, line: Connection) -> SessionError | None:
    """Why the session failed, None if it did not."""
    try:
        side.run()
    except SessionError as error:
        refuse = isinstance(side, Destination) and side.refusing
        line.abort(error, refuse=refuse)
        return error
    line.close()
    return None


def judge_source(side: Source, error: SessionError | None) -> tuple[str, str]:
    """Outcome, and what is left of the guest here (CON-62, CON-70, ONE-49)."""
    if error is None or side.released:
        return "completed", "none"
    if side.moved:
        return "moved", "none"
    return ("undecided", "paused") if side.granted else ("rolled_back", "running")


def judge_destination(side: Destination, error: SessionError | None) -> tuple[str, str]:
    """Outcome, and what is there of the guest (CON-63, CON-64, CON-70)."""
    if error is None or side.released:
        return "completed", "running"
    if side.running:
        return "moved", "running"
    side.memory, side.sections = {}, None
    return "rolled_back", "none"


def secure(sock: socket.socket, told: Fields, times: Times) -> ssl.SSLSocket:
    """TLS (15): the source is the client, whoever has dialled."""
    files, server = told["tls"], told["role"] == "destination"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.load_cert_chain(files["certificate"], files["key"])
    context.load_verify_locations(files["authority"])
    context.set_alpn_protocols([ALPN])
    if server:
        context.num_tickets = 0
    sock.settimeout(times.handshake)
    try:
        if server and sock.recv(1, socket.MSG_PEEK) not in {b"", b"\x15", b"\x16"}:
            raise SessionError("plain_on_tls", mute=True)
        secured = context.wrap_socket(sock, server_side=server, suppress_ragged_eofs=False)
    except OSError as error:
        reason = getattr(error, "reason", "")
        plain = reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
        raise SessionError("plain_on_tls" if plain else "tls_failed", mute=True) from error
    certificate: Fields = secured.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    found = [name for kind, name in names if kind == "URI" and name.startswith("sterna:host:")]
    match = IDENTITY.fullmatch(found[0]) if len(found) == 1 else None
    if secured.selected_alpn_protocol() != ALPN:
        secured.close()
        raise SessionError("wrong_alpn", mute=True)
    if match is None or ".." in match[1] or match[1] != files["peer"]:
        secured.close()
        raise SessionError("peer_not_listed", mute=True)
    return secured


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
