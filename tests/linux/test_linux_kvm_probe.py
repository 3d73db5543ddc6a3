"""A probe that a kernel passes only if its vCPUs run."""

from __future__ import annotations

import gc
import threading

import pytest

from descriptors_support import nothing_stays_open
from sterna.linux import kvm_probe as module
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import Machine
from sterna.linux.kvm_probe import try_machine
from sterna.linux.kvm_vcpu import PortAccess, Vcpu, VcpuError

needs_kvm = pytest.mark.needs("kvm")


def why_not(path: str = module.DEVICE) -> str:
    with pytest.raises(CapabilityMissing) as caught:
        try_machine(path)
    assert caught.value.capability == "kvm"
    assert caught.value.remedy
    return caught.value.reason


@needs_kvm
def test_a_machine_that_runs_leaves_nothing() -> None:
    with nothing_stays_open():
        assert try_machine() in {True, False}
        gc.collect()


def test_no_device_and_one_that_is_another() -> None:
    assert "No such file" in why_not("/proc/nothing")
    assert "/dev/null: " in why_not("/dev/null")


@needs_kvm
def test_a_vcpu_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Machine, "create_vcpu", refuse)
    assert why_not() == "a machine: Operation not permitted"


@needs_kvm
def test_a_vcpu_that_fails_at_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Vcpu) -> None:
        raise VcpuError("exit 9: entry failed, 0x80000021")

    monkeypatch.setattr(Vcpu, "run", fail)
    assert why_not() == "a vCPU does not run: exit 9: entry failed, 0x80000021"


@needs_kvm
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (bytes([0x0F, 0x0B]), "a vCPU does not run: exit 8: shutdown"),
        (bytes([0xE7, 0x10]), "instead of asking it comes to PortAccess(port=16"),
        (bytes([0xE5, 0x13, 0x90, 0x90, 0xE7, 0x10]), "instead of answering it comes to PortAccess(port=16"),
    ],
)
def test_a_vcpu_that_does_something_else(
    program: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PROGRAM", program)
    assert reason in why_not()


@needs_kvm
def test_a_turn_that_a_signal_ends_is_tried_again_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    take, turns = Vcpu.run, []

    def interrupted(self: Vcpu) -> PortAccess | None:
        turns.append(self)
        return None if len(turns) < 5 else take(self)

    monkeypatch.setattr(Vcpu, "run", interrupted)
    try_machine()
    monkeypatch.setattr(Vcpu, "run", lambda self: None)
    assert "comes to None" in why_not()


@needs_kvm
def test_a_kernel_that_does_not_come_back_keeps_a_thread_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    take = Vcpu.run

    def wait(self: Vcpu) -> PortAccess | None:
        go_on.wait()
        return take(self)

    monkeypatch.setattr(Vcpu, "run", wait)
    monkeypatch.setattr(module, "_WITHIN_S", 0.01)
    assert why_not() == "a vCPU does not come back within 0.01 s"
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "kvm-probe":
            thread.join()


def test_what_is_no_fault_of_the_machine_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "_try", fail)
    with pytest.raises(ZeroDivisionError):
        try_machine()
