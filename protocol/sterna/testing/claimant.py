"""A claimant as a process of its own: ``python -m sterna.testing.claimant STORE GUEST HOST EPOCHS``.

Opens the store, writes "ready" to stdout and waits for a line on stdin, so that many of them start to race
at the same moment. Then it claims the epochs 1, 2, ... EPOCHS of the guest, each with a new runner until the
store has named the slot's, and writes one line a slot: its number, and whom the store named. `check_store`
reads that; a claimant of another store, in whatever language, does the same.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence

import trio

from sterna.host.lease import claim_until_named
from sterna.host.open_store import open_store
from sterna.wire.records import Runner


async def claim_all(url: str, guest: bytes, host: str, epochs: int) -> None:
    """Claim every epoch up to this one."""
    store = open_store(url)
    await store.newest(guest)  # the connection is there before the race begins
    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    for epoch in range(1, epochs + 1):
        named = await claim_until_named(store, guest, epoch, Runner(host, secrets.token_bytes(16)))
        print(epoch, named.host, named.id.hex(), flush=True)
    await store.aclose()


def main(arguments: Sequence[str]) -> None:
    """The process."""
    url, guest, host, epochs = arguments
    trio.run(claim_all, url, bytes.fromhex(guest), host, int(epochs))


if __name__ == "__main__":
    main(sys.argv[1:])
