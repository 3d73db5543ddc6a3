from __future__ import annotations

import json

import pytest

from sterna.cli.doctor import doctor
from sterna.linux import capabilities
from sterna.linux.capabilities import Capability

FOUND = (
    Capability("userfaultfd", available=True, detail="by /dev/userfaultfd"),
    Capability("kvm", available=False, reason="no /dev/kvm", remedy="load the kvm module"),
    Capability("huge_pages", available=False, reason="none"),
)


def test_people_read_reasons_and_remedies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capabilities, "probe", lambda: FOUND)
    doctor()
    out, err = capsys.readouterr()
    assert out == ""
    assert "by /dev/userfaultfd" in err
    assert "no /dev/kvm" in err
    assert "kvm: load the kvm module" in err
    assert "huge_pages:" not in err


def test_machines_get_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(capabilities, "probe", lambda: FOUND)
    doctor(json=True)
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["schema"] == 1
    assert report["capabilities"][1] == {
        "name": "kvm",
        "available": False,
        "detail": "",
        "reason": "no /dev/kvm",
        "remedy": "load the kvm module",
    }


def test_nothing_missing_needs_no_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capabilities, "probe", lambda: FOUND[:1])
    doctor()
    assert "To get" not in capsys.readouterr().err


def test_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json=True)
    names = {one["name"] for one in json.loads(capsys.readouterr().out)["capabilities"]}
    assert {"userfaultfd", "pagemap_scan", "minor_faults", "kvm", "qemu", "huge_pages"} <= names
