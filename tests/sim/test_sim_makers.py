"""Machines of a world are configured as its shape says."""

from __future__ import annotations

from sterna.registry import Feature
from sterna.sim.holder import Holder
from sterna.sim.makers import LiveMakers, RecallingMakers, Shape, destination_config, source_config
from sterna.wire.records import NO_RUNNER


def offered(shape):
    return {each.id: each.required for each in source_config(shape, "alpha", 1, NO_RUNNER).features}


def test_a_store_is_required_where_there_is_one():
    """[ONE-55]"""
    assert offered(Shape(store=True))[Feature.LEASE_STORE] is True
    assert Feature.LEASE_STORE not in offered(Shape(store=False))
    assert Feature.LEASE_STORE in destination_config(Shape(store=True), "beta").features
    assert Feature.LEASE_STORE not in destination_config(Shape(store=False), "beta").features


def test_resume_is_offered_and_not_required():
    assert offered(Shape(resume=True))[Feature.RESUME] is False
    assert Feature.RESUME not in offered(Shape())
    assert Feature.RESUME in destination_config(Shape(resume=True), "beta").features


def test_both_sides_are_told_to_go_without_hashes():
    """[MEM-21]"""
    assert offered(Shape(unhashed=True))[Feature.UNHASHED] is False
    assert Feature.UNHASHED not in offered(Shape())
    assert Feature.UNHASHED in destination_config(Shape(unhashed=True), "beta").features
    assert Feature.UNHASHED not in destination_config(Shape(), "beta").features


def test_who_switches_over_early_requires_it():
    assert offered(Shape(switchover="post-copy"))[Feature.POST_COPY] is True
    assert Feature.POST_COPY not in offered(Shape())
    assert destination_config(Shape(switchover="auto"), "beta").features >= {Feature.BITMAP}
    assert Feature.BITMAP not in destination_config(Shape(), "beta").features


def test_the_policy_is_the_shape_s():
    policy = source_config(Shape(max_rounds=2, downtime_s=0.5), "alpha", 1, NO_RUNNER).policy
    assert (policy.max_rounds, policy.allowed_downtime_s, policy.on_exhausted) == (2, 0.5, "switch")


def test_live_machines_begin_at_the_clock_s_time_and_recalled_ones_at_none():
    live = LiveMakers(Shape(), lambda: 100.0)
    assert live.destination("beta").timer > 100.0
    assert live.source(Holder("alpha", b"i" * 16)).timer is None
    recalling = RecallingMakers(Shape())
    assert recalling.machines == 0
    assert recalling.destination("beta").timer is None
    assert recalling.destination("beta") is recalling.destination("beta")
    assert recalling.machines == 1
