"""Sterna: an open live-migration protocol.

What an embedder needs is here by name; `sterna.testing` has the conformance check for guests of one's own.
Names are loaded when they are first used, so that ``import sterna`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sterna.core.deadlines import Deadlines
    from sterna.core.events import Outcome, Result
    from sterna.core.policy import PolicySettings
    from sterna.errors import ConfigError, GuestError, SternaError, TransportError
    from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest, WithoutPostCopy
    from sterna.guest.embedded import EmbeddedGuest
    from sterna.host.agent import PeerListHost
    from sterna.host.first_claim import claim_first
    from sterna.host.open_store import open_store
    from sterna.host.peers import PeerList
    from sterna.host.records_shelf import RecordsShelf
    from sterna.limits import Limits
    from sterna.memory.bitmap import PageBitmap
    from sterna.net.connect import Address, connect
    from sterna.net.destination import Destination
    from sterna.net.hosting import Host, LocalHost
    from sterna.net.kept import Sessions
    from sterna.net.listen import listen
    from sterna.net.memory import memory_transport_pair
    from sterna.net.options import Compress, Options
    from sterna.net.source import Source
    from sterna.net.tls import TlsConfig
    from sterna.net.transport import Transport
    from sterna.registry import ErrorCode
    from sterna.wire.records import PageRange, Region, Runner, StateSection

_HOMES: Final = {
    "sterna.core.deadlines": ("Deadlines",),
    "sterna.core.events": ("Outcome", "Result"),
    "sterna.core.policy": ("PolicySettings",),
    "sterna.errors": ("ConfigError", "GuestError", "SternaError", "TransportError"),
    "sterna.guest.api": ("DestinationGuest", "GuestDescription", "SourceGuest", "WithoutPostCopy"),
    "sterna.guest.embedded": ("EmbeddedGuest",),
    "sterna.host.agent": ("PeerListHost",),
    "sterna.host.first_claim": ("claim_first",),
    "sterna.host.open_store": ("open_store",),
    "sterna.host.peers": ("PeerList",),
    "sterna.host.records_shelf": ("RecordsShelf",),
    "sterna.limits": ("Limits",),
    "sterna.memory.bitmap": ("PageBitmap",),
    "sterna.net.connect": ("Address", "connect"),
    "sterna.net.destination": ("Destination",),
    "sterna.net.hosting": ("Host", "LocalHost"),
    "sterna.net.options": ("Compress", "Options"),
    "sterna.net.source": ("Source",),
    "sterna.net.kept": ("Sessions",),
    "sterna.net.listen": ("listen",),
    "sterna.net.memory": ("memory_transport_pair",),
    "sterna.net.tls": ("TlsConfig",),
    "sterna.net.transport": ("Transport",),
    "sterna.registry": ("ErrorCode",),
    "sterna.wire.records": ("PageRange", "Region", "Runner", "StateSection"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Address",
    "Compress",
    "ConfigError",
    "Deadlines",
    "Destination",
    "DestinationGuest",
    "EmbeddedGuest",
    "ErrorCode",
    "GuestDescription",
    "GuestError",
    "Host",
    "Limits",
    "LocalHost",
    "Options",
    "Outcome",
    "PageBitmap",
    "PageRange",
    "PeerList",
    "PeerListHost",
    "PolicySettings",
    "RecordsShelf",
    "Region",
    "Result",
    "Runner",
    "Sessions",
    "Source",
    "SourceGuest",
    "StateSection",
    "SternaError",
    "TlsConfig",
    "Transport",
    "TransportError",
    "WithoutPostCopy",
    "claim_first",
    "connect",
    "listen",
    "memory_transport_pair",
    "open_store",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'sterna' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
