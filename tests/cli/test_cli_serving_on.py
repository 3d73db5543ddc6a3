"""A guest that another process has handed over. That it is served on is tested with real ones: tests/e2e."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from departure_support import SESSION, TOKEN, departure
from holder_support import holder
from sterna.cli import serving_on
from sterna.cli.endpoint import Ending, Recording
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.cli.serving_on import ServingOn
from sterna.core.events import Outcome, Result
from sterna.core.records import Decided, Granted, SessionRecord, Side
from sterna.core.verdict import Judgement, Step
from sterna.errors import TransportError
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_guests import HolderSourceGuest
from sterna.host.agent import PeerListHost
from sterna.host.records_shelf import RecordsShelf
from sterna.host.recovery import Recovered
from sterna.memory.regions import RegionTable
from sterna.net.connect import Address
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Owner, Style

NOWHERE = Address("127.0.0.1", 1)
RECORD = SessionRecord(SESSION, 1, Side.SOURCE, TOKEN, "", str(NOWHERE))


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[HolderConnection]:
    """A controller's connection to a guest that was handed over."""
    with holder(tmp_path / "here", with_guest=True):
        async with await connect_holder(tmp_path / "here") as connection:
            await connection.call("pause")
            await connection.call("grant", {"epoch": 2})
            yield connection


def recovered(owner: Owner = Owner.DESTINATION) -> Recovered:
    return Recovered(RECORD, Judgement(owner, "START is recorded", "ONE-45", Step.FREE, 2))


async def served_on(connection: HolderConnection, end: Recovered, host: PeerListHost | None = None) -> object:
    return await serving(Ending(trio.CancelScope())).of(end, connection, host or PeerListHost("host-a", None))


def serving(ending: Ending) -> ServingOn:
    options, reporter = Options(on_event=lambda _: None), Reporter(Output(json=True))
    return ServingOn(NOWHERE, None, options, Recording(), reporter, ending)


async def note(connection: HolderConnection, style: Style) -> None:
    guest = await HolderSourceGuest.open(connection)
    noted = departure(RegionTable(guest.description.regions), style)
    noted.write(await guest.notes(noted.size_bytes))


async def test_without_notes_there_is_nothing_to_go_on_with(frozen: HolderConnection) -> None:
    assert await served_on(frozen, recovered()) is None


@pytest.mark.parametrize("owner", [Owner.SOURCE, Owner.UNDECIDED])
async def test_a_guest_that_is_nobody_else_s_is_not_served(frozen: HolderConnection, owner: Owner) -> None:
    """[ONE-47] In doubt it stays as it is."""
    await note(frozen, Style.POST_COPY)
    assert await served_on(frozen, recovered(owner)) is None


async def test_an_image_that_is_gone_is_not_served(frozen: HolderConnection) -> None:
    await frozen.call("release")
    assert await served_on(frozen, recovered()) is None


async def test_what_is_decided_is_in_the_guest_s_records(
    frozen: HolderConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[ONE-53] [RES-19] With a store nobody has noted it before: the grant would stay open.

    Whoever wishes to cancel meanwhile is too late [CON-72].
    """
    ending = Ending(trio.CancelScope())
    await note(frozen, Style.POST_COPY)
    decision, near = Decided(SESSION, 2, Owner.DESTINATION), memory_transport_pair()[0]
    end = Result(Outcome.COMPLETED)

    async def answers(*_: object) -> Transport:
        return near

    async def serve_on(source: Source, _: object) -> Result:
        ending.end("SIGINT")
        await source._host.persist(decision)
        return end

    monkeypatch.setattr(serving_on, "redial", answers)
    monkeypatch.setattr(Source, "serve_on", serve_on)
    host = PeerListHost("host-a", None, shelf=RecordsShelf(tmp_path / "records"))
    async with host.shelf.opened((await HolderSourceGuest.open(frozen)).description.id) as keeper:
        assert keeper is not None
        for record in (RECORD, Granted(SESSION, 2)):
            await keeper.append(record)
        served = await serving(ending).of(recovered(), frozen, host)
        assert isinstance(served, tuple)
        assert served[1:] == (near, end)
        assert keeper.history.decision(SESSION) == decision
        assert keeper.history.open_grant() is None
    assert (ending.late, ending.interrupted) == (True, False)


@pytest.mark.slow
async def test_a_destination_that_does_not_answer(frozen: HolderConnection) -> None:
    """[RES-19] [ONE-38] It may wait for pages: that is said, and the image is kept."""
    await note(frozen, Style.POST_COPY)
    with pytest.raises(TransportError, match="keep this holder, and run this command again") as caught:
        await served_on(frozen, recovered())
    assert caught.value.code is ErrorCode.CONNECTION_LOST
    assert (await frozen.status()).state == "granted"


@pytest.mark.slow
async def test_a_destination_that_does_not_answer_and_lacks_nothing(frozen: HolderConnection) -> None:
    """[ONE-38] Nothing hangs on it but the memory of the image."""
    await note(frozen, Style.STOP_AND_COPY)
    assert await served_on(frozen, recovered()) is None
    assert (await frozen.status()).state == "granted"
