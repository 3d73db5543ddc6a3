"""What a demo was asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sterna.cli.events import Fields
from sterna.cli.exits import Exit, exit_of_outcome
from sterna.cli.units import Packing
from sterna.core.events import Outcome
from sterna.core.policy import Switchover
from sterna.host.evidence import Evidence
from sterna.registry import ErrorCode

# How long the guest runs at each side: enough for its rate to be measured, over about a second.
BEFORE_S = 1.2
AFTER_S = 1.0

WRITES_ENOUGH_BYTES_S = 100 * 4096

# The host notes the time of a guest's write some time after it, longer on a machine that is busy.
TIME_JUMP_TOLERANCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The command's arguments. Sizes in bytes, rates in bytes a second.

    `records` is where to keep the records of both hosts, None for no longer than the demo; `store` are the
    options that name a lease store; with `heads` a write renews the head of its page alone; `vcpus` are
    those of a virtual machine; `streams` is None for auto; with `room` the destination has the guest's
    memory beforehand; `unverified` leaves out the hashes of pages; without `early_pages` what the guest
    waits for comes in groups alone.
    """

    memory_bytes: int
    rate_bytes_s: int
    hot_bytes: int
    heads: bool = False
    vcpus: int = 1
    switchover: Switchover = "stop-and-copy"
    downtime_s: float = 0.3
    streams: int | None = None
    bandwidth_bytes_s: int | None = None
    compress: Packing = "off"
    room: bool = False
    unverified: bool = False
    early_pages: bool = True
    insecure: bool
    evidence: Evidence | None
    record: Path | None = None
    records: Path | None = None
    store: Sequence[str] = ()

    @property
    def writes_enough(self) -> bool:
        """Whether the time between two writes of the guest says something about its blackout."""
        return self.rate_bytes_s >= WRITES_ENOUGH_BYTES_S


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """A migration as it went, complete or not.

    Attributes:
        source: the result of the source, in the fields of `sterna migrate --json`.
        destination: the result of the destination, in those of `sterna serve --json`.
        write_rate_bytes_s: what the guest wrote a second before it was migrated.
        dirty_rate_bytes_s: the same, counting a page that was written twice within that second once.
        blackout_guest_s: from the guest's last write at the source to its first at the destination; None
            if there was none.
        writes_before: pages written until the pause.
        audit: the audit at the destination: `pages_checked`, `errors`, `writes`; None if there was none.
        faults: what the guest measured at the destination of its waits for pages: `count`, `p50_s`, `p99_s`,
            `max_s`; None if it has not waited.
        cpu: what was looked at of a virtual machine's processors: state `sections` that were loaded,
            `registers_checked` by host and guest, `mismatches` that they found, how often the guest has seen
            `time_backwards`, the `time_jump_s` that it has seen while it moved, and for how long it has not
            run for the host, `stood_s`; None for other guests.
        processes: process ids by role; None where a role has no process of its own.
        failures: what else went wrong, for people.
        cpu_seconds: by role, what a process has spent from the first word of the migration on until the
            endpoint had its result, the guest itself not counted; None where there are no such processes.
        reason: why it is this kind of guest.
    """

    guest: str
    tracker: str
    hot_bytes: int
    source: Mapping[str, object]
    destination: Mapping[str, object]
    write_rate_bytes_s: int
    dirty_rate_bytes_s: int
    blackout_guest_s: float | None
    writes_before: int
    audit: Mapping[str, int] | None
    processes: Mapping[str, int | None]
    failures: Sequence[str] = field(default=())
    reason: str = ""
    faults: Mapping[str, float] | None = None
    cpu: Mapping[str, float] | None = None
    cpu_seconds: Mapping[str, float] | None = None

    @property
    def outcome(self) -> str:
        """How the migration ended, as the source sees it."""
        return str(self.source.get("outcome", "failed"))

    @property
    def digests(self) -> tuple[object, object]:
        """The memory digests of both sides; None where there is none."""
        return self.source.get("digest"), self.destination.get("digest")

    @property
    def writes_after(self) -> int:
        """Pages written at the destination."""
        return 0 if self.audit is None else self.audit["writes"] - self.writes_before

    @property
    def errors(self) -> int:
        """What the audit found."""
        return 0 if self.audit is None else self.audit["errors"]

    @property
    def same_processors(self) -> bool:
        """Whether a virtual machine's were looked at and had what they should; both are on one host here."""
        cpu = self.cpu
        if cpu is None:
            return True
        looked = cpu["sections"] and cpu["registers_checked"]
        jumped = cpu["time_jump_s"] > cpu["stood_s"] + TIME_JUMP_TOLERANCE_S
        return bool(looked) and not (cpu["mismatches"] or cpu["time_backwards"] or jumped)

    @property
    def after(self) -> object:
        """How the pages went that followed the guest. The source does not know which of them came early."""
        return self.destination.get("after") or self.source.get("after")

    @property
    def equal(self) -> bool:
        """Whether both digests are there and equal."""
        source, destination = self.digests
        return source is not None and source == destination

    @property
    def verified(self) -> bool:
        """Whether pages were verified by hashes, so that equal digests speak of their content."""
        return bool(self.source.get("verified", True))

    @property
    def exit_code(self) -> Exit:
        """OK only if the guest has moved, whole, and runs."""
        if self.outcome != Outcome.COMPLETED:
            code = self.source.get("code")
            known = None if code is None else ErrorCode[str(code).upper()]
            failed = exit_of_outcome(Outcome(self.outcome), known)
            return failed or Exit.FAILED
        good = self.equal and self.audit is not None and not self.errors and self.writes_after > 0
        return Exit.OK if good and self.same_processors and not self.failures else Exit.FAILED

    def met_downtime(self, wishes: Wishes) -> bool | None:
        """Whether the guest stood still no longer than it might; None if it did not stand still."""
        stood_s = self.source.get("seconds_blackout")
        return stood_s <= wishes.downtime_s if isinstance(stood_s, int | float) else None

    def fields(self, wishes: Wishes) -> Fields:
        """The object of `--json`."""
        source, destination = self.digests
        rounds = self.source.get("rounds")
        audit = self.audit or {"pages_checked": 0}
        return {
            "outcome": self.outcome,
            "code": self.source.get("code"),
            "guest": self.guest,
            "guest_reason": self.reason,
            "vcpus": None if self.cpu is None else wishes.vcpus,
            "tracker": self.tracker,
            "tls": self.source.get("tls"),
            "memory_bytes": wishes.memory_bytes,
            "dirty_rate_requested": wishes.rate_bytes_s,
            "dirty_rate_achieved": self.dirty_rate_bytes_s,
            "write_rate_achieved": self.write_rate_bytes_s,
            "hot_set_bytes": self.hot_bytes,
            "heads_only": wishes.heads,
            "switchover": wishes.switchover,
            "style": self.source.get("style"),
            "after": self.after,
            "demand_faults": None if self.faults is None else dict(self.faults),
            "rounds": rounds if isinstance(rounds, list) else [],
            "bytes_sent": self.source.get("bytes_sent", 0),
            "seconds_total": self.source.get("seconds_total", 0.0),
            "seconds_blackout": self.source.get("seconds_blackout"),
            "blackout_steps": {
                "source": self.source.get("blackout_steps", []),
                "destination": self.destination.get("blackout_steps", []),
            },
            "downtime_allowed_s": wishes.downtime_s,
            "downtime_met": self.met_downtime(wishes),
            "seconds_until_run": self.source.get("seconds_until_run"),
            # A guest that seldom writes cannot tell a pause from its own idleness.
            "seconds_blackout_guest": self.blackout_guest_s if wishes.writes_enough else None,
            "digest": {"source": source, "destination": destination, "equal": self.equal},
            "verified": self.verified,
            "audit": {
                "pages_checked": audit["pages_checked"],
                "errors": self.errors,
                "writes_before": self.writes_before,
                "writes_after": self.writes_after,
            },
            "cpu": None if self.cpu is None else dict(self.cpu),
            "cpu_seconds": None if self.cpu_seconds is None else dict(self.cpu_seconds),
            "processes": dict(self.processes),
            "failures": list(self.failures),
        }
