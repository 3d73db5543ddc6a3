"""Images for judges: what they hold, who can read them, and that they endanger nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sterna.errors import ConfigError
from sterna.guest.api import GuestDescription
from sterna.host.evidence import Evidence, ImageCopy
from sterna.registry import Transfer
from sterna.wire.records import Region

# Ids are not in the order of the addresses, and one region is not copied.
REGIONS = (
    Region(7, 0, 8192),
    Region(2, 1 << 20, 4096),
    Region(5, 1 << 30, 4096, transfer=Transfer.SHARED),
)
ABOUT = GuestDescription(bytes(16), "guest", REGIONS)
MEMORY = {
    7: np.random.default_rng(7).integers(0, 256, 8192, dtype=np.uint8),
    2: np.random.default_rng(2).integers(0, 256, 4096, dtype=np.uint8),
}
IMAGE = MEMORY[2].tobytes() + MEMORY[7].tobytes()


def memory(region: int) -> memoryview:
    return MEMORY[region].data


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_directory_is_its_owners_alone(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path / "a" / "b")
    assert mode(evidence.directory) == 0o700


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the directory"):
        Evidence(tmp_path / "file" / "below")


async def test_an_image_is_the_copied_regions_by_id(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    await evidence.keep_image("image", ABOUT, memory)
    assert (tmp_path / "image").read_bytes() == IMAGE
    assert mode(tmp_path / "image") == 0o600
    assert evidence.failures == []


async def test_a_copy_is_what_was_there_when_it_was_taken(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    copy = ImageCopy(ABOUT)
    await copy.reserve()
    await evidence.keep_copy("none", copy)
    assert not (tmp_path / "none").exists()
    live = {region: content.copy() for region, content in MEMORY.items()}
    await copy.take(lambda region: live[region].data)
    for content in live.values():
        content[:] = 0
    await evidence.keep_copy("image", copy)
    assert (tmp_path / "image").read_bytes() == IMAGE
    assert mode(tmp_path / "image") == 0o600


async def test_an_earlier_file_is_replaced_not_written_into(tmp_path: Path) -> None:
    """It may be readable by others, be open elsewhere, or be a link to something."""
    evidence = Evidence(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / "image").symlink_to(elsewhere)
    (tmp_path / "journal").write_text("old")
    (tmp_path / "journal").chmod(0o644)
    await evidence.keep_image("image", ABOUT, memory)
    assert elsewhere.read_text() == "precious"
    assert not (tmp_path / "image").is_symlink()
    path = evidence.new_file("journal")
    assert path == evidence.path("journal")
    assert path.read_text() == ""
    assert mode(path) == 0o600


async def test_evidence_that_cannot_be_kept_is_reported_and_ends_nothing(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    (tmp_path / "image").mkdir()
    await evidence.keep_image("image", ABOUT, memory)
    (failure,) = evidence.failures
    assert failure.startswith(str(tmp_path / "image"))
    with pytest.raises(ConfigError, match="cannot write"):
        evidence.new_file("image")


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert mode(Evidence(tmp_path).new_file("file")) == 0o600
    finally:
        os.umask(before)
