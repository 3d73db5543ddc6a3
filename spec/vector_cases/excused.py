"""Clauses of chapters 2 to 7 that name an error code and have no vector, with the reason.

A vector is a sequence of bytes with the little that its context says. What depends on the conversation
before (states, attempts, sums, tokens) is tested on the state machines, in tests/core and by the
interoperability kit.
"""

from __future__ import annotations

from typing import Final

_STATE: Final = "depends on the state of the conversation"
_SESSION: Final = "depends on what the session has said before"
_SELECTED: Final = "depends on what was negotiated"
_CONTENT: Final = "about what the bytes of a run decode to, where the frame has been read already"

EXCUSED: Final[dict[str, str]] = {
    "TXT-4": "a length byte cannot say more than 255; it binds who writes",
    "HEL-1": _STATE,
    "HEL-7": "depends on the guest's newest epoch at the destination",
    "WEL-4": "depends on the mode of HELLO",
    "GST-13": _STATE,
    "ACC-3": _SELECTED,
    "ATT-1": _STATE,
    "ATT-3": _SESSION,
    "ATT-5": "depends on numbers of earlier connections",
    "ATT-6": "depends on numbers of earlier connections",
    "BMP-7": _SESSION,
    "BMP-8": _SESSION,
    "RND-3": "a sum over a round",
    "RND-4": "depends on other connections",
    "PGS-13": "pages are rejected, the frame is read (pages/whole-hash-...); the code depends on the state",
    "PGS-15": _SESSION,
    "PGS-16": _CONTENT,
    "PGS-17": _CONTENT,
    "PGS-19": _CONTENT,
    "PGS-23": _SELECTED,
    "PGS-26": _SELECTED,
    "RAK-5": "depends on the round's pages",
    "SWI-1": _SELECTED,
    "SWI-2": _STATE,
    "SWI-3": _SESSION,
    "STA-5": "depends on the fragment before",
    "STA-6": "depends on the guest at the destination",
    "STA-7": "depends on the sections before",
    "STA-8": "depends on the sections before",
    "STA-9": "depends on GUEST",
    "SEA-3": "sums over an attempt",
    "SEA-4": "depends on the memory of both sides",
    "HND-1": _SESSION,
    "HND-2": _SESSION,
    "RUN-1": _SESSION,
    "CMP-1": "depends on the memory of both sides",
    "CMP-3": "depends on the requests before",
    "CMP-4": _SESSION,
    "ABT-1": _STATE,
    "PNG-2": _SESSION,
    "PNG-3": _STATE,
    "PNG-4": _STATE,
    "PRG-1": _SELECTED,
    "END-1": "depends on the frames before; reserved in draft 1",
    "LIM-6": _SESSION,
    "LIM-7": _SESSION,
    "LIM-8": _SESSION,
    "NEG-2": _SELECTED,
    "NEG-4": _SELECTED,
    "NEG-5": _SELECTED,
    "NEG-6": _SELECTED,
    "NEG-7": _SELECTED,
    "NEG-8": _SELECTED,
    "NEG-9": _SELECTED,
}
