"""What endpoints can be told, and what follows from that. The rest is shown where endpoints run."""

from __future__ import annotations

import pytest

from sterna.core.style import EARLY_FEATURES
from sterna.errors import ConfigError
from sterna.limits import CHUNK_BYTES
from sterna.net.options import Options, batch_bytes, limiter, offer, supported
from sterna.registry import Feature


def test_a_source_offers_what_it_can_and_insists_on_what_it_needs() -> None:
    """[NEG-10]"""
    plain = {each.id for each in offer(Options(), "stop-and-copy", resumes=False)}
    assert not plain & {*EARLY_FEATURES, Feature.RESUME, Feature.LEASE_STORE}
    all_of_it = offer(Options(lease_store=True, resume_s=9), "bitmap", resumes=True)
    more = {each.id: (each.required, each.parameter) for each in all_of_it if each.id not in plain}
    assert more == {
        Feature.BITMAP: (True, 0),
        Feature.RESUME: (False, 9),
        Feature.LEASE_STORE: (True, 0),
    }


def test_a_destination_selects_what_its_host_and_guests_can() -> None:
    """[NEG-10] [NEG-11]"""
    plain = supported(Options(), resumes=False)
    assert supported(Options(post_copy=True), resumes=False) == plain | EARLY_FEATURES
    assert supported(Options(lease_store=True), resumes=True) == plain | {Feature.RESUME, Feature.LEASE_STORE}


def test_a_cap_makes_batches_small_and_must_not_be_too_low() -> None:
    assert limiter(Options()) is None
    assert limiter(Options(bandwidth_bytes_s=1e6)) is not None
    assert batch_bytes(Options(bandwidth_bytes_s=1e6)) == CHUNK_BYTES
    assert batch_bytes(Options(bandwidth_bytes_s=1e7)) == 500_000
    assert batch_bytes(Options(batch_bytes=4096)) == 4096
    with pytest.raises(ConfigError, match="the least is"):
        Options(bandwidth_bytes_s=100)
