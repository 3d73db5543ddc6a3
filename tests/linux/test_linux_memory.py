from __future__ import annotations

from pathlib import Path

import pytest

from sterna.linux import memory

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8 GiB available, and this process in the control group /one/two."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "cgroup").write_text("1:cpu:/other\n0::/one/two\n")
    (tmp_path / "groups" / "one" / "two").mkdir(parents=True)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    return tmp_path


def limit(group: Path, most: str, used: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")


def test_without_limits_the_system_decides(system: Path) -> None:
    assert memory.cgroup_available_bytes() is None
    assert memory.available_bytes() == 8 * GIB


def test_the_tightest_group_decides(system: Path) -> None:
    one = system / "groups" / "one"
    limit(one / "two", "max", 5)
    limit(one, str(4 * GIB), GIB)
    assert memory.available_bytes() == 3 * GIB
    limit(one / "two", str(2 * GIB), GIB)
    assert memory.available_bytes() == GIB
    limit(one / "two", str(GIB), 2 * GIB)
    assert memory.available_bytes() == 0


def test_nothing_to_read(system: Path) -> None:
    (system / "cgroup").write_text("1:cpu:/other\n")
    assert memory.cgroup_available_bytes() is None
    (system / "cgroup").unlink()
    assert memory.cgroup_available_bytes() is None
    (system / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(OSError, match="MemAvailable"):
        memory.available_bytes()


def test_this_machine_has_some() -> None:
    assert memory.available_bytes() > 0


def test_when_shared_memory_gets_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARED_HUGE_PAGES", tmp_path / "shmem_enabled")
    with pytest.raises(OSError, match="No such file"):
        memory.shared_huge_pages()
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force\n")
    assert memory.shared_huge_pages() == "advise"
