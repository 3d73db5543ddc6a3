"""How `sterna migrate` goes on with a guest that an earlier process has handed over, and not seen to its end.

The guest runs at the destination. It may wait there for pages that only this host's image has, and where it
lacks none the image may be free, and nobody has heard of it. In both cases the session is taken up again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from sterna.cli.endpoint import Ending, Recording
from sterna.cli.events import connection_fields
from sterna.cli.follow import Reporter
from sterna.cli.taking_up import dial_peer
from sterna.core.events import Result
from sterna.core.records import SessionRecord
from sterna.errors import TransportError
from sterna.guest.holder_client import HolderConnection
from sterna.host.agent import PeerListHost
from sterna.host.departures import departure_of
from sterna.host.evidence import Evidence
from sterna.host.held import DepartingGuest
from sterna.host.recovery import Recovered
from sterna.net.connect import Address
from sterna.net.options import Options
from sterna.net.redial import redial
from sterna.net.source import Source
from sterna.net.tls import TlsConfig
from sterna.net.transport import Peer, Transport
from sterna.registry import Feature, Owner

TOO_LATE: Final = (
    "too late to cancel: the guest has been handed over, wait for the end. Who ends this command all the "
    "same runs it again: pages that the guest waits for may be only here"
)


@dataclass(frozen=True, slots=True)
class ServingOn:
    """One try.

    Attributes:
        address: where the destination may be found now; then where it was.
        tls: this host's certificate; None for plaintext.
        options: of the endpoint.
        recording: what is recorded of the connections.
        reporter: told of what is done.
        ending: who asks for the end is told that it is too late.
    """

    address: Address
    tls: TlsConfig | None
    options: Options
    recording: Recording
    reporter: Reporter
    ending: Ending

    async def of(
        self,
        recovered: Recovered,
        connection: HolderConnection,
        host: PeerListHost,
        evidence: Evidence | None = None,
    ) -> tuple[DepartingGuest, Transport, Result] | None:
        """Send it what it lacks, and free its image.

        Returns:
            How that ended. None where the guest is not the destination's, or nothing can be done for it here.

        Raises:
            TransportError: it may lack pages, and its destination does not answer.
        """
        owns = recovered.judgement.owner is Owner.DESTINATION
        if not owns or (await connection.status()).state != "granted":
            return None
        guest, session = await DepartingGuest.open(connection), recovered.session
        assert isinstance(guest, DepartingGuest)
        guest.evidence = evidence
        departure = await departure_of(guest, session.session)
        if departure is None:
            return None
        reconnect, peer = partial(self._dial, session), Peer(session.address, session.peer or None)
        try:
            transport = await redial(reconnect, peer, departure.ticket.selection.features[Feature.RESUME])
        except TransportError as error:
            if not departure.image.stale.any():
                return None  # it has all of its pages
            detail = "it owns the guest, and pages that it may lack are only here: keep this holder"
            raise TransportError(error.code, f"{error}; {detail}, and run this command again") from error
        lacks = "it is sent what it lacks" if departure.image.stale.any() else "it lacks nothing there"
        epoch = recovered.judgement.epoch
        self.reporter.say(f"this guest is owned by {transport.peer} already, under epoch {epoch}; {lacks}")
        async with host.session(transport.peer, session.address, guest.description.id) as records:
            source = Source(
                guest,
                transport,
                epoch=session.epoch,
                runner=departure.ticket.hello.runner,
                host=records,
                options=self.options,
                reconnect=reconnect,
            )
            before, self.ending.ask = self.ending.ask, self._say_late
            result = await source.serve_on(departure)
            self.ending.ask = before
        return guest, transport, result

    def _say_late(self, _: str) -> None:
        self.ending.late = True
        self.reporter.notice(TOO_LATE)

    async def _dial(self, session: SessionRecord) -> Transport:
        transport = await dial_peer(session, self.tls, (self.address,))
        self.reporter.emit({"event": "connected", **connection_fields(transport)})
        return self.recording.wrap(transport)
