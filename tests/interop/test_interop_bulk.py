"""What is asked for is there, or it is said before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sterna.cli.main import main
from sterna.limits import BATCH_BYTES, LARGE_BATCH_BYTES
from sterna_interop.bulk import Bulk

GIB = 1 << 30


@dataclass
class OfSize:
    """Of memories, what the size of a batch depends on."""

    size: int
    whole: bool = True


@pytest.mark.parametrize("name", ["memory", "sparse", "tls"])
def test_against_a_qemu_that_is_not_there(name, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", name, "--against", "qemu"]) == 2
    assert "apt-get install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "tls", "batch_bytes"),
    [(GIB, False, LARGE_BATCH_BYTES), (GIB, True, BATCH_BYTES), (9 << 20, False, (9 << 20) // 16)],
    ids=["plain", "TLS", "small"],
)
def test_the_bare_loops_have_batches_of_the_size_of_sterna_s(size, tls, batch_bytes):
    assert Bulk("memory", OfSize(size), {}, {}, tls=tls).batch_bytes == batch_bytes


@pytest.mark.parametrize(("size", "beside"), [(GIB, {"bare_usual", "bare_hash_usual"}), (9 << 20, set())])
def test_where_these_are_large_loops_with_smaller_ones_stand_beside(size, beside):
    ways = Bulk("memory", OfSize(size), {}, {})._ways(None)
    assert set(ways) == {"sterna", "bare", "bare_hash"} | beside
