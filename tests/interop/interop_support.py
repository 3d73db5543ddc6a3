"""Shims that misbehave, as programs of a few lines; they start in a few hundredths of a second."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sterna_interop.contract import Params, Role
from sterna_interop.credentials import Credentials
from sterna_interop.guest import GuestSpec
from sterna_interop.implementations import Implementation
from sterna_interop.runner import Settings

# What every honest shim begins with: read the parameters, dial, show the token.
BEGIN = """
import json, os, socket, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
told = json.load(open(arguments["--params"]))
result = os.path.join(arguments["--out"], "result.json")
if told["order"]["do"].startswith("unknown"):
    sys.exit(89)
host, port = told["connect"].rsplit(":", 1)
def dial():
    sock = socket.create_connection((host, int(port)))
    sock.sendall(bytes.fromhex(told["token"]))
    sock.recv(1)
    return sock
def say(**fields):
    open(result, "w").write(json.dumps({"schema": 1, **fields}))
"""


def shim(code: str) -> tuple[str, ...]:
    """The command of a shim that runs `code` after `BEGIN`."""
    return sys.executable, "-I", "-c", BEGIN + code


def implementation(code: str, name: str = "mine") -> Implementation:
    return Implementation(name, shim(code))


def params(role: Role = Role.SOURCE) -> Params:
    return Params(case="test-001", role=role, connect="", token=b"", guest=GuestSpec())


def settings(directory: Path) -> Settings:
    """Without certificates: nothing here speaks TLS."""
    return Settings(directory / "cases", Credentials(directory / "none"))


def report_of(directory: Path) -> dict[str, object]:
    document = json.loads((directory / "report.json").read_text())
    assert isinstance(document, dict)
    return document
