"""Worlds for tests: small ones, that go as far as a test wants."""

from __future__ import annotations

from collections.abc import Callable

from sterna.sim.makers import LiveMakers, RecallingMakers, Shape
from sterna.sim.world import Step, World

ALPHA, BETA = 0, 1


def world_of(
    *, store: bool = True, defects: frozenset = frozenset(), clocked: bool = True, **more: object
) -> World:
    """A world at the beginning; `clocked`: with machines of its own; `more` of their shape."""
    shape = Shape(store, **more)
    makers = LiveMakers(shape, lambda: 0.0) if clocked else RecallingMakers(shape)
    return World(makers, store=store, defects=defects)


def go(world: World, until: Callable[[World], bool] = lambda _: False, steps: int = 2000) -> list[Step]:
    """Take steps until something is so, or nothing is left to be done. The steps."""
    taken: list[Step] = []
    while not until(world) and (found := world.steps()):
        world.take(found[0])
        taken.append(found[0])
        assert len(taken) < steps, f"goes round in circles: {taken[-10:]}"
    return taken


def states(world: World) -> dict[str, object]:
    """Where the machines stand, by kind of task."""
    return {
        task.kind: task.machine.state
        for host in world.hosts
        for process in host.processes
        for task in process.tasks
        if task.machine is not None
    }


def stands(**wanted: object) -> Callable[[World], bool]:
    """Whether machines stand where they should."""
    return lambda world: all(states(world).get(kind) is state for kind, state in wanted.items())


def kinds(world: World, host: int) -> list[str]:
    """The records of a host, by kind."""
    return [each.kind for each in world.hosts[host].history.records]


def parted(until: dict[str, object], *more: Step, clocked: bool = False, **shape: object) -> World:
    """A world in which both sides keep a session that has come so far, and of which these steps were made."""
    world = world_of(resume=True, clocked=clocked, **shape)
    world.begin(ALPHA)
    go(world, stands(**until))
    for step in more:
        world.take(step)
    while not all(host.endpoint.kept for host in world.hosts):
        world.take(next(step for step in world.steps() if step[0] in {"lost", "act"}))
    return world
