"""What the two endpoints have in common: one connection after the other, a pump for each, and one result.

They put together what the layers below keep apart: a machine, a transport, a guest. What a host decides (who
may come, what is recorded, who has claimed what) comes in as a `Host` (`sterna.net.hosting`). Embedders use
`sterna.net.source` and `sterna.net.destination`.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.core.events import Request, Result
from sterna.core.session import Session
from sterna.errors import LocalProtocolError
from sterna.net.hosting import Host, LocalHost
from sterna.net.options import Options, limiter
from sterna.net.pump import OnEvent, Perform, Pump, Shown, Task
from sterna.net.transport import Transport
from sterna.registry import ErrorCode


class Endpoint:
    """One side of one session.

    Attributes:
        result: how it ended, None until then. It is there, too, if `run` was cancelled from outside.
        transport: the newest connection.
    """

    def __init__(self, transport: Transport, host: Host | None, options: Options | None) -> None:
        self.result: Result | None = None
        self.transport = transport
        self._host = host or LocalHost()
        options = options or Options()
        # By itself: what this side has to learn of events does not end with it.
        on_event = Shown(options.on_event)
        # What is recorded, say, cannot be given to another process, nor what that would send be recorded.
        early = options.early_pages and transport.gives_socket
        self._options = replace(options, on_event=on_event, early_pages=early)
        self._pump: Pump | None = None
        self._cancelled: str | None = None
        self._passed_before = (0, 0)

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that were sent and received so far, on all connections."""
        sent, received = self._passed_before
        now = (0, 0) if self._pump is None else self._pump.passed
        return sent + now[0], received + now[1]

    def cancel(self, reason: str = "") -> None:
        """Ask for the end: before HANDOVER may have left the guest stays at the source [CON-71] [CON-72].

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        if self._pump is not None:
            self._pump.cancel(reason)
        self._cancelled = reason

    def _check_first(self) -> None:
        """Raises LocalProtocolError, INTERNAL, the second time."""
        if self._pump is not None:
            raise LocalProtocolError(ErrorCode.INTERNAL, "an endpoint is for one session: run() comes once")

    def _pump_of(
        self,
        machine: Session,
        perform: Perform,
        on_event: OnEvent,
        *beside: Task,
    ) -> Pump:
        """For the present connection; the clocks of a session begin to run. `beside`: see `Pump`."""
        options, self._passed_before = self._options, self.passed
        self._pump = Pump(
            machine,
            self.transport,
            self._told_of(perform),
            on_event=on_event,
            limiter=limiter(options),
            clock=options.clock,
            beside=beside,
        )
        if self._cancelled is not None:
            self._pump.cancel(self._cancelled)
        return self._pump

    def _told_of(self, perform: Perform) -> Perform:
        on_request = self._options.on_request

        async def told(request: Request) -> object:
            on_request(request, done=False)
            answer = await perform(request)
            on_request(request, done=True)
            return answer

        return told
