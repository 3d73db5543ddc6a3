"""A guest of one's own moves between two processes: certificates, bounds, durable records, a lease store.

In a directory of its own, where it leaves what it makes::

    sterna pki init pki && sterna pki issue pki host-a && sterna pki issue pki host-b
    sterna lease init leases
    python two_hosts.py receive 127.0.0.1:4646      # host-b, in one terminal
    python two_hosts.py send 127.0.0.1:4646         # host-a, in another
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

import sterna

# What host-b takes, and what host-a offers: the defaults, but for these.
LIMITS = replace(sterna.Options().limits, memory_bytes=64 << 20, state_bytes=4096)
OPTIONS = sterna.Options(limits=LIMITS, lease_store=True)
PEERS = """
[[peer]]
identity = "host-a"
may_send = ["counter"]

[[peer]]
identity = "host-b"
may_receive = ["counter"]
"""


class Counter(sterna.EmbeddedGuest):
    """Counts, and leaves each number in its memory."""

    def __init__(self) -> None:
        super().__init__(bytearray(1 << 20), "counter", state_bytes=8)
        self.count, self.running = 0, False

    def start(self) -> None:
        """Run on."""
        self.running = True

    def stop(self) -> None:
        """Stand still: nothing of it runs when this returns."""
        self.running = False

    def save(self) -> bytes:
        """All but the memory."""
        return self.count.to_bytes(8, "little")

    def load(self, state: bytes) -> None:
        """The inverse, at the destination."""
        self.count = int.from_bytes(state, "little")

    async def live(self) -> None:
        """Write, and say so."""
        while True:
            if self.running:
                self.count += 1
                at = self.count * 8 % (1 << 20)
                self.memory(1)[at : at + 8] = self.count.to_bytes(8, "little")
                self.wrote(at, 8)
            await trio.sleep(0.001)


def host_of(name: str) -> tuple[sterna.PeerListHost, sterna.TlsConfig]:
    """What knows who may come, and keeps what says who owns a guest, whatever fails."""
    Path("peers.toml").write_text(PEERS)
    peers = sterna.PeerList.load(Path("peers.toml"))
    tls = sterna.TlsConfig(
        Path(f"pki/{name}.pem"), Path(f"pki/{name}.key"), Path("pki/ca.pem"), peers.check_peer
    )
    shelf = sterna.RecordsShelf(Path(f"records-{name}"), "two_hosts.py")
    return sterna.PeerListHost(name, peers, shelf=shelf, store=sterna.open_store("leases"), tell=print), tls


async def receive(address: str) -> None:
    """Take guests in, and let them live here, until Ctrl-C."""
    host, tls = host_of("host-b")
    sessions = sterna.Sessions()  # of this process: in them a lost link finds its session again

    async def serve(transport: sterna.Transport) -> None:
        """One connection, which brings a guest, belongs to a session that is here, or asks."""
        async with host.session(transport.peer) as session:
            guest = Counter()
            destination = sterna.Destination(
                lambda description: guest, transport, host=session, options=OPTIONS, sessions=sessions
            )
            session.cancel = destination.cancel  # for a newer session of the same guest
            result = await destination.run()
        if not destination.took_up:
            print(f"{result.outcome}, epoch {result.epoch}: {result.error or guest.count}", flush=True)
        if guest.running:
            await guest.live()

    async with host.shelf.alone(), trio.open_nursery() as nursery:
        addresses = await nursery.start(partial(sterna.listen, address, serve, tls=tls))
        print("listening on", *addresses, flush=True)


async def send(address: str) -> None:
    """Make a guest, whose first epoch is this host's, and send it away."""
    host, tls = host_of("host-a")
    assert host.store is not None
    guest = Counter()
    guest_id = guest.description.id
    runner = await sterna.claim_first(host.shelf, host.store, guest_id, host.name, secrets.token_bytes(16))
    guest.start()
    dial = partial(sterna.connect, address, tls=tls, expected="host-b")
    transport = await dial()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.live)
        async with host.session(transport.peer, address, guest_id) as session:
            source = sterna.Source(
                guest, transport, epoch=1, runner=runner, host=session, options=OPTIONS, reconnect=dial
            )
            result = await source.run()
        print(f"{result.outcome}, epoch {result.epoch}: {result.error or guest.count}", flush=True)
        if result.outcome is sterna.Outcome.UNDECIDED:  # it stays paused until somebody knows
            print(f"sterna verdict {guest_id.hex()} --records {host.shelf.directory} --store leases")
        if result.outcome not in {sterna.Outcome.COMPLETED, sterna.Outcome.MOVED}:
            await trio.sleep_forever()  # the guest, or what it still lacks, is here
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run({"receive": receive, "send": send}[sys.argv[1]], sys.argv[2])
