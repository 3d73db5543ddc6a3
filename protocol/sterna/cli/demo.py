"""`sterna demo`: a live guest moves between two processes of this machine, and is audited there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import trio
from cyclopts import Parameter

from sterna.cli.demo_guest import Demands, choose_guest
from sterna.cli.demo_processes import DESTINATION, SOURCE, ProcessDemo
from sterna.cli.demo_report import tell
from sterna.cli.demo_run import DemoRun, Wishes
from sterna.cli.demo_simulated import SimulatedDemo
from sterna.cli.endpoint import INSECURE, UNVERIFIED, Ending, Flag, PathOption, Security
from sterna.cli.follow import Reporter
from sterna.cli.holder import HOT_BYTES, MEMORY_BYTES, RATE_BYTES_S, Vcpus, check_size
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership
from sterna.cli.scratch import scratch
from sterna.cli.units import Cap, Downtime, Json, Packing, Rate, Size, Streams
from sterna.core.policy import Switchover
from sterna.core.words import size_text
from sterna.host.evidence import DESTINATION_IMAGE, JOURNAL, SOURCE_IMAGE, WARNING, Evidence
from sterna.host.peers import PeerList
from sterna.host.pki import init_ca, issue
from sterna.net.tls import TlsConfig
from sterna.observe.recording import create

_NAMES: Final = {
    "kvm": "A virtual machine moves",
    "process": "A process moves",
    "simulated": "A simulated guest moves",
}

_PEERS: Final = f"""\
[[peer]]
identity = "{SOURCE}"
may_send = ["*"]

[[peer]]
identity = "{DESTINATION}"
may_receive = ["*"]
"""


def demo(
    *,
    guest: Literal["auto", "simulated", "process", "kvm"] = "auto",
    vcpus: Vcpus = None,
    memory: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    hot: Size = HOT_BYTES,
    heads: Flag = False,
    switchover: Switchover = "stop-and-copy",
    downtime: Downtime = 0.3,
    streams: Streams = None,
    bandwidth: Annotated[Cap | None, Parameter(show_default=False)] = None,
    compress: Packing = "off",
    room: Flag = False,
    unverified: Flag = False,
    no_early_pages: Flag = False,
    insecure: Flag = False,
    evidence: PathOption = None,
    record: PathOption = None,
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    json: Json = False,
) -> int:
    """Migrate a live guest between two processes of this machine, and check that nothing was lost.

    Source and destination, and the two holders that keep the guest, are processes of their own; they
    authenticate each other with certificates of a throw-away authority. The guest writes its memory all
    the time and checks every page that it writes; after the migration all of its memory is audited.

    Without --records the records of both hosts are gone when the demo ends.

    Args:
        guest: kvm: a virtual machine, on /dev/kvm; process: a real process with real time; simulated: one
            process, for machines without the means; auto: the first of these that works here and can do
            what is asked for.
        vcpus: of a virtual machine; 2 by default.
        memory: size of the guest.
        dirty_rate: what it writes a second; 0B/s is one page and then nothing.
        hot: the part of its memory to which it mostly writes.
        heads: each write renews the head of its page only, and counts as a page; not with --guest kvm.
        switchover: how it is moved in the end; see `sterna migrate --help`.
        downtime: how long it may stand still.
        streams: connections on which pages travel; see `sterna migrate --help`.
        bandwidth: the source sends no faster, for example 100MiB/s; see `sterna migrate --help`.
        compress: what is sent packed; see `sterna migrate --help`.
        room: the destination has memory for the guest before it comes; see sterna holder --help.
        unverified: pages go without hashes, and nobody finds bytes that change in memory; see
            `sterna migrate --help`.
        no_early_pages: what the guest waits for comes in groups alone; see `sterna migrate --help`.
        insecure: plaintext instead of TLS.
        evidence: directory for source.img and destination.img (try `cmp`) and the guest's journal; of a
            virtual machine also source-1.img and destination-1.img, the memory of its program.
        record: file for everything that passes between the endpoints, for `sterna inspect`.
        ownership: what says who owns the guest.
        json: one JSON object on stdout.
    """
    # At both sides at once, and evidence is copied before it is written.
    check_size(memory, copies=2 if evidence is None else 3)
    reporter = Reporter(Output(json=json))
    demands = Demands(
        memory_bytes=memory,
        vcpus=vcpus,
        switchover=switchover,
        heads=heads,
        room=room,
        records=ownership.records is not None or bool(ownership.store),
        streams=bool(streams),
        link=bandwidth is not None or compress != "off",
    )
    choice = choose_guest(guest, demands)
    trio.run(ownership.check_store)
    wishes = Wishes(
        vcpus=choice.vcpus,
        memory_bytes=memory,
        rate_bytes_s=dirty_rate,
        hot_bytes=min(hot, memory),
        heads=heads,
        switchover=switchover,
        downtime_s=downtime,
        streams=streams,
        bandwidth_bytes_s=bandwidth,
        compress=compress,
        room=room,
        unverified=unverified,
        early_pages=not no_early_pages,
        insecure=insecure,
        evidence=None if evidence is None else _evidence(evidence, reporter),
        record=record,
        records=ownership.records,
        store=ownership.store_options,
    )
    if insecure:
        reporter.notice(INSECURE)
    if unverified:
        reporter.notice(UNVERIFIED)
    if record is not None:
        create(record).close()  # trouble with it is for now, not for when the guest runs
        reporter.notice(f"{record} {WARNING}")
    if guest == "auto":
        reporter.say(f"{_NAMES[choice.kind]}, because {choice.reason}.")
    reporter.say(f"A guest with {size_text(memory)} of memory starts, and runs for a second before it moves.")
    with scratch("sterna-demo-") as directory, reporter:
        run = trio.run(partial(_run, choice.kind, wishes, reporter, directory))
    run = replace(run, reason=choice.reason)
    reporter.result(run.fields(wishes))
    tell(run, wishes, reporter.output)
    return run.exit_code


def _evidence(directory: Path, reporter: Reporter) -> Evidence:
    evidence = Evidence(directory)
    for name in (SOURCE_IMAGE, DESTINATION_IMAGE):
        evidence.remove_image(name)
    evidence.new_file(JOURNAL)
    reporter.notice(f"{directory} {WARNING}")
    return evidence


async def _run(kind: str, wishes: Wishes, reporter: Reporter, directory: Path) -> DemoRun:
    runs: list[DemoRun] = []
    async with trio.open_nursery() as nursery:
        ending = Ending(nursery.cancel_scope)
        await nursery.start(ending.watch)
        pki = None if wishes.insecure else await trio.to_thread.run_sync(_make_pki, directory)
        demo: SimulatedDemo | ProcessDemo
        if kind == "simulated":
            demo = SimulatedDemo(wishes, reporter, _tls(pki), DESTINATION)
        else:
            demo = ProcessDemo(wishes, reporter, directory, _security(pki, directory), kind)
        runs.append(await demo.run())
        nursery.cancel_scope.cancel()
    if ending.interrupted:
        raise KeyboardInterrupt
    return runs[0]


def _make_pki(directory: Path) -> Path:
    pki = directory / "pki"
    init_ca(pki, name="demo")
    for name in (SOURCE, DESTINATION):
        issue(pki, name, hosts=("127.0.0.1",))
    (directory / "peers.toml").write_text(_PEERS)
    return pki


def _security(pki: Path | None, directory: Path) -> Mapping[str, Sequence[str]]:
    """Options of `sterna migrate` and `sterna serve`."""
    if pki is None:
        return {name: ["--insecure", "--name", name] for name in (SOURCE, DESTINATION)}
    common = ["--pki", str(pki), "--peers", str(directory / "peers.toml")]
    return {
        SOURCE: [*common, "--name", SOURCE, "--peer", DESTINATION],
        DESTINATION: [*common, "--name", DESTINATION],
    }


def _tls(pki: Path | None) -> tuple[TlsConfig, TlsConfig] | None:
    """The same for endpoints in this process."""
    if pki is None:
        return None
    check = PeerList.load(pki.parent / "peers.toml").check_peer
    source, destination = (Security(pki=pki, name=name).tls(check) for name in (SOURCE, DESTINATION))
    assert source is not None
    assert destination is not None
    return source, destination
