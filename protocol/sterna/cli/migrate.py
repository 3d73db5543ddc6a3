"""`sterna migrate`: send the guest of a holder to a destination that listens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter, validators

from sterna.cli.endpoint import (
    UNVERIFIED,
    Flag,
    PathOption,
    ProcessOption,
    Security,
    deadlines,
)
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.cli.ownership import UNDECIDED_AFTER_S, Ownership
from sterna.cli.sending import Sending
from sterna.cli.units import Cap, Downtime, Duration, Json, Packing, Size, Streams
from sterna.cli.warned import watching
from sterna.core.policy import Switchover
from sterna.errors import ConfigError
from sterna.host.evidence import Evidence
from sterna.host.failpoint import failpoint
from sterna.limits import RESUME_MOST_S, RESUME_S, ROUNDS_MOST
from sterna.net.connect import parse_address
from sterna.net.identity import check_name
from sterna.net.options import VERSIONS_BYTES, Compress, Options


def migrate(
    *,
    to: str,
    holder: Path,
    peer: Annotated[str, Parameter(show_default=False)] = "",
    security: Security = Security(),  # noqa: B008 - frozen
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    bandwidth: Annotated[Cap | None, Parameter(show_default=False)] = None,
    downtime: Downtime = 0.3,
    switchover: Switchover = "stop-and-copy",
    max_rounds: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=ROUNDS_MOST))] = 30,
    patience: Annotated[Duration | None, Parameter(show_default=False)] = None,
    undecided_after: Duration = UNDECIDED_AFTER_S,
    resume: Duration = float(RESUME_S),
    streams: Streams = None,
    compress: Packing = "off",
    versions: Size = VERSIONS_BYTES,
    unverified: Flag = False,
    no_early_pages: Flag = False,
    evidence: PathOption = None,
    record: PathOption = None,
    follow: Flag = False,
    die_with: ProcessOption = None,
    json: Json = False,
) -> int:
    """Send a holder's guest to another host, while it runs.

    Ctrl-C cancels: the guest runs on here, unless it has been handed over already.

    Args:
        to: where the destination listens: host:port, or [v6 address]:port.
        holder: socket of the guest's holder (`sterna holder`).
        peer: identity of the destination; without it its certificate must bear the address of --to.
        bandwidth: send no faster, for example 1GiB/s. All that the source sends counts, on all connections
            together and as it is before TLS; over any second it is kept within 5 %.
        downtime: how long the guest may stand still.
        switchover: stop-and-copy: all memory is there before the guest runs there. bitmap: what it wrote last
            follows when it runs, so it stops as shortly however fast it writes. post-copy: all of it follows.
            auto: bitmap where the downtime cannot be met otherwise.
        max_rounds: give up, or slow the guest down, after so many rounds.
        patience: wait no longer than this for the other side, in any phase; by default 5s to 60s, by the
            phase.
        undecided_after: ask so long, after a handover whose end is not known, who owns the guest.
        streams: connections on which pages travel, 0 to 16; with 0 they travel on the one on which all else
            does. auto: as many as a link of this delay needs, and one at least if pages may follow the guest,
            so that those that it waits for wait for no others. The destination may allow fewer.
        compress: auto: send pages compressed, or as changes of what was sent before, where that is faster at
            the rate of the link. always: wherever they become smaller by it.
        versions: memory for pages that were sent, to send changes of them; 0B for none.
        unverified: do without hashes of pages, if the destination is told so, too: faster by what they take.
            Bytes that change in memory, or on a connection without TLS, are found by nobody then: the guest
            runs with them.
        no_early_pages: a guest that waits for pages gets them in groups alone. Else single pages go ahead of
            their groups, on a connection of their own that a forked process serves; never with --record or
            --bandwidth, and only if there are data connections (--streams) and the destination does so, too.
        resume: how long a lost session is taken up again, if the connection breaks; 0s for not at all.
        evidence: directory for source.img, the guest's memory at the pause; source-N.img is that of region N.
        record: file for everything that passes on the connection; `sterna inspect` reads it.
        follow: every event as a line of JSON on stdout.
        die_with: cancel when the process of this number ends.
        security: who this host is and whom it talks to.
        ownership: what says who owns a guest, whatever happens.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    reporter = Reporter(output, follow=follow)
    stops = failpoint()
    job = Sending(
        address=parse_address(to),
        holder=holder,
        peer=check_name(peer) if peer else "",
        security=security,
        ownership=ownership,
        options=Options(
            lease_store=bool(ownership.store),
            on_event=watching(reporter.on_event, reporter.notice, switchover),
            bandwidth_bytes_s=bandwidth,
            deadlines=deadlines(patience),
            resume_s=_whole_seconds(resume),
            streams=streams,
            compress=Compress(compress),
            versions_bytes=versions,
            verified=not unverified,
            early_pages=not no_early_pages,
            on_request=stops,
        ),
        downtime_s=downtime,
        switchover=switchover,
        max_rounds=max_rounds,
        undecided_after_s=undecided_after,
        evidence=None if evidence is None else Evidence(evidence),
        record=record,
        reporter=reporter,
        die_with=die_with,
        on_act=stops,
    )
    if unverified:
        reporter.notice(UNVERIFIED)
    with reporter:
        return trio.run(job.run)


def _whole_seconds(resume: float) -> int:
    """As the wire has it.

    Raises:
        ConfigError: longer than any destination keeps a session.
    """
    if resume > RESUME_MOST_S:
        raise ConfigError(
            f"--resume {resume:g}s: no destination keeps a session for more than {RESUME_MOST_S} s"
        )
    return math.ceil(resume)
