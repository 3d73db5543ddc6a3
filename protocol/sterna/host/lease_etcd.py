"""The lease store in etcd: a key a slot, and one transaction a claim.

::

    <prefix><guest>/<epoch>    a filled slot, as in a file

The transaction compares the keys' create revisions, which are 0 for a key that does not exist: the slot's
must be 0, its predecessor's above 0, and its successor's 0, or it was emptied. Then it puts, and in any case
it reads the slot, so that an answer always has the slot's content, whoever's it is. All of that is one step
of etcd's log. Reads are linearizable, etcd's default; a member that is cut off from the others does not
answer.

What etcd's own data tells of a slot is checked too: a key that was overwritten, or that hangs on an etcd
lease and would vanish with it, is no slot, and a chain with fewer keys than its newest epoch has lost some.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from sterna.core.verdict import Slot
from sterna.errors import StoreDamaged, StoreUnavailable
from sterna.host.etcd import EtcdAccess, EtcdClient, Json, decode, encode, number, objects
from sterna.host.slots import (
    ADVICE,
    EPOCH_MAX,
    check_guest_id,
    check_place,
    check_runner,
    decode_slot,
    encode_slot,
)
from sterna.wire.records import Runner

PREFIX: Final = "sterna/leases/"
_WITHIN_S: Final = 5.0
_PAUSE_S: Final = 0.2
_WATCH_S: Final = 30.0  # a connection that died without a word is noticed after so long at most


class EtcdLeaseStore:
    """A `LeaseStore` in an etcd cluster.

    Args:
        access: where the cluster is.
        prefix: of all keys, for several stores in one cluster.
        within_s: a call without an answer for so long is `StoreUnavailable`.
    """

    def __init__(self, access: EtcdAccess, *, prefix: str = PREFIX, within_s: float = _WITHIN_S) -> None:
        self._client = EtcdClient(access, within_s)
        self._prefix = prefix

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """Fill the slot if it is the next one."""
        check_place(guest, epoch)
        check_runner(runner)
        key = encode(self._key(guest, epoch))
        compare: list[Json] = [_created(key, "EQUAL")]
        if epoch > 1:
            compare.append(_created(encode(self._key(guest, epoch - 1)), "GREATER"))
        if epoch < EPOCH_MAX:
            compare.append(_created(encode(self._key(guest, epoch + 1)), "EQUAL"))
        look: Json = {"request_range": {"key": key}}
        put: Json = {"request_put": {"key": key, "value": encode(encode_slot(guest, epoch, runner))}}
        body: Json = {"compare": compare, "success": [put, look], "failure": [look]}
        responses = objects((await self._client.call("/v3/kv/txn", body)).get("responses"))
        found = responses[-1].get("response_range") if responses else None
        if not isinstance(found, dict):
            raise StoreUnavailable("etcd: a transaction's answer without what it has read; ask again")
        named = self._runner(found, guest, epoch)
        if named is None and epoch < EPOCH_MAX and await self.read(guest, epoch + 1) is not None:
            named = await self.read(guest, epoch)  # both may have been filled meanwhile
            if named is None:
                raise StoreDamaged(f"etcd: slot {epoch} of guest {guest.hex()} is gone; {ADVICE}")
        return named

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner."""
        check_place(guest, epoch)
        return self._runner(await self._range(guest, epoch), guest, epoch)

    async def newest(self, guest: bytes) -> Slot | None:
        """The filled slot with the highest epoch; all others must be there too."""
        first = self._key(check_guest_id(guest), 0)[:-20]
        body: Json = {
            "key": encode(first),
            "range_end": encode(first[:-1] + bytes([first[-1] + 1])),
            "sort_order": "DESCEND",
            "sort_target": "KEY",
            "limit": "1",
        }
        answer = await self._client.call("/v3/kv/range", body)
        rows = objects(answer.get("kvs"))
        if not rows:
            return None
        digits = decode(rows[0].get("key"))[len(first) :]
        count = number(answer.get("count"))
        if len(digits) != 20 or not digits.isdigit() or int(digits) != count:
            text = f"etcd: {count} keys of guest {guest.hex()}, the last of them {digits!r}"
            raise StoreDamaged(f"{text}: slots are gone, or something else is among them; {ADVICE}")
        epoch = int(digits)
        runner = self._runner(answer, guest, epoch)
        assert runner is not None  # there is a row
        return Slot(epoch, runner)

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        """Wait for etcd's word that something has happened to the slot, and look for ourselves."""
        key = encode(self._key(guest, epoch))
        while True:
            with suppress(StoreUnavailable):
                answer = await self._range(guest, epoch)
                if (runner := self._runner(answer, guest, epoch)) is not None:
                    return runner
                # From the revision of that look on, so that nothing is missed in between.
                header = answer["header"]
                assert isinstance(header, dict)  # the client has checked it
                start = str(number(header.get("revision")) + 1)
                await self._client.wait_for_event(
                    {"create_request": {"key": key, "start_revision": start}}, _WATCH_S
                )
                if (runner := await self.read(guest, epoch)) is not None:
                    return runner
            await trio.sleep(_PAUSE_S)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _range(self, guest: bytes, epoch: int) -> Json:
        check_place(guest, epoch)
        return await self._client.call("/v3/kv/range", {"key": encode(self._key(guest, epoch))})

    def _key(self, guest: bytes, epoch: int) -> bytes:
        return f"{self._prefix}{guest.hex()}/{epoch:020}".encode()

    def _runner(self, answer: Json, guest: bytes, epoch: int) -> Runner | None:
        """The runner in the row of a slot that an answer has; None if it has none."""
        rows = objects(answer.get("kvs"))
        if not rows:
            return None
        row = rows[0]
        where = f"etcd: slot {epoch} of guest {guest.hex()}"
        if len(rows) > 1 or decode(row.get("key")) != self._key(guest, epoch):
            raise StoreUnavailable(f"{where} was asked for, and something else came; ask again")
        if number(row.get("version")) != 1 or row.get("create_revision") != row.get("mod_revision"):
            raise StoreDamaged(f"{where} was overwritten; {ADVICE}")
        if number(row.get("lease")):
            raise StoreDamaged(f"{where} hangs on an etcd lease, and may vanish with it; {ADVICE}")
        return decode_slot(decode(row.get("value")), guest, epoch)


def _created(key: str, result: str) -> Json:
    """Compare the revision at which a key was made, 0 for never."""
    return {"key": key, "target": "CREATE", "result": result, "create_revision": "0"}
