from __future__ import annotations

from collections.abc import Callable

import pytest

from sterna.cli import demo_guest as module
from sterna.cli.demo_guest import Choice, Demands, choose_guest
from sterna.errors import ConfigError
from sterna.guest.tracker import CompareTracker, UffdTracker
from sterna.linux.errors import CapabilityMissing

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PLAIN = Demands(memory_bytes=256 * MIB)
RUNS = Choice("kvm", "/dev/kvm runs one here")


def missing(reason: str) -> Callable[..., bool]:
    def fail(*_: object) -> bool:
        raise CapabilityMissing("kvm", reason, "load kvm_amd")

    return fail


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can do everything, whatever this one can."""
    monkeypatch.setattr(module, "try_machine", lambda: True)
    monkeypatch.setattr(module, "why_no_late_vcpus", str)
    monkeypatch.setattr(module, "why_no_late_pages", str)
    monkeypatch.setattr(module, "choose_tracker", lambda memory: (UffdTracker(memory), ""))


def refusal(wish: str, demands: Demands = PLAIN) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_guest(wish, demands)
    return str(caught.value)


def test_what_was_asked_for_is_taken_where_it_works() -> None:
    for kind in ("kvm", "process", "simulated"):
        assert choose_guest(kind, PLAIN) == Choice(kind, "asked for")


def test_a_virtual_machine_comes_first() -> None:
    assert choose_guest("auto", PLAIN) == RUNS
    assert choose_guest("auto", Demands(memory_bytes=MIB, vcpus=3)) == Choice("kvm", RUNS.reason, 3)


def test_then_a_process_by_userfaultfd_then_by_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "try_machine", missing("a vCPU does not run"))
    no_machine = "no virtual machine runs here: a vCPU does not run; its writes are followed by"
    assert choose_guest("auto", PLAIN) == Choice("process", f"{no_machine} userfaultfd")
    monkeypatch.setattr(module, "choose_tracker", lambda memory: (CompareTracker(memory), "no rights"))
    assert choose_guest("auto", PLAIN) == Choice("process", f"{no_machine} compare; no rights")


def test_then_a_simulated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module.os, "memfd_create")
    assert choose_guest("auto", PLAIN) == Choice("simulated", module._NO_PROCESS)
    assert "no memory files, or no Unix sockets: try --guest simulated" in refusal("process")


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        (Demands(memory_bytes=MIB, room=True), "--room is for process guests"),
        (
            Demands(memory_bytes=MIB, heads=True),
            "--heads is not for virtual machines, which write whole pages",
        ),
        (Demands(memory_bytes=MIB, heads=True, vcpus=2), "--heads is not for virtual machines"),
        (Demands(memory_bytes=257 * GIB), "a virtual machine has at most 256GiB"),
        (Demands(memory_bytes=128 * KIB), "128KiB is too little for 2 vCPUs"),
        (Demands(memory_bytes=MIB, vcpus=9), "1MiB is too little for 9 vCPUs"),
    ],
)
def test_a_process_where_a_virtual_machine_cannot_do_what_was_asked_for(
    demands: Demands, reason: str
) -> None:
    assert reason in refusal("kvm", demands)
    if demands.vcpus is None:
        choice = choose_guest("auto", demands)
        assert choice == Choice("process", f"{reason}; its writes are followed by userfaultfd")
    else:  # which no process can have
        assert f"--vcpus needs a virtual machine, which cannot be had: {reason}" in refusal("auto", demands)


def test_pages_that_could_not_follow_a_virtual_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "why_no_late_vcpus", lambda: "user mode only")
    follows = Demands(memory_bytes=MIB, switchover="bitmap")
    assert choose_guest("auto", follows).reason.startswith(
        "its pages could not follow a virtual machine: user mode only"
    )
    assert "user mode only" in refusal("kvm", follows)
    assert choose_guest("auto", Demands(memory_bytes=MIB, switchover="auto")) == RUNS
    monkeypatch.setattr(module, "why_no_late_pages", lambda: "none at all")  # so a process could no more
    assert choose_guest("auto", follows) == RUNS


def test_a_virtual_machine_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "try_machine", missing("no such file"))
    assert "--guest kvm: no such file: load kvm_amd, or try --guest process" in refusal("kvm")
    assert "cannot be had: no virtual machine runs here: no such file" in refusal(
        "auto", Demands(memory_bytes=MIB, vcpus=1)
    )


@pytest.mark.parametrize(
    ("wish", "demands", "complaint"),
    [
        ("kvm", Demands(memory_bytes=GIB, vcpus=0), "--vcpus: 1 to 16, with --guest kvm"),
        ("auto", Demands(memory_bytes=GIB, vcpus=17), "--vcpus: 1 to 16"),
        ("process", Demands(memory_bytes=GIB, vcpus=1), "--vcpus: 1 to 16, with --guest kvm"),
        ("simulated", Demands(memory_bytes=GIB, room=True), "--room needs --guest process"),
        ("simulated", Demands(memory_bytes=GIB, records=True), "--records and --store need --guest process"),
        ("simulated", Demands(memory_bytes=GIB, streams=True), "--streams needs --guest process or kvm"),
    ],
)
def test_wishes_that_no_guest_can_have(wish: str, demands: Demands, complaint: str) -> None:
    assert complaint in refusal(wish, demands)


@pytest.mark.needs("kvm")
def test_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert choose_guest("auto", PLAIN) == RUNS
