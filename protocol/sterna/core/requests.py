"""Requests on their way to the driver and back: asked for, taken, answered, each in its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sterna.core.events import Request
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode


class RequestQueue:
    """The requests of one machine. Iterating gives those that nobody has taken yet."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self._taken: deque[Request] = deque()

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting)

    def __bool__(self) -> bool:
        """Whether there are any that nobody has taken yet."""
        return bool(self._waiting)

    @property
    def prompt(self) -> Request | None:
        """What `take` gives next, if all that it gave is answered."""
        return self._waiting[0] if self._waiting and not self._taken else None

    @property
    def taken(self) -> tuple[Request, ...]:
        """Those that the driver has taken and not answered, in the order in which it must."""
        return tuple(self._taken)

    def ask(self, request: Request) -> None:
        """Have something done."""
        self._waiting.append(request)

    def take(self) -> Request | None:
        """The next one that the driver has to carry out."""
        if not self._waiting:
            return None
        self._taken.append(self._waiting.popleft())
        return self._taken[-1]

    def check_turn(self, request: Request) -> None:
        """Answers come in the order of the requests, each once.

        Raises:
            LocalProtocolError: this is not the next one to be answered.
        """
        if not self._taken or request is not self._taken[0]:
            detail = f"{type(request).__name__} is not the next request to be answered"
            raise LocalProtocolError(ErrorCode.INTERNAL, detail)

    def answered(self, request: Request) -> None:
        """The driver has answered. Raises what `check_turn` raises."""
        self.check_turn(request)
        self._taken.popleft()

    def withdraw(self) -> None:
        """Nothing of what nobody has taken is wanted any more."""
        self._waiting.clear()
