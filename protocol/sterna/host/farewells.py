"""What is said to a peer that is not let in, before there is an endpoint that could say it.

It learns the code and the code's own words, and no details: they are of this host's files.
"""

from __future__ import annotations

from sterna.errors import TransportError
from sterna.registry import ERRORS, VERSION_DRAFT, VERSION_MAJOR, Phase
from sterna.wire import encode_frame, encode_preface
from sterna.wire.records import Abort, Refuse


def refusal(error: TransportError) -> bytes:
    """What a destination says to a peer that it does not let in: a `Farewell` of `sterna.net.listen`."""
    return _alone(Refuse(error.code, 0, (), ERRORS[error.code].text))


def rejection(error: TransportError) -> bytes:
    """What a source says to a peer that is not whom it expected: a `Farewell` of `sterna.net.connect`."""
    return _alone(Abort(error.code, Phase.HANDSHAKE, 0, 0, 0, ERRORS[error.code].text))


def _alone(record: Refuse | Abort) -> bytes:
    """A connection on which nothing but this is said."""
    preface = encode_preface(VERSION_MAJOR, VERSION_DRAFT)
    return preface + b"".join(bytes(buffer) for buffer in encode_frame(record, 0))
