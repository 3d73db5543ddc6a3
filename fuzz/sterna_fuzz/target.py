"""What a target is made of: properties, each a statement that holds for every example.

A property is data, and nothing of it is a test yet: `bind` makes one, under settings and a seed that come
from outside. So the same property runs in pytest with a few examples, in `sterna fuzz` for as long as
somebody has time, and under a coverage-guided fuzzer, which brings its own bytes.

What a check returns are words for the statistics: the code of the error that an input ended with, or how far
it came. A fuzzer that only ever sees `header_checksum` tests one line, and the report shows that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, TypeVar

from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

TestT = TypeVar("TestT", bound=Callable[..., object])
Words: TypeAlias = Iterable[str]


class Configure(Protocol):
    """Decorates a test, or the class of a state machine, with settings and a seed."""

    def __call__(self, test: TestT, /) -> TestT:
        """The same test, decorated."""
        ...


class Observer(Protocol):
    """Whoever counts. `begins` may raise to end the run."""

    def begins(self) -> None:
        """An example is about to be checked."""
        ...

    def reached(self, words: Words) -> None:
        """The example was checked, and found good."""
        ...


class Property(Protocol):
    """A statement that holds for every example.

    Attributes:
        name: unique in its target.
        invariant: its name in chapter 19 of the specification.
        text: the statement, a sentence for people.
        weight: its share of a target's examples.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def invariant(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def weight(self) -> int: ...  # noqa: D102

    def bind(self, observer: Observer, configure: Configure) -> Callable[[], None]:
        """A test that has not run yet. It raises what the first bad example raised."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A property of values that are drawn before the check sees them.

    Attributes:
        arguments: strategies of the check's arguments, by name.
        check: raises if the statement does not hold.
    """

    name: str
    invariant: str
    text: str
    arguments: Mapping[str, SearchStrategy[object]]
    check: Callable[..., Words]
    weight: int = 1

    def bind(self, observer: Observer, configure: Configure) -> Callable[[], None]:
        """See `Property.bind`."""

        def test(**arguments: object) -> None:
            observer.begins()
            observer.reached(self.check(**arguments))

        test.__name__ = test.__qualname__ = self.name.replace("-", "_")
        return configure(given(**self.arguments)(test))


class Machine(RuleBasedStateMachine):
    """A state machine that is observed."""

    observer: ClassVar[Observer | None] = None

    def __init__(self) -> None:
        super().__init__()
        if self.observer is not None:
            self.observer.begins()

    def reached(self) -> Words:
        """What this run came to."""
        return ()


@dataclass(frozen=True, slots=True)
class Stateful:
    """A property of whole histories: the invariants of a state machine.

    Attributes:
        machine: a class that makes one history each time it is called.
    """

    name: str
    invariant: str
    text: str
    machine: type[Machine]
    weight: int = 1

    def bind(self, observer: Observer, configure: Configure) -> Callable[[], None]:
        """See `Property.bind`."""

        def teardown(machine: Machine) -> None:
            if isinstance(sys.exception(), Exception):
                return  # it has failed: what comes of it does not matter any more
            self.machine.teardown(machine)
            observer.reached(machine.reached())

        members = {"observer": observer, "teardown": teardown}
        bound = configure(type(self.machine.__name__, (self.machine,), members))
        return lambda: run_state_machine_as_test(bound)


@dataclass(frozen=True, slots=True)
class Target:
    """What `sterna fuzz NAME` runs.

    Attributes:
        make: its properties; the argument names the mutators that may be used, all if it is empty.
        mutators: the mutators that it has, with what each does.
    """

    name: str
    text: str
    make: Callable[[Sequence[str]], Sequence[Property]]
    mutators: Mapping[str, str]

    def properties(self, only: Sequence[str] = ()) -> list[Property]:
        """The properties that `only` selects, by their own names or by those of mutators; all if empty.

        Raises:
            ValueError: something of that name does not exist here. The text says what does.
        """
        every = self.make([name for name in only if name in self.mutators])
        names = {each.name for each in every}
        if unknown := sorted(set(only) - names - self.mutators.keys()):
            known = ", ".join([*sorted(names), *sorted(self.mutators)])
            raise ValueError(f"{', '.join(unknown)}: not in {self.name}, which has {known}")
        return [each for each in every if each.name in only] or list(every)
