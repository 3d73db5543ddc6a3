"""A place at which an endpoint stops itself, so that a fault can be put there and nowhere else.

For tests of what becomes of a migration: a signal that was sent "in the blackout" by a sleep arrives a little
before it or after it, and the moments that matter are shorter than that. With

    STERNA_STOP="after Persist:Granted"

in its environment, `sterna serve` or `sterna migrate` sends itself SIGSTOP right after its first request of
that kind has been carried out (`before`: right before it is). Whoever started it waits for that by
`waitid(WSTOPPED)`, does what there is to do, and sends SIGCONT, or SIGKILL. Requests are those of
sterna.core.events; behind a colon stands which record is meant, in the words of sterna.core.records, and
`last` for the question to the store that the guest waits for. Acts of a source's recovery are places as well:
those of sterna.core.recovery, like `before RunHere` or `before Note:RunnerRecord`.

It stops once in a process. So that it comes to what follows from a failure, too,

    STERNA_FAIL="TakeStorage"

makes its first request of that kind fail without being carried out. Without these variables nothing is
different.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from typing import Final, Protocol

from sterna.core.events import Persist, ProbeStore, Request
from sterna.core.recovery import Act, Note
from sterna.errors import ConfigError, GuestError
from sterna.net.options import ignore_request

VARIABLE: Final = "STERNA_STOP"
FAILS: Final = "STERNA_FAIL"

_PLACE: Final = re.compile(r"(before|after) ([A-Za-z]+(?::[A-Za-z]+)?)")
_REQUEST: Final = re.compile(r"[A-Za-z]+(?::[A-Za-z]+)?")


class Failpoint(Protocol):
    """An `OnRequest` of sterna.net.options, and an `OnAct` of sterna.host.recovery."""

    def __call__(self, request: Request | Act, /, *, done: bool) -> None:
        """Called before it is carried out, and again when it has been."""
        ...


def failpoint(environment: Mapping[str, str] = os.environ) -> Failpoint:
    """What an endpoint shall call around each of its requests, and of its recovery's acts.

    Raises:
        ConfigError: the variable does not name a place.
    """
    place, fails = environment.get(VARIABLE), environment.get(FAILS)
    if place is None and fails is None:
        return ignore_request
    stop = _PLACE.fullmatch(place or "")
    if place is not None and stop is None:
        raise ConfigError(f'{VARIABLE}={place!r}: say "before REQUEST" or "after REQUEST"')
    if fails is not None and _REQUEST.fullmatch(fails) is None:
        raise ConfigError(f"{FAILS}={fails!r}: say REQUEST")
    return _Failpoint(stop[1] if stop else "", stop[2] if stop else "", fails or "")


class _Failpoint:
    def __init__(self, when: str, stops: str, fails: str) -> None:
        self._when = when
        self._stops = stops
        self._fails = fails

    def __call__(self, request: Request | Act, /, *, done: bool) -> None:
        name = name_of(request)
        if name == self._stops and done is (self._when == "after"):
            self._stops = ""
            os.kill(os.getpid(), signal.SIGSTOP)
        if name == self._fails:
            self._fails = ""
            raise GuestError(f"{FAILS}={name}")


def name_of(request: Request | Act) -> str:
    """As the variable has it: `Pause`, `Persist:Granted`, or `ProbeStore:last`."""
    name = type(request).__name__
    match request:
        case Persist(record=record) | Note(record=record):
            return f"{name}:{type(record).__name__}"
        case ProbeStore(last=True):
            return f"{name}:last"
        case _:
            return name
