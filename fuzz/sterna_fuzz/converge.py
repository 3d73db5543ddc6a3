"""The target `converge`: any workload over any link under any policy, in virtual time.

What is stated here is what an operator relies on. With `MARGIN` times the bandwidth that a steady guest
dirties, it moves within `ROUNDS_MAX` rounds and the downtime that is allowed. Whatever it writes, the rounds
are as many as the policy allows and no more, and the end is a guest that has moved, whole, or a coded no. And
the downtime that was foreseen is about that which comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from sterna.core.policy import DEFAULT_SETTINGS, PolicySettings
from sterna.registry import ErrorCode
from sterna.sim import Hosts, LinkSettings, Migration, Outline, Writes
from sterna_fuzz.target import Given, Property, Target, Words

MARGIN: Final = 1.25
ROUNDS_MAX: Final = 20
# The downtime that comes is at most so many times what was foreseen, and at least so small a part of it.
FORESEEN_FACTOR: Final = 2.0
# What the first copy takes at most: simulated hours cost real time by the number of their batches.
FULL_COPY_S: Final = 1.0
BANDWIDTHS: Final = (1e6, 12.5e6, 125e6, 312.5e6, 1.25e9)
_REQUESTS: Final = 8  # of the blackout: pause, collect, save, load, grant, record, record, claim, record, run


@dataclass(frozen=True, slots=True)
class World:
    """What a migration depends on.

    Attributes:
        full_copy_s: memory, as the time that the link takes for it.
        write_share: what the guest writes, as a share of the bandwidth.
        hot_share: of the memory, the part that is written again and again.
        cold_share: of the writes, those that go elsewhere.
        burst_s: length of bursts; 0 for a steady guest.
        filled: share of the memory that is not zero.
        request_s: what a host needs for anything.
        state_bytes: of CPU and devices.
    """

    bandwidth_bytes_s: float = 125e6
    latency_s: float = 0.001
    jitter_s: float = 0.0
    full_copy_s: float = 1.0
    write_share: float = 0.0
    hot_share: float = 1.0
    cold_share: float = 0.0
    burst_s: float = 0.0
    filled: float = 1.0
    request_s: float = 0.001
    state_bytes: int = 1 << 16
    seed: int = 0

    @property
    def memory_bytes(self) -> int:
        """Of the guest; at least a page."""
        return max(int(self.bandwidth_bytes_s * self.full_copy_s), 1)

    def tight_policy(self) -> PolicySettings:
        """One that allows little more downtime than cannot be avoided, and knows what the hosts need."""
        requests_s = _REQUESTS * self.request_s
        fixed_s = requests_s + 3 * self.latency_s + self.state_bytes / self.bandwidth_bytes_s
        return PolicySettings(allowed_downtime_s=3 * fixed_s + 0.03, fixed_cost_s=requests_s)

    def run(self, policy: PolicySettings) -> Outline:
        """The migration."""
        writes = Writes(
            rate_bytes_s=self.bandwidth_bytes_s * self.write_share,
            hot_bytes=int(self.memory_bytes * self.hot_share),
            cold_share=self.cold_share,
            burst_s=self.burst_s,
            burst_share=0.8,
        )
        link = LinkSettings(self.bandwidth_bytes_s, self.latency_s, self.jitter_s)
        hosts = Hosts(request_s=self.request_s, state_bytes=self.state_bytes)
        migration = Migration(
            self.memory_bytes, writes, link, policy, hosts=hosts, filled=self.filled, seed=self.seed
        )
        return migration.run()


def worlds(
    write_share: st.SearchStrategy[float], *, steady: bool = False, full_copy_s: float = FULL_COPY_S
) -> st.SearchStrategy[World]:
    """Worlds with a guest that writes so much; `steady`: no bursts, no jitter, and no writes elsewhere."""
    some = st.just(0.0) if steady else st.floats(0.0, 1.0)
    return st.builds(
        World,
        bandwidth_bytes_s=st.sampled_from(BANDWIDTHS) | st.floats(1e6, BANDWIDTHS[-1]),
        latency_s=st.floats(0.0, 0.02),
        jitter_s=some.map(lambda share: share * 0.01),
        full_copy_s=st.floats(0.01, full_copy_s),
        write_share=write_share,
        hot_share=st.floats(0.01, 1.0),
        cold_share=some.map(lambda share: share / 2),
        burst_s=some.map(lambda share: share if share > 0.1 else 0.0),
        filled=st.floats(0.1, 1.0),
        request_s=st.floats(0.0, 0.002),
        state_bytes=st.integers(0, 1 << 16),
        seed=st.integers(0, 1 << 32),
    )


policies = st.builds(
    PolicySettings,
    allowed_downtime_s=st.floats(0.01, 2.0),
    max_rounds=st.integers(1, 12),
    max_throttle=st.sampled_from((0.0, 0.5, 0.99)),
    patience=st.integers(1, 4),
    worthwhile_gain=st.floats(0.1, 1.0),
    fixed_cost_s=st.floats(0.0, 0.05),
    on_exhausted=st.sampled_from(("abort", "switch")),
)


def check_end(world: World, policy: PolicySettings) -> Words:
    """Bounded rounds, and a guest that has moved whole or stays with a code [CON-36]."""
    found = world.run(policy)
    rounds = len(found.rounds)
    assert rounds <= policy.max_rounds, f"{rounds} rounds, allowed are {policy.max_rounds}"
    assert not found.stale_pages, f"{found.stale_pages} pages are not those of the pause"
    numbers = [each.round for each in found.rounds]
    assert numbers == sorted(set(numbers)), f"rounds {numbers} [CON-20]"
    throttles = [each.throttle for each in found.rounds]
    assert throttles == sorted(throttles), f"a throttle was loosened: {throttles}"
    assert all(share <= policy.max_throttle + 1e-9 for share in throttles), f"slowed down by {max(throttles)}"
    if not found.moved:
        assert found.code is ErrorCode.NOT_CONVERGING, f"it stays here, and the code is {found.code!r}"
        assert policy.on_exhausted == "abort", "it was to be switched over in any case"
    return (_word(found),)


def check_convergence(world: World) -> Words:
    """With bandwidth enough the guest moves soon, and within what was allowed [converges]."""
    policy = world.tight_policy()
    found = world.run(policy)
    assert found.moved, f"it does not move: {found.decisions[-1].verdict}"
    assert len(found.rounds) <= ROUNDS_MAX, f"{len(found.rounds)} rounds"
    assert found.predicted_s <= policy.allowed_downtime_s, f"{found.predicted_s} s were foreseen"
    assert not found.stale_pages, f"{found.stale_pages} pages are not those of the pause"
    return (f"{len(found.rounds)} rounds",)


def check_throttle(world: World) -> Words:
    """A guest that writes faster than the link carries is slowed down until it moves."""
    found = world.run(DEFAULT_SETTINGS)
    assert not found.stale_pages, f"{found.stale_pages} pages are not those of the pause"
    assert found.moved, f"it does not move: {found.decisions[-1].verdict}"
    return (_word(found),)


def check_foresight(world: World) -> Words:
    """The downtime of a steady guest is about what was foreseen when it was decided."""
    requests_s = _REQUESTS * world.request_s
    found = world.run(world.tight_policy())
    assert found.moved, f"it does not move: {found.code!r}"
    assert found.downtime_s is not None
    # Written between the decision and the pause: nobody could know yet.
    later_s = world.write_share * (2 * world.latency_s + 4 * world.request_s + 0.01)
    # Of a guest that writes a page now and then, one or two may fall between the last look and the pause.
    page_s = max((each.bulk_bytes / each.pages for each in found.rounds if each.pages), default=0.0)
    later_s += page_s / world.bandwidth_bytes_s if world.write_share else 0.0
    most_s = FORESEEN_FACTOR * found.predicted_s + requests_s + 2 * later_s + 0.01
    least_s = found.predicted_s / FORESEEN_FACTOR - requests_s - 0.01
    assert least_s <= found.downtime_s <= most_s, f"{found.downtime_s} s, foreseen were {found.predicted_s}"
    return ("within the factor",)


def _word(found: Outline) -> str:
    if not found.moved:
        return "not_converging"
    slowed = any(each.throttle for each in found.rounds)
    return "moved, slowed down" if slowed else "moved"


def properties(_: Sequence[str]) -> list[Property]:
    """The properties."""
    return [
        Given(
            "ends",
            "converges",
            "rounds are bounded; the guest moves whole, or stays with a code",
            {"world": worlds(st.floats(0.0, 20.0)), "policy": policies},
            check_end,
            weight=3,
        ),
        Given(
            "converges",
            "converges",
            f"with {MARGIN} times the bandwidth that it dirties, a guest moves within {ROUNDS_MAX} rounds",
            {"world": worlds(st.floats(0.0, 1 / MARGIN), steady=True)},
            check_convergence,
            weight=2,
        ),
        Given(
            "throttles",
            "converges",
            "a guest that is too fast is slowed down until it moves",
            {"world": worlds(st.floats(1.2, 20.0), steady=True, full_copy_s=2 * FULL_COPY_S)},
            check_throttle,
        ),
        Given(
            "foresees",
            "converges",
            f"the downtime of a steady guest is within a factor of {FORESEEN_FACTOR:g} of what was foreseen",
            {"world": worlds(st.floats(0.0, 1 / MARGIN), steady=True)},
            check_foresight,
        ),
    ]


TARGET: Final = Target("converge", "workloads, links and policies in virtual time", properties, {})
