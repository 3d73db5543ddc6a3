"""Versions of package and protocol, which are not the same thing."""

from __future__ import annotations

from importlib.metadata import version

from sterna.registry import ALPN


def versions() -> dict[str, object]:
    """The versions as fields of a command's JSON object."""
    return {"version": version("sterna"), "protocol": ALPN}


def version_line() -> str:
    """What `sterna --version` prints."""
    return f"sterna {version('sterna')}, protocol {ALPN}"
