"""`sterna lease`: look into a lease store, or make one in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from sterna.cli.output import Output
from sterna.cli.units import Json
from sterna.errors import ConfigError

if TYPE_CHECKING:
    from sterna.core.verdict import Slot

app = App(
    name="lease",
    help="Look into a lease store, or make one in files.",
    help_format="markdown",
    version_flags=(),
)

_ID_PREFIX: Final = "id:"
_ID_DIGITS: Final = 32


@app.command
def init(directory: Path, /, *, json: Json = False) -> None:
    """Make a lease store in files, on storage that all hosts share. One that exists is left as it is.

    Args:
        directory: where; made if it does not exist, else empty.
        json: one JSON object on stdout.
    """
    from sterna.host.lease_files import create_file_store

    identity = create_file_store(directory)
    output = Output(json=json)
    output.say(f"Lease store {identity} in {directory}: name this directory on every host that shares it")
    output.result({"store": str(directory), "id": identity})


@app.command
async def show(
    store: str,
    guest: str,
    /,
    *,
    all_slots: Annotated[bool, Parameter(name="--all", negative=(), show_default=False)] = False,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    user: Annotated[str, Parameter(show_default=False)] = "",
    password_file: Path | None = None,
    json: Json = False,
) -> None:
    """Show who may run a guest: the newest slot of its chain. Nothing is changed.

    A store that does not answer ends with the exit code for "undecided": nobody knows then.

    Args:
        store: a directory, or etcd://HOST:PORT, or etcds:// for etcd over TLS.
        guest: its id, 32 hexadecimal digits.
        all_slots: every slot, not only the newest.
        ca: certificates to trust, for etcds.
        certificate: client certificate, for etcds.
        key: its key.
        user: user of etcd's authentication, for etcds.
        password_file: file with the user's password in its first line.
        json: one JSON object on stdout.
    """
    from sterna.core.verdict import Slot
    from sterna.host.open_store import StoreAccess, open_store

    identity = guest_id(guest)
    leases = open_store(store, StoreAccess(ca, certificate, key, user, password_file))
    try:
        newest = await leases.newest(identity)
        slots = [] if newest is None else [newest]
        for epoch in range(newest.epoch - 1, 0, -1) if newest is not None and all_slots else ():
            runner = await leases.read(identity, epoch)
            slots += [] if runner is None else [Slot(epoch, runner)]
    finally:
        await leases.aclose()
    output = Output(json=json)
    if not slots:
        output.say(f"Guest {identity.hex()} has no slot in {store}: nobody has claimed it there")
    else:
        rows = [(str(slot.epoch), slot.runner.host, slot.runner.id.hex()) for slot in slots]
        output.table(("epoch", "host", "runner"), rows, title=f"Guest {identity.hex()}")
    fields = [_fields(slot) for slot in slots]
    output.result(
        {"store": store, "guest": identity.hex(), "newest": next(iter(fields), None), "slots": fields}
    )


def guest_id(text: str) -> bytes:
    """A guest's id, as people write it.

    Raises:
        ConfigError: it is none.
    """
    digits = text.removeprefix(_ID_PREFIX)
    try:
        if len(digits) == _ID_DIGITS:
            return bytes.fromhex(digits)
    except ValueError:
        pass
    raise ConfigError(f"{text[:80]!r} is no guest's id: write its {_ID_DIGITS} hexadecimal digits")


def _fields(slot: Slot) -> dict[str, object]:
    return {"epoch": slot.epoch, "host": slot.runner.host, "runner": slot.runner.id.hex()}
