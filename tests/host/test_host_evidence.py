"""What is kept for judges is the memory itself, is nobody else's to read, and endangers no guest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from descriptors_support import nothing_stays_open
from sterna.errors import ConfigError
from sterna.guest.api import GuestDescription
from sterna.host import evidence as module
from sterna.host.evidence import DESTINATION_IMAGE, SOURCE_IMAGE, Evidence, ImageCopy
from sterna.registry import Transfer
from sterna.wire.records import Region

PAGE_BYTES = 4096


def guest(*sizes: tuple[int, int, Transfer]) -> GuestDescription:
    """A guest with regions of (id, pages, transfer)."""
    regions = tuple(Region(number, 0, pages * PAGE_BYTES, transfer=how) for number, pages, how in sizes)
    return GuestDescription(bytes(16), "guest", regions)


TWO = guest((7, 1, Transfer.COPY), (2, 3, Transfer.COPY), (4, 2, Transfer.SHARED))


def memory_of(description: GuestDescription) -> dict[int, memoryview]:
    """Random pages, the same for the same guest."""
    random = np.random.default_rng(1)
    return {one.id: memoryview(random.bytes(one.size_bytes)) for one in description.regions}


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def open_umask() -> object:
    """Modes are the module's own work, not the umask's."""
    before = os.umask(0)
    yield
    os.umask(before)


async def test_an_image_is_a_file_for_each_copied_region(tmp_path: Path) -> None:
    """[SEC-14] And it is for its owner alone, whatever the umask is."""
    memory = memory_of(TWO)
    evidence = Evidence(tmp_path / "a" / "b")
    await evidence.keep_image(SOURCE_IMAGE, TWO, memory.__getitem__)
    assert evidence.image(SOURCE_IMAGE) == [evidence.path(name) for name in (SOURCE_IMAGE, "source-7.img")]
    for image, number in zip(evidence.image(SOURCE_IMAGE), (2, 7), strict=True):
        assert image.read_bytes() == bytes(memory[number])
        assert mode_of(image) == 0o600
    assert mode_of(evidence.directory) == 0o700
    assert evidence.failures == []


async def test_an_image_larger_than_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP_BYTES", 1000)
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: real(descriptor, data[:300]))
    memory = memory_of(TWO)
    evidence = Evidence(tmp_path)
    await evidence.keep_image(SOURCE_IMAGE, TWO, memory.__getitem__)
    assert evidence.path(SOURCE_IMAGE).read_bytes() == bytes(memory[2])


def test_what_is_removed_is_an_image_and_nothing_else(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    names = [
        "source.img",
        "source-1.img",
        "source-10.img",
        "source-x.img",
        "destination-1.img",
        "source-1.imgs",
    ]
    for name in names:
        evidence.path(name).write_text("earlier")
    assert [path.name for path in evidence.image(SOURCE_IMAGE)] == names[:3]
    evidence.remove_image(SOURCE_IMAGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[3:])
    assert evidence.image(SOURCE_IMAGE) == []


@given(
    st.dictionaries(st.integers(0, 9), st.tuples(st.integers(1, 3), st.sampled_from(Transfer)), min_size=1),
    st.data(),
)
def test_both_images_of_the_same_memory_are_the_same(
    regions: Mapping[int, tuple[int, Transfer]], data: st.DataObject
) -> None:
    """One is written from memory, the other from a copy: `cmp` shall compare guests, not ways of writing."""
    order = data.draw(st.permutations(sorted(regions)))
    description = guest(*((number, *regions[number]) for number in order))
    memory = memory_of(description)

    async def main(directory: Path) -> None:
        evidence = Evidence(directory)
        copy = ImageCopy(description)
        await copy.reserve()
        await copy.take(memory.__getitem__)
        await evidence.keep_image(SOURCE_IMAGE, description, memory.__getitem__)
        await evidence.keep_copy(DESTINATION_IMAGE, copy)
        assert evidence.failures == []
        images = (evidence.image(name) for name in (SOURCE_IMAGE, DESTINATION_IMAGE))
        sizes = []
        for one, other in zip(*images, strict=True):
            assert one.read_bytes() == other.read_bytes()
            sizes.append(one.stat().st_size)
        copied = [pages * PAGE_BYTES for _, (pages, how) in sorted(regions.items()) if how is Transfer.COPY]
        assert sizes == (copied or [0])

    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, Path(directory), clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_copy_is_of_the_moment_when_it_was_taken(tmp_path: Path) -> None:
    region = bytearray(b"before" * 1000)[:PAGE_BYTES]
    copy = ImageCopy(guest((0, 1, Transfer.COPY)))
    evidence = Evidence(tmp_path)
    await copy.reserve()
    await evidence.keep_copy(DESTINATION_IMAGE, copy)
    assert not evidence.path(DESTINATION_IMAGE).exists()
    await copy.take(lambda _: memoryview(region))
    kept = bytes(region)
    region[:] = bytes(PAGE_BYTES)
    await evidence.keep_copy(DESTINATION_IMAGE, copy)
    assert evidence.path(DESTINATION_IMAGE).read_bytes() == kept
    assert mode_of(evidence.path(DESTINATION_IMAGE)) == 0o600


async def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Whoever can write to the directory must not choose which of the operator's files is overwritten."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    evidence = Evidence(tmp_path / "evidence")
    for name in (SOURCE_IMAGE, "journal.ndjson"):
        evidence.path(name).symlink_to(precious)
    await evidence.keep_image(SOURCE_IMAGE, TWO, memory_of(TWO).__getitem__)
    journal = evidence.new_file("journal.ndjson")
    assert precious.read_text() == "precious"
    assert not evidence.path(SOURCE_IMAGE).is_symlink()
    assert not journal.is_symlink()
    assert (mode_of(journal), journal.read_bytes()) == (0o600, b"")


def test_the_directory_may_be_a_link_or_there_already(tmp_path: Path) -> None:
    """That is the operator's choice, and so is the mode of what was there before."""
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(real)
    assert Evidence(tmp_path / "link").new_file("x").resolve() == real / "x"
    assert mode_of(real) == 0o755


async def test_an_earlier_image_is_replaced_and_who_has_it_open_keeps_it(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    image = evidence.path(SOURCE_IMAGE)
    image.write_text("earlier")
    image.chmod(0o644)
    with image.open("rb") as reader:
        await evidence.keep_image(SOURCE_IMAGE, TWO, memory_of(TWO).__getitem__)
        assert reader.read() == b"earlier"
    assert mode_of(image) == 0o600
    assert image.stat().st_size == 3 * PAGE_BYTES


def test_an_earlier_image_can_be_removed_before(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    evidence.path(SOURCE_IMAGE).write_text("earlier")
    for _ in range(2):
        evidence.remove_image(SOURCE_IMAGE)
        assert not evidence.path(SOURCE_IMAGE).exists()


async def test_what_cannot_be_written_is_told_and_nothing_more(tmp_path: Path) -> None:
    """The guest is in its blackout or has just left it: a full disk is not its business."""
    evidence = Evidence(tmp_path)
    evidence.path(SOURCE_IMAGE).mkdir()
    await evidence.keep_image(SOURCE_IMAGE, TWO, memory_of(TWO).__getitem__)
    assert evidence.failures == [f"{evidence.path(SOURCE_IMAGE)}: Is a directory"]


async def test_a_disk_that_is_full_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    evidence = Evidence(tmp_path)
    monkeypatch.setattr(module.os, "write", full)
    with nothing_stays_open():
        await evidence.keep_image(SOURCE_IMAGE, TWO, memory_of(TWO).__getitem__)
    files = (SOURCE_IMAGE, "source-7.img")
    assert evidence.failures == [f"{evidence.path(name)}: No space left on device" for name in files]


def test_a_directory_or_file_that_cannot_be_made_is_the_operator_s_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make the directory .*: (File exists|Not a directory)"):
        Evidence(tmp_path / "file")
    evidence = Evidence(tmp_path)
    for name in ("journal.ndjson", SOURCE_IMAGE):
        evidence.path(name).mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*journal\.ndjson: Is a directory"):
        evidence.new_file("journal.ndjson")
    with pytest.raises(ConfigError, match=r"cannot replace .*source\.img: Is a directory"):
        evidence.remove_image(SOURCE_IMAGE)
