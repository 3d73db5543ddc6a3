"""Sessions of the guest that are open at a destination when its source opens another one there.

Which of them give way is `sterna.core.admitting.gives_way`'s to say, as at a host. Those are cancelled
(`sterna.sim.tasks`); the newer one waits for their end, and what is kept of one that no connection has is
freed [ONE-13].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sterna.core.admitting import OpenSession, gives_way
from sterna.core.tables import COMMITTED
from sterna.sim.defects import Defect
from sterna.sim.hosts import GiveWay, Host, Process, Task, peer_of
from sterna.sim.judge import Violation
from sterna.sim.kept import Noted

if TYPE_CHECKING:
    from sterna.sim.world import World
    from sterna.wire.records import Hello


def others(host: Host, process: Process, task: Task, but: bytes = b"") -> list[tuple[bytes, OpenSession]]:
    """Those that a process has open as a destination, beside a task's, by id. `but`: one not meant."""
    peer, found = peer_of(host), []
    for each in process.tasks:
        if each is not task and each.kind == "destination" and each.image not in {b"", but}:
            machine = each.machine
            assert machine is not None
            assert machine.ticket is not None
            epoch, is_committed = machine.ticket.hello.epoch, machine.state in COMMITTED
            found.append((each.image, OpenSession(epoch, peer, peer, is_committed)))
    for session, kept in process.kept.items():
        if session not in {b"", but}:
            assert not isinstance(kept, Noted)
            assert kept.ticket is not None
            found.append((session, OpenSession(kept.ticket.hello.epoch, peer, peer, kept.is_committed)))
    return found


def give_way(world: World, host: Host, process: Process, task: Task, hello: Hello) -> GiveWay | None:
    """The sessions that a newer one replaces, and is to wait for; None for nothing.

    Raises:
        LocalProtocolError: BUSY, one does not give way.
    """
    if Defect.OLDER_GOES_ON in world.defects:
        return None
    there = others(host, process, task, hello.session)
    places = gives_way(hello, peer_of(host), [facts for _, facts in there], waited=has_waited(task))
    return GiveWay(tuple([there[place][0] for place in places])) if places else None


def has_waited(task: Task) -> bool:
    """Whether it has, for older sessions to end."""
    return any(isinstance(each, GiveWay) for each in task.results)


def have_ended(process: Process, op: GiveWay) -> bool:
    """Whether no connection has one of the sessions any more that give way."""
    return not any(each.image in op.sessions for each in process.tasks)


def check_alone(host: Host, process: Process, task: Task, session: bytes) -> None:
    """Room is made for the guest of this session: no other one may still bring it [ONE-12] [ONE-13].

    Raises:
        Violation: one may.
    """
    if not all(facts.is_committed for _, facts in others(host, process, task, session)):
        raise Violation("one-runner", f"two sessions that bring the guest are open at {host.name}")
