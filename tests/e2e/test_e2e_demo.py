"""`sterna demo` as a newcomer runs it, and everything that its JSON promises."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import trio
from commands import Command, World, alive, children_of
from judge import judge

from sterna.guest.workload import Workload, WorkloadParameters

pytestmark = pytest.mark.slow

KVM = pytest.param("kvm", marks=pytest.mark.needs("kvm"))
SMALL = ("--memory", "16MiB", "--hot", "4MiB", "--dirty-rate", "8MiB/s")


async def result_of(command: Command) -> dict:
    assert await command.end() == 0, command.said()
    (result,) = command.lines
    return result


def check(result: dict, *, guest: str, memory_bytes: int) -> None:
    """What holds for every demo that went well."""
    assert result["schema"] == 1
    assert result["outcome"] == "completed"
    assert result["guest"] == guest
    assert result["memory_bytes"] == memory_bytes
    assert isinstance(result["tracker"], str)
    assert result["failures"] == []
    digest = result["digest"]
    assert digest["equal"] is True
    assert digest["source"] == digest["destination"]
    assert len(bytes.fromhex(digest["source"])) == 16
    audit = result["audit"]
    assert audit["pages_checked"] == memory_bytes // 4096
    assert audit["errors"] == 0
    assert audit["writes_before"] > 0
    assert audit["writes_after"] > 0
    rounds = result["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, len(rounds) + 1))
    # A page that was seen to be written meanwhile is left to the next round.
    assert 0 < rounds[0]["pages"] <= sum(one["pages"] for one in rounds) >= memory_bytes // 4096
    assert rounds[-1]["dirty_pages"] == 0
    for one in rounds:
        assert {"round", "pages", "bytes", "seconds", "dirty_pages"} <= one.keys()
    assert result["bytes_sent"] > sum(one["bytes"] for one in rounds)
    assert 0 < result["seconds_blackout"] < result["seconds_total"]
    assert result["hot_set_bytes"] <= memory_bytes


async def test_a_process_guest_over_tls_with_evidence(world: World) -> None:
    """The demo's own evidence, judged by somebody who knows nothing of it."""
    evidence = world.directory / "evidence"
    result = await result_of(
        await world.start("demo", "--json", "--guest", "process", *SMALL, "--evidence", evidence)
    )
    check(result, guest="process", memory_bytes=16 << 20)
    assert result["tracker"] in {"userfaultfd", "compare"}
    assert result["tls"]["version"] == "TLSv1.3"
    assert result["tls"]["mutual"] is True
    assert result["dirty_rate_requested"] == 8 << 20
    assert 0 < result["dirty_rate_achieved"] <= 2 * (8 << 20)
    assert 0 < result["seconds_blackout_guest"] < result["seconds_total"]
    pids = result["processes"]
    assert set(pids) == {"source", "destination", "source_holder", "destination_holder"}
    assert len(set(pids.values())) == 4
    assert set(result["cpu_seconds"]) == set(pids)
    assert all(seconds > 0 for seconds in result["cpu_seconds"].values())
    assert not any(alive(pid) for pid in pids.values())
    assert judge(evidence) == []
    await trio.run_process(["cmp", evidence / "source.img", evidence / "destination.img"])
    for name in ("source.img", "destination.img", "journal.ndjson"):
        assert (evidence / name).stat().st_mode & 0o777 == 0o600
    assert (evidence / "source.img").stat().st_size == 16 << 20


async def test_a_simulated_guest(world: World) -> None:
    evidence = world.directory / "evidence"
    command = await world.start("demo", "--json", "--guest", "simulated", *SMALL, "--evidence", evidence)
    result = await result_of(command)
    check(result, guest="simulated", memory_bytes=16 << 20)
    assert result["tls"]["mutual"] is True
    assert result["processes"]["source_holder"] is None
    assert judge(evidence) == []


@pytest.mark.parametrize("guest", ["process", "simulated"])
async def test_a_guest_that_writes_heads_alone(world: World, guest: str) -> None:
    """[WKL-12]"""
    evidence = world.directory / "evidence"
    options = ["--guest", guest, *SMALL, "--heads", "--evidence", evidence]
    result = await result_of(await world.start("demo", "--json", *options))
    check(result, guest=guest, memory_bytes=16 << 20)
    assert result["heads_only"] is True
    assert judge(evidence) == []
    moved = np.fromfile(evidence / "destination.img", np.uint64).reshape(-1, 512)
    first = np.zeros_like(moved)
    Workload(WorkloadParameters.for_memory(16 << 20, 4 << 20, cold_every=64), first).fill()
    assert moved[:, 1].sum() > 0  # writes
    assert (moved[:, 3:] == first[:, 3:]).all()


@pytest.mark.needs("kvm")
async def test_a_virtual_machine_over_tls_with_evidence(world: World) -> None:
    evidence = world.directory / "evidence"
    result = await result_of(await world.start("demo", "--json", *SMALL, "--evidence", evidence))
    pages = (16 << 20) // 4096
    assert result["outcome"] == "completed"
    assert (result["guest"], result["tracker"]) == ("kvm", "dirty_log")
    assert result["guest_reason"] == "/dev/kvm runs one here"  # nobody has asked for it
    assert result["failures"] == []
    assert result["digest"]["equal"] is True
    assert result["audit"]["errors"] == 0
    assert result["audit"]["pages_checked"] == pages
    assert result["audit"]["writes_after"] > 0
    assert result["cpu"]["sections"] == 1 + 2 * 10
    assert result["cpu"]["registers_checked"] > 1000
    assert result["cpu"]["mismatches"] == result["cpu"]["time_backwards"] == 0
    assert judge(evidence) == []
    assert (evidence / "source.img").stat().st_size == 16 << 20
    assert (evidence / "source-1.img").stat().st_size > 0


@pytest.mark.needs("kvm", "minor_faults")
@pytest.mark.parametrize("style", ["bitmap", "post-copy"])
async def test_a_virtual_machine_whose_pages_follow_it(world: World, style: str) -> None:
    options = ["--guest", "kvm", *SMALL, "--switchover", style]
    result = await result_of(await world.start("demo", "--json", *options))
    assert (result["outcome"], result["style"]) == ("completed", style)
    assert result["digest"]["equal"] is True
    assert result["audit"]["errors"] == result["cpu"]["mismatches"] == 0
    assert result["after"]["stale_pages"] > 0
    assert result["failures"] == []


@pytest.mark.parametrize("guest", ["process", "simulated", KVM])
async def test_a_tiny_guest_that_does_not_write(world: World, guest: str) -> None:
    options = ["--guest", guest, "--memory", "4MiB", "--dirty-rate", "0B/s", "--insecure"]
    result = await result_of(await world.start("demo", "--json", *options))
    assert result["outcome"] == "completed"
    assert result["tls"] is None
    assert result["digest"]["equal"] is True
    assert result["audit"]["errors"] == 0
    assert result["audit"]["writes_after"] > 0
    assert result["seconds_blackout_guest"] is None


@pytest.mark.parametrize("guest", ["process", KVM])
async def test_a_guest_that_writes_as_fast_as_it_can(world: World, guest: str) -> None:
    options = ["--memory", "64MiB", "--hot", "64MiB", "--dirty-rate", "100GiB/s"]
    result = await result_of(await world.start("demo", "--json", "--guest", guest, *options))
    check(result, guest=guest, memory_bytes=64 << 20)


async def test_for_people(world: World) -> None:
    """Without --json nothing goes to stdout, and without a terminal nothing moves."""
    command = await world.start("demo", *SMALL)
    assert await command.end() == 0, command.said()
    assert command.lines == []
    said = command.said()
    assert "round 1" in said
    assert "blackout" in said
    assert "0 errors" in said
    assert "equal on both sides" in said
    assert "\x1b[" not in said


def left(world: World, pattern: str) -> list[Path]:
    return list(world.directory.glob(pattern))


async def all_children(pid: int, count: int) -> set[int]:
    """The children of a process, once there are so many."""
    with trio.fail_after(60):
        while True:
            children = children_of(pid)
            if len(children) >= count:
                return children
            await trio.sleep(0.01)


async def all_gone(pids: set[int]) -> None:
    with trio.fail_after(60):
        while True:
            if not any(map(alive, pids)):
                return
            await trio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing_behind(
    world: World, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(world.directory))
    command = await world.start("demo", "--json", "--memory", "512MiB")
    children = await all_children(command.process.pid, 4)
    command.send(number)
    assert await command.end() == 130, command.said()
    assert command.lines[-1]["error"]["code"] == "interrupted"
    await all_gone(children)
    assert not left(world, "sterna-demo-*")


async def test_a_killed_demo_leaves_no_process_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(world.directory))
    command = await world.start("demo", "--memory", "512MiB")
    children = await all_children(command.process.pid, 4)
    command.send(signal.SIGKILL)
    await command.end()
    await all_gone(children)
    assert not left(world, "sterna-demo-*/*.sock")


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_demo_whose_holder_dies_says_so(
    world: World, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(world.directory))
    command = await world.start("demo", "--json", "--memory", "512MiB")
    children = await all_children(command.process.pid, 3)
    os.kill(sorted(children)[victim], signal.SIGKILL)
    assert await command.end() not in {0, 70}, command.said()
    await all_gone(children)
    assert not left(world, "sterna-demo-*")
