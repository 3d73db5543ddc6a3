"""QEMU as a peer: what it is told, what it says, and what is said where there is none."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.errors import ConfigError, GuestError
from sterna.linux.memfd import MemoryFile
from sterna_interop.memories import path_of
from sterna_interop.qemu import Machine, Settings, Tls, free_port, program, version

SIZE_BYTES = 17 << 20


@pytest.fixture
def machine(tmp_path):
    file = MemoryFile("guest", SIZE_BYTES)
    with Machine(tmp_path, "m", path_of(file), SIZE_BYTES, Settings(), source=True) as machine:
        yield machine
    file.close()


def test_without_qemu_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"apt-get install .*qemu-system-x86"):
        program()


def test_what_each_side_is_told():
    plain = Settings()
    assert plain.all_capabilities() == [{"capability": "events", "state": True}]
    assert plain.all_parameters(source=True) == {"max-bandwidth": 1 << 40, "downtime-limit": 20}
    full = Settings(
        channels=2,
        tls=Tls(Path("/pki"), "here"),
        parameters={"downtime-limit": 300},
        capabilities=["xbzrle"],
    )
    assert [each["capability"] for each in full.all_capabilities()] == ["events", "xbzrle", "multifd"]
    source, destination = (full.all_parameters(source=source) for source in (True, False))
    assert source == {**destination, "tls-hostname": "here"}
    assert (source["multifd-channels"], source["downtime-limit"]) == (2, 300)


def test_a_port_can_be_had():
    assert 0 < free_port() < 1 << 16


@pytest.mark.slow
@pytest.mark.needs("qemu")
class TestMachine:
    def test_it_answers_and_tells_why_not(self, machine):
        assert machine.ask("query-status")["running"] is False
        with pytest.raises(GuestError, match="no-such-command"):
            machine.ask("no-such-command")
        assert machine.cpu_s() > machine.guest_cpu_s() >= 0
        assert version()[0].isdigit()

    def test_a_migration_that_fails_is_not_waited_for(self, machine):
        machine.ask("migrate", uri=f"tcp:127.0.0.1:{free_port()}")
        with pytest.raises(GuestError, match="migration failed"):
            machine.until("MIGRATION", status="completed")

    def test_one_that_ends_says_so(self, machine):
        machine.ask("quit")
        with pytest.raises(GuestError, match="has ended"):
            machine.until("NEVER")

    def test_one_that_does_not_start_says_why(self, tmp_path):
        with pytest.raises(GuestError, match=r"has ended: .*nowhere|does not start: .*nowhere"):
            Machine(tmp_path, "m", "/nowhere/at/all", SIZE_BYTES, Settings(), source=True)

    def test_one_whose_parent_is_killed_ends_as_well(self, tmp_path):
        code = f"""
import os, signal
from pathlib import Path
from sterna_interop.memories import Memories, path_of
from sterna_interop.qemu import Machine, Settings
memories = Memories({SIZE_BYTES})
path = path_of(memories.source)
machine = Machine(Path({str(tmp_path)!r}), "m", path, {SIZE_BYTES}, Settings(), source=True)
print(machine.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL
        try:
            pidfd = os.pidfd_open(int(done.stdout))
        except ProcessLookupError:
            return  # it has ended already, and nobody remembers it
        with os.fdopen(pidfd) as gone:
            assert select.select([gone], [], [], 60)[0]
