"""Which guest the demo moves: the most real one that works on this machine and can do what was asked for.

A virtual machine first, then a process whose writes the kernel follows, then one whose memory is compared,
then a simulated one. What works is tried: see `sterna.linux.kvm_probe` and `sterna.guest.tracker`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from sterna.cli.holder import MEMORY_MIN_BYTES
from sterna.cli.units import format_size
from sterna.core.policy import Switchover
from sterna.errors import ConfigError
from sterna.guest.kvm.guest import why_no_late_vcpus
from sterna.guest.kvm.layout import MEMORY_MAX, VCPUS_MAX
from sterna.guest.late_pages import why_no_late_pages
from sterna.guest.tracker import choose_tracker
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm_probe import try_machine
from sterna.linux.memfd import PAGE_BYTES, MemoryFile

_VCPUS = 2
_NO_PROCESS = "this system has no memory files, or no Unix sockets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What was asked for, as far as not every guest can do it. `vcpus` is None if nobody has said."""

    memory_bytes: int
    vcpus: int | None = None
    switchover: Switchover = "stop-and-copy"
    heads: bool = False
    room: bool = False
    records: bool = False
    streams: bool = False
    link: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind of guest, with how many vCPUs if it is a virtual machine, and why this one, for people."""

    kind: str
    reason: str
    vcpus: int = _VCPUS


def choose_guest(wish: str, demands: Demands) -> Choice:
    """The guest for this wish, ``auto`` or a kind.

    Raises:
        ConfigError: it does not work here, or cannot do what is demanded; the message says what would.
    """
    vcpus = _VCPUS if demands.vcpus is None else demands.vcpus
    if demands.vcpus is not None and (wish not in {"auto", "kvm"} or not 1 <= vcpus <= VCPUS_MAX):
        raise ConfigError(f"--vcpus: 1 to {VCPUS_MAX}, with --guest kvm")
    choice = _auto(demands, vcpus) if wish == "auto" else _asked_for(wish, demands, vcpus)
    if choice.kind != "kvm" and demands.vcpus is not None:
        raise ConfigError(f"--vcpus needs a virtual machine, which cannot be had: {choice.reason}")
    if choice.kind != "process" and demands.room:
        raise ConfigError("--room needs --guest process")
    for needed, option, has in (
        (demands.records, "--records and --store need", "one process needs neither"),
        (demands.streams, "--streams needs", "one process has one connection"),
        (demands.link, "--bandwidth and --compress need", "one process has no link"),
    ):
        if choice.kind == "simulated" and needed:
            raise ConfigError(f"{option} --guest process or kvm: {has}")
    return choice


def _asked_for(wish: str, demands: Demands, vcpus: int) -> Choice:
    if wish == "kvm":
        if reason := _why_not_this_one(demands, vcpus):
            raise ConfigError(f"--guest kvm: {reason}: try --guest process")
        try:
            try_machine()
        except CapabilityMissing as missing:
            raise ConfigError(
                f"--guest kvm: {missing.reason}: {missing.remedy}, or try --guest process"
            ) from None
    if wish == "process" and not _has_processes():
        raise ConfigError(f"--guest process: {_NO_PROCESS}: try --guest simulated")
    return Choice(wish, "asked for", vcpus)


def _auto(demands: Demands, vcpus: int) -> Choice:
    if not _has_processes():
        return Choice("simulated", _NO_PROCESS)
    reason = _why_not_this_one(demands, vcpus)
    if not reason:
        try:
            try_machine()
            return Choice("kvm", "/dev/kvm runs one here", vcpus)
        except CapabilityMissing as missing:
            reason = f"no virtual machine runs here: {missing.reason}"
    tracker, why_no_better = _tracker()
    followed = f"its writes are followed by {tracker}"
    return Choice("process", "; ".join(part for part in (reason, followed, why_no_better) if part))


def _why_not_this_one(demands: Demands, vcpus: int) -> str:
    """Why a virtual machine cannot do what is demanded and a process can; empty if there is no reason."""
    memory = demands.memory_bytes
    if demands.room:
        return "--room is for process guests"
    if demands.heads:
        return "--heads is not for virtual machines, which write whole pages"
    if memory > MEMORY_MAX:
        return f"a virtual machine has at most {format_size(MEMORY_MAX)}"
    if memory < vcpus * MEMORY_MIN_BYTES:
        return f"{format_size(memory)} is too little for {vcpus} vCPUs"
    follows = demands.switchover in {"bitmap", "post-copy"}
    if follows and (why := why_no_late_vcpus()) and not why_no_late_pages():
        return f"its pages could not follow a virtual machine: {why}"
    return ""


def _tracker() -> tuple[str, str]:
    with contextlib.closing(MemoryFile("sterna-probe", PAGE_BYTES)) as file:
        memory = file.map()
        try:
            tracker, why_no_better = choose_tracker(memory)
        finally:
            memory.close()
    return tracker.name, why_no_better


def _has_processes() -> bool:
    """Memory files and Unix sockets: any Linux of these years."""
    return hasattr(os, "memfd_create") and hasattr(socket, "AF_UNIX")
