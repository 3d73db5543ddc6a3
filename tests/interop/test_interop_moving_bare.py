"""The bare loops move all of it, plain and over TLS, and hash it where they are asked to."""

from __future__ import annotations

import pytest
from bench_support import run

from sterna_interop.moving_bare import Batched

START = """
import tempfile
from pathlib import Path
from sterna_interop.memories import *
from sterna_interop.moving import *
from sterna_interop.moving_bare import *
from sterna_interop.moving_tls import Certificates
memories = Memories(9 << 20)
"""


def test_a_loop_is_cut_into_batches():
    view = memoryview(bytes(range(10)))
    assert [list(batch) for batch in Batched(None, 4).batches(view)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [list(batch) for batch in Batched([(1, 3), (6, 2)], 2).batches(view)] == [[1, 2], [3], [6, 7]]


@pytest.mark.slow
def test_every_loop_moves_all_of_it():
    said = run(
        START + "with tempfile.TemporaryDirectory() as directory:\n"
        "    contexts = Certificates(Path(directory)).contexts()\n"
        "    for chosen in (None, contexts):\n"
        "        for hashed in (False, True):\n"
        "            moved = bare(memories, contexts=chosen, hashed=hashed).move()\n"
        "            print(moved.seconds > 0, min(moved.cpu_s) > 0)"
    )
    assert said == "True True\n" * 4


@pytest.mark.slow
def test_what_was_never_written_is_not_moved():
    said = run(
        START + "memories = Memories(64 << 20, [(1 << 20, 5 << 20), (40 << 20, 1 << 20)])\n"
        "bare(memories, hashed=True).move()\n"
        "print(os.fstat(memories.source.fileno()).st_blocks * 512 >> 20)"
    )
    assert said == "6\n"


@pytest.mark.slow
def test_an_end_that_comes_early_is_noticed():
    said = run(
        START + "try: over_sockets(lambda sock, view: 1.0, bare_receive, memories).move()\n"
        "except GuestError as error: print(error)"
    )
    assert "the receiver failed: ConnectionError: the sender ended early" in said


@pytest.mark.slow
def test_the_loops_are_paced_no_more_than_what_they_are_measured_by():
    said = run(
        START + "import socket\n"
        "from sterna.net.tcp import LOCAL_CONGESTION_CONTROL\n"
        "def checked(act):\n"
        "    def checks(sock, view):\n"
        "        found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b'\\0')\n"
        "        assert found == LOCAL_CONGESTION_CONTROL, found\n"
        "        return act(sock, view) or 1.0\n"
        "    return checks\n"
        "way = over_sockets(checked(bare_send), checked(bare_receive), memories)\n"
        "print(way.move().seconds, congestion_control())"
    )
    assert said.startswith("1.0 Sterna's and the bare loops' reno, as on one machine; QEMU's ")


@pytest.mark.slow
def test_several_connections_have_each_its_part():
    said = run(
        START + "memories = Memories((9 << 20) + 4096)\n"
        "for connections in (2, 4, 16):\n"
        "    print(bare(memories, hashed=True, connections=connections).move().seconds > 0)"
    )
    assert said == "True\n" * 3
