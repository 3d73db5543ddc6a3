"""Hosts and processes that have their parts when they are asked for them.

To the code of a step they are a `Host` and a `Process`. `sterna.sim.parts` says which parts there are;
each is fetched when one of its fields is read, and what was fetched or set is told in the end (`parts`).

Of the processes of a host the first one - of the lowest number, most often the endpoint - is in parts itself,
and each of its tasks is one. All others are one part together: there are few, and seldom any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeAlias, cast

from sterna.sim.hosts import NAMES, Front, Host, Process, Reach, Task
from sterna.sim.parts import (
    FIELDS,
    GLANCES,
    HOLDERS,
    KEPT,
    KNOWS,
    OTHERS,
    RECORDS,
    REST,
    SHOWN,
    TASKS,
    TASKS_MAX,
    THERE,
    Glance,
    first_number,
    parts_of,
)

Fetch: TypeAlias = Callable[[int], Any]
"""Gives a part of a host, by what it is."""


class _Fields:
    """Where fields of a class stand, and which of them stand in one part."""

    def __init__(self, kind: type, places: dict[str, int]) -> None:
        self.place: Final = places
        self.together: Final = {at: [name for name in places if places[name] == at] for at in places.values()}
        self._slots: Final = {name: getattr(kind, name) for name in places}

    def has(self, one: object, name: str) -> bool:
        """Whether a field was fetched, or set."""
        try:
            self._slots[name].__get__(one)
        except AttributeError:
            return False
        return True

    def fill(self, one: object, place: int, part: Any) -> None:  # noqa: ANN401 - whatever stands there
        """Set the fields of a part, but for those that are set."""
        names = self.together[place]
        for name, value in zip(names, part if len(names) > 1 else (part,), strict=True):
            if not self.has(one, name):
                setattr(one, name, value)

    def parts(self, one: object) -> Iterator[tuple[int, object]]:
        """Those of which anything was fetched or set, whole."""
        for place, names in self.together.items():
            if any(self.has(one, name) for name in names):
                values = tuple([getattr(one, name) for name in names])
                yield place, values if len(names) > 1 else values[0]


class GlancedTask(Task):
    """A task that is looked at: what is under way is known of it, and all else is fetched.

    Of what is under way there is no more than what it is: which record, image or epoch is not told.
    """

    __slots__ = ("_fetch",)

    def __init__(self, number: int, glance: Glance, fetch: Fetch) -> None:
        self.number = number
        self.kind, self.image, self.op, self.landed = glance
        self._fetch = fetch

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever stands there
        return getattr(self._fetch(TASKS + self.number - 1), name)


class FetchedTasks:
    """The tasks of a process, by number. It does what `Process.tasks` is asked for.

    Args:
        fetch: gives parts.
        own: whether tasks are copies, that may be changed.
    """

    def __init__(self, fetch: Fetch, *, own: bool) -> None:
        self._fetch: Final = fetch
        self._own: Final = own
        self.had: Final[dict[int, Task | None]] = {}

    def get(self, number: int) -> Task | None:
        """The task of this number."""
        if number not in self.had:
            task = cast("Task | None", self._fetch(TASKS + number - 1)) if number <= TASKS_MAX else None
            self.had[number] = task.copy() if task is not None and self._own else task
        return self.had[number]

    @property
    def numbers(self) -> Iterator[int]:
        """Of those that there are."""
        for number in range(1, TASKS_MAX + 1):
            if number in self.had:
                if self.had[number] is not None:
                    yield number
            elif self._fetch(THERE + number - 1):
                yield number

    def __iter__(self) -> Iterator[Task]:
        if not self._own:
            yield from self.glanced()
            return
        for number in self.numbers:
            yield cast("Task", self.get(number))

    def glanced(self) -> Iterator[Task]:
        """The same, to be looked at."""
        for number in range(1, TASKS_MAX + 1):
            if number not in self.had:
                glance = cast("Glance | None", self._fetch(GLANCES + number - 1))
                task: Task | None = glance and GlancedTask(number, glance, self._fetch)
            else:
                task = self.had[number]
            if task is not None:
                yield task

    def __bool__(self) -> bool:
        return any(task is not None for task in self.had.values()) or any(self.numbers)

    def append(self, task: Task) -> None:
        """One more."""
        if task.number > TASKS_MAX:
            raise OverflowError(f"more than {TASKS_MAX} tasks of a process: explore with fewer faults")
        self.had[task.number] = task

    def remove(self, task: Task) -> None:
        """One is done."""
        self.had[task.number] = None

    def close_up(self, renamed: Callable[[Task, int], None]) -> None:
        """Leave no gap in the numbers. Who is before the first one is not looked at."""
        for rank, number in enumerate(list(self.numbers), 1):
            if number != rank:
                task = cast("Task", self.get(number))
                self.had[rank], self.had[number] = task, None
                renamed(task, rank)


class FetchedProcess(Process):
    """The first process of a host."""

    __slots__ = ("_fetch", "fetched_tasks")

    def __init__(self, number: int, fetch: Fetch, *, own: bool) -> None:
        self.number = number
        self.tries = 0
        self._fetch = fetch
        self.fetched_tasks = FetchedTasks(fetch, own=own)
        self.tasks = cast("list[Task]", self.fetched_tasks)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever stands there
        place = _OF_PROCESS.place[name]
        _OF_PROCESS.fill(self, place, self._fetch(place))
        return object.__getattribute__(self, name)

    @property
    def next_number(self) -> int:
        """See `Process`."""
        return max(self.fetched_tasks.numbers, default=0) + 1

    def task(self, number: int) -> Task | None:
        """See `Process`."""
        return self.fetched_tasks.get(number)

    def claims(self) -> list[Reach]:
        """See `Process`. Who claims nothing is not looked at."""
        tasks = [self.task(each.number) for each in self.fetched_tasks.glanced() if each.claims]
        return [cast("Reach", each.op) for each in tasks if each is not None]

    def parts(self) -> Iterator[tuple[int, object]]:
        """What was fetched or set."""
        yield from _OF_PROCESS.parts(self)
        for number, task in self.fetched_tasks.had.items():
            yield TASKS + number - 1, task


class FetchedProcesses:
    """The processes of a host. It does what `Host.processes` is asked for."""

    def __init__(self, number: int, fetch: Fetch, *, own: bool) -> None:
        self._number: Final = number
        self._fetch: Final = fetch
        self._own: Final = own
        self._first: Process | None = None
        self._was_set = False  # the first one
        self._others: list[Process] | None = None

    @property
    def first(self) -> Process | None:
        """The one of the lowest number that there can be."""
        if self._first is None and not self._was_set and self._fetch(SHOWN) is not None:
            self._first = FetchedProcess(self._number, self._fetch, own=self._own)
        return self._first

    @property
    def others(self) -> list[Process]:
        """All but that one."""
        if self._others is None:
            others = cast("list[Process]", self._fetch(OTHERS))
            self._others = [each.copy() for each in others] if self._own else others
        return self._others

    def __iter__(self) -> Iterator[Process]:
        first = self.first
        if first is not None and (not first.beside or not self.others):
            yield first
            yield from self.others
        else:  # the endpoint comes first
            yield from sorted([*([first] if first else []), *self.others], key=lambda each: each.beside)

    def get(self, number: int) -> Process | None:
        """The process of this number."""
        if number == self._number:
            return self.first
        return next((each for each in self.others if each.number == number), None)

    @property
    def endpoint(self) -> Process | None:
        """See `Host`."""
        first = self.first
        if first is not None and not first.beside:
            return first
        return next((each for each in self.others if not each.beside), None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def insert(self, _: int, process: Process) -> None:
        """One more. They have an order of their own: the endpoint comes first."""
        if process.number == self._number:
            self._first, self._was_set = process, True
        else:
            self.others.append(process)

    def remove(self, process: Process) -> None:
        """One is no more."""
        if process.number == self._number:
            self._first, self._was_set = None, True
        else:
            self.others.remove(process)

    def close_up(self, renamed: Callable[[int, Task, int], None]) -> None:
        """Leave no gap in the numbers of tasks of the first one."""
        first = self.first
        if isinstance(first, FetchedProcess):
            first.fetched_tasks.close_up(partial(renamed, first.number))

    def close_up_others(self, renamed: Callable[[int, Task, int], None]) -> None:
        """And of all others, if there was anything to do with them."""
        for process in self._others or ():
            for rank, task in enumerate(process.tasks, 1):
                if task.number != rank:
                    renamed(process.number, task, rank)

    def parts(self) -> Iterable[tuple[int, object]]:
        """What was fetched or set."""
        if self._others is not None:
            yield OTHERS, self._others
        if self._was_set:
            yield from parts_of(self._first)
        elif isinstance(self._first, FetchedProcess):
            yield from self._first.parts()


class FetchedHost(Host):
    """A host.

    Args:
        place: which of the two it is.
        fetch: gives parts.
        own: whether it is about to change, and its parts are copies.
    """

    __slots__ = ("_fetch", "_own", "_processes")

    def __init__(self, place: int, fetch: Fetch, *, own: bool) -> None:
        self.name = NAMES[place]
        self.starts = 0
        self.cached = None
        self._fetch = fetch
        self._own = own
        self._processes = FetchedProcesses(first_number(place), fetch, own=own)
        self.processes = cast("list[Process]", self._processes)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever stands there
        place = _OF_HOST.place[name]
        part = self._fetch(place)
        if place == HOLDERS and self._own:
            part = [each.copy() for each in part]
        _OF_HOST.fill(self, place, part)
        return object.__getattribute__(self, name)

    def has(self, name: str) -> bool:
        """Whether a field was fetched, or set."""
        return _OF_HOST.has(self, name)

    @property
    def endpoint(self) -> Process | None:
        """See `Host`."""
        return self._processes.endpoint

    def process(self, number: int) -> Process | None:
        """See `Host`."""
        return self._processes.get(number)

    def front(self) -> Front:
        """See `Host`."""
        records = len(self.history.records) if self.has("history") else self._fetch(RECORDS)
        processes = tuple([(each.number, each.frozen) for each in self.processes])
        keeps = any(each.kept and not each.frozen for each in self.processes)
        return Front(records, processes, self.lock, keeps)

    def close_up(self, renamed: Callable[[int, int, Task, int], None]) -> None:
        """See `FetchedProcesses`. `renamed`: is told host, process, task and new number."""
        self._processes.close_up(partial(renamed, self.place))

    def close_up_others(self, renamed: Callable[[int, int, Task, int], None]) -> None:
        """The same."""
        self._processes.close_up_others(partial(renamed, self.place))

    def parts(self) -> Iterator[tuple[int, object]]:
        """What was fetched or set."""
        yield from _OF_HOST.parts(self)
        yield from self._processes.parts()


_OF_HOST: Final = _Fields(Host, FIELDS)
_OF_PROCESS: Final = _Fields(
    Process,
    {
        "beside": SHOWN, "frozen": SHOWN, "stale": KNOWS, "undecided": KNOWS, "heard": KNOWS, "rest": REST,
        "looked": REST, "refused": REST, "kept": KEPT,
    },
)  # fmt: skip
