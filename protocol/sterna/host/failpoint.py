"""A place at which an endpoint stops itself, so that a fault can be put there and nowhere else.

For tests of what becomes of a migration: a signal that was sent "in the blackout" by a sleep arrives a little
before it or after it, and the moments that matter are shorter than that. With

    STERNA_STOP="after Persist:Granted"

in its environment, `sterna serve` or `sterna migrate` sends itself SIGSTOP right after its first request of
that kind has been carried out (`before`: right before it is). Whoever started it waits for that by
`waitid(WSTOPPED)`, does what there is to do, and sends SIGCONT, or SIGKILL. Requests are those of
sterna.core.events; behind a colon stands which record is meant, in the words of sterna.core.records, and
`last` for the question to the store that the guest waits for.

It stops once in a process. Without the variable nothing is different.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from typing import Final

from sterna.core.events import Persist, ProbeStore, Request
from sterna.errors import ConfigError
from sterna.net.options import OnRequest, ignore_request

VARIABLE: Final = "STERNA_STOP"

_PLACE: Final = re.compile(r"(before|after) ([A-Za-z]+(?::[A-Za-z]+)?)")


def failpoint(environment: Mapping[str, str] = os.environ) -> OnRequest:
    """What an endpoint shall call around each of its requests.

    Raises:
        ConfigError: the variable does not name a place.
    """
    text = environment.get(VARIABLE)
    if text is None:
        return ignore_request
    place = _PLACE.fullmatch(text)
    if place is None:
        raise ConfigError(f'{VARIABLE}={text!r}: say "before REQUEST" or "after REQUEST"')
    return _Failpoint(after=place[1] == "after", name=place[2])


class _Failpoint:
    def __init__(self, *, after: bool, name: str) -> None:
        self._after = after
        self._name = name
        self._passed = False

    def __call__(self, request: Request, *, done: bool) -> None:
        if not self._passed and done is self._after and name_of(request) == self._name:
            self._passed = True
            os.kill(os.getpid(), signal.SIGSTOP)


def name_of(request: Request) -> str:
    """As the variable has it: `Pause`, `Persist:Granted`, or `ProbeStore:last`."""
    name = type(request).__name__
    match request:
        case Persist(record=record):
            return f"{name}:{type(record).__name__}"
        case ProbeStore(last=True):
            return f"{name}:last"
        case _:
            return name
