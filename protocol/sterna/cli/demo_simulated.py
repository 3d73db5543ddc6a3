"""The demo with simulated guests: one process, but real TCP and TLS over loopback between the endpoints."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial

import trio

from sterna.cli.demo_run import AFTER_S, BEFORE_S, DemoRun, Wishes
from sterna.cli.endpoint import recorded, tell_progress
from sterna.cli.events import Fields, connection_fields, result_fields
from sterna.cli.follow import Reporter, now_ns
from sterna.core.policy import PolicySettings, estimate_fixed_cost_s
from sterna.guest.api import DestinationGuest, GuestDescription, StateSection
from sterna.guest.journal import Journal
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedMachine, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.host.evidence import DESTINATION_IMAGE, JOURNAL, SOURCE_IMAGE, Evidence
from sterna.net.connect import Address, connect
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.listen import listen
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.wire.records import Runner

_TICK_S = 0.002


class _Departing(SimulatedSourceGuest):
    """Keeps its image for the evidence."""

    evidence: Evidence | None = None

    async def release(self) -> None:
        if self.evidence is not None:
            await self.evidence.keep_image(SOURCE_IMAGE, self.description, self.memory)
        await super().release()


class _Arriving(SimulatedDestinationGuest):
    """Likewise, of what is there before its first instruction."""

    evidence: Evidence | None = None

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        await super().load_state(sections)
        if self.evidence is not None and self.description is not None:
            await self.evidence.keep_image(DESTINATION_IMAGE, self.description, self.memory)


class SimulatedDemo:
    """One run.

    Args:
        wishes: what was asked for.
        reporter: told of the source's events.
        tls: configurations of source and destination; None is plaintext.
        expected: the destination's identity.
    """

    def __init__(
        self, wishes: Wishes, reporter: Reporter, tls: tuple[TlsConfig, TlsConfig] | None, expected: str
    ) -> None:
        self._wishes = wishes
        self._reporter = reporter
        self._tls: tuple[TlsConfig | None, TlsConfig | None] = tls or (None, None)
        self._expected = expected if tls else None
        parameters = WorkloadParameters.for_memory(
            wishes.memory_bytes, wishes.hot_bytes, cold_every=64, heads_only=wishes.heads
        )
        self._guest = _Departing(parameters, rate_bytes_s=wishes.rate_bytes_s)
        self._guest.machine.runner = Runner("source", secrets.token_bytes(16))
        self._arriving = _Arriving(memory_limit_bytes=wishes.memory_bytes, rate_bytes_s=wishes.rate_bytes_s)
        self._guest.evidence = self._arriving.evidence = wishes.evidence
        self._journal = Journal(None if wishes.evidence is None else str(wishes.evidence.path(JOURNAL)))
        self._journaled = 0
        self._arrived = trio.Event()
        self._destination: Fields = {}
        self._first_write_ns = self._last_write_ns = 0

    async def run(self) -> DemoRun:
        """Let the guest run, move it, let it run on, audit it."""
        guest, arriving = self._guest, self._arriving
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live)
            rates_bytes_s = await self._measure()
            (address,) = await nursery.start(
                partial(listen, Address("127.0.0.1", 0), self._take, tls=self._tls[1])
            )
            source = await self._send(address)
            writes_before = guest.workload.count
            if arriving.has_run:
                await self._arrived.wait()
                await trio.sleep(AFTER_S)
            nursery.cancel_scope.cancel()
        self._journal.close()
        stood_ns = self._first_write_ns - self._last_write_ns
        pid = os.getpid()
        return DemoRun(
            guest="simulated",
            tracker=guest.tracker,
            hot_bytes=guest.workload.parameters.hot_pages * PAGE_BYTES,
            source=source,
            destination=self._destination,
            write_rate_bytes_s=rates_bytes_s[0],
            dirty_rate_bytes_s=rates_bytes_s[1],
            blackout_guest_s=stood_ns / 1e9 if self._first_write_ns else None,
            writes_before=writes_before,
            audit=self._audit(),
            processes={"source": pid, "destination": pid, "source_holder": None, "destination_holder": None},
            failures=self._failures(source),
        )

    def _failures(self, source: Fields) -> tuple[str, ...]:
        evidence, recorded = self._wishes.evidence, source["recording_failures"]
        assert isinstance(recorded, list)
        return (*(() if evidence is None else evidence.failures), *map(str, recorded))

    async def _measure(self) -> tuple[int, int]:
        """Let the guest run for a while; what it wrote a second, and of distinct pages."""
        workload, started = self._guest.workload, trio.current_time()
        first = workload.count
        await trio.sleep(BEFORE_S)
        seconds = trio.current_time() - started
        written, distinct = workload.count - first, workload.distinct_pages(first, workload.count)
        return round(written * PAGE_BYTES / seconds), round(distinct * PAGE_BYTES / seconds)

    async def _live(self) -> None:
        """Simulated guests have no time of their own: give them the real one, and watch them from inside."""
        last = trio.current_time()
        while True:
            await trio.sleep(_TICK_S)
            now = trio.current_time()
            if self._guest.advance(now - last):
                self._last_write_ns = now_ns()
                self._note(self._guest.machine)
            if self._arriving.machine is not None and self._arriving.running:
                if not self._first_write_ns and not self._arriving.machine.incomplete:
                    # As the process guest does: its first write tells when it runs, whatever its rate is.
                    self._arriving.workload.write(1)
                    self._first_write_ns = now_ns()
                if self._arriving.advance(now - last) and not self._first_write_ns:
                    self._first_write_ns = now_ns()
                self._note(self._arriving.machine)
            last = now

    def _note(self, machine: SimulatedMachine) -> None:
        if machine.workload.count > self._journaled:
            self._journaled = machine.workload.count
            self._journal.append(machine.workload.count, machine.epoch, machine.runner, "beat")

    async def _send(self, address: Address) -> Fields:
        async with recorded(self._wishes.record, Side.SOURCE, self._reporter, aloud=False) as recording:
            plain = await connect(address, tls=self._tls[0], expected=self._expected)
            source = await self._send_by(recording.wrap(plain))
        return {**source, "recording_failures": recording.failures}

    async def _send_by(self, transport: Transport) -> Fields:
        self._reporter.emit(
            {
                "event": "migration",
                "memory_bytes": self._wishes.memory_bytes,
                "page_bytes": PAGE_BYTES,
                "tracker": self._guest.tracker,
            }
        )
        wishes = self._wishes
        policy = PolicySettings(
            allowed_downtime_s=wishes.downtime_s,
            switchover=wishes.switchover,
            fixed_cost_s=estimate_fixed_cost_s(wishes.memory_bytes // PAGE_BYTES),
        )
        options = Options(on_event=self._reporter.on_event, policy=policy, verified=not wishes.unverified)
        runner = self._guest.machine.runner
        source = Source(self._guest, transport, epoch=1, runner=runner, options=options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_progress, self._reporter, lambda: source.passed)
            result = await source.run()
            nursery.cancel_scope.cancel()
        return {**connection_fields(transport), **result_fields(result)}

    async def _take(self, transport: Transport) -> None:
        options = Options(post_copy=True, verified=not self._wishes.unverified)
        result = await Destination(
            self._room, transport, host=LocalHost("destination"), options=options
        ).run()
        self._destination = {**connection_fields(transport), **result_fields(result)}
        self._arrived.set()

    def _room(self, _: GuestDescription) -> DestinationGuest:
        return self._arriving

    def _audit(self) -> Mapping[str, int] | None:
        if not self._arriving.has_run:
            return None
        workload = self._arriving.workload
        found = workload.audit()
        return {
            "pages_checked": found.pages_checked,
            "errors": found.errors + workload.errors,
            "writes": found.count,
        }
