"""`sterna bench blackout` moves a guest that writes, and one that does not."""

from __future__ import annotations

import pytest
from bench_support import bench

from sterna.cli.main import main
from sterna_interop.bench_blackout import BESIDE_QEMU_BYTES, MEMORY_BYTES, Guest

GIB = 1 << 30
WAYS = {"sterna", "qemu", "unit", "text"}


@pytest.mark.slow
@pytest.mark.needs("userfaultfd")
def test_one_object():
    found = bench("blackout", "--memory", "16MiB", "--hot", "16MiB", "--dirty-rate", "100MiB/s")
    memory = {"memory_source", "memory_destination"}
    assert set(found["measures"]) == {"blackout", "guest", "total", "cpu", "written"} | memory
    assert {"total_vs_bare", "cpu_vs_bare", "cpu_vs_idle"} <= set(found["ratios"])
    writing, idle = (found["measures"]["blackout"][way]["median"] for way in ("sterna", "idle"))
    assert found["ratios"]["vs_idle"]["pairs"] == [writing / idle]
    assert found["ratios"]["vs_idle"]["at_most"] == 2.0
    assert found["measures"]["guest"]["sterna"]["median"] > 0
    assert writing < found["measures"]["total"]["sterna"]["median"]


@pytest.mark.slow
@pytest.mark.needs("userfaultfd", "qemu")
def test_against_qemu(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench(
        *("blackout", "--memory", "84MiB", "--hot", "16MiB", "--dirty-rate", "20MiB/s", "--against", "qemu"),
        *("--write", str(path)),
    )
    assert found["ratios"]["vs_qemu"]["goal"] == 0.5
    assert {"cpu_vs_qemu", "total_vs_bare", "blackout_whole_vs_qemu"} <= set(found["ratios"])
    assert "met" not in found["ratios"]["blackout_whole_vs_qemu"]
    assert found["measures"]["blackout_whole"]["qemu"] == found["measures"]["blackout"]["qemu"]
    assert "24" in found["conditions"]["writes"]
    assert "post-copy" in found["conditions"]["QEMU"]
    assert (found["bench"], set(found["measures"]["blackout"])) == ("blackout", WAYS)
    assert found["conditions"]["QEMU's blackouts"].endswith(" ms")
    assert "## blackout beside QEMU, 1 run" in path.read_text()


@pytest.mark.parametrize(("room", "size"), [(64 * GIB, 4 * GIB), (9 * GIB, 2 * GIB), (0, GIB // 2)])
def test_its_own_defaults_are_a_guest_for_which_qemu_has_room(room, size, monkeypatch):
    """Or, where the machine has no room for one, the smallest for which QEMU's program has."""
    monkeypatch.setattr("sterna_interop.bench_blackout.available_bytes", lambda: room)
    guest = Guest.chosen(None, None, None, "qemu")
    written = guest.written(0.3, "bitmap")
    assert (written.memory_bytes, written.hot_bytes, written.rate_bytes_s) == (size, 256 << 20, 500 << 20)
    assert written.memory_bytes in BESIDE_QEMU_BYTES
    assert Guest.chosen(GIB, None, 7, "qemu") == Guest(GIB, 256 << 20, 7)
    assert Guest.chosen(None, None, None, None) == Guest(MEMORY_BYTES, MEMORY_BYTES, GIB)


@pytest.mark.needs("qemu")
def test_what_does_not_fit_is_told_by_an_option_that_there_is(capsys):
    assert main(["bench", "blackout", "--against", "qemu", "--memory", "256MiB"]) == 2
    assert "--memory: 268435456 bytes; 335552512 or more" in capsys.readouterr().err
