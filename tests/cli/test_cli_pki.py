from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from sterna.cli.main import main


def test_an_authority_and_a_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "pki"
    assert main(["pki", "init", str(directory), "--json"]) == 0
    authority = json.loads(capsys.readouterr().out)
    assert authority["certificate"] == str(directory / "ca.pem")
    command = [
        "pki",
        "issue",
        str(directory),
        "alpha",
        "--host",
        "alpha.example",
        "--host",
        "192.0.2.7",
        "--json",
    ]
    assert main(command) == 0
    host = json.loads(capsys.readouterr().out)
    certificate = x509.load_pem_x509_certificate(Path(host["certificate"]).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["alpha.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert host["authority"] == authority["certificate"]
    assert len(bytes.fromhex(host["fingerprint_sha256"])) == 32


def test_people_are_told_what_to_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["pki", "init", str(tmp_path)]) == 0
    assert main(["pki", "issue", str(tmp_path), "alpha", "--out", str(out)]) == 0
    written, said = capsys.readouterr()
    assert written == ""
    assert "keep it to yourself" in said
    assert f"Its key: {out / 'alpha.key'}" in said


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pki", "init", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["pki", "init", str(tmp_path), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage"
    assert "exists and is not replaced" in error["text"]
