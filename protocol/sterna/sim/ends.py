"""What an endpoint of a world makes of the end of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sterna.core.admitting import is_handed_over
from sterna.core.events import Outcome, Result
from sterna.core.tables import SourceState
from sterna.core.verdict import has_all_pages
from sterna.errors import ProtocolError
from sterna.registry import ErrorCode, Owner
from sterna.sim.defects import Defect
from sterna.sim.holding import hold
from sterna.sim.hosts import NEVER, Hold, Host, Process, Task
from sterna.sim.judge import Violation

if TYPE_CHECKING:
    from sterna.sim.world import World

_BROKEN_RULES: Final = ErrorCode.BAD_MAGIC >> 8
"""The high byte of all codes for what a peer must not send."""
_REFUSED: Final = frozenset({ErrorCode.BUSY, ErrorCode.FULL})  # for now [RES-18]


def ended(world: World, host: Host, process: Process, task: Task, result: Result) -> bool:
    """A machine is done.

    Returns:
        Whether the task goes on, as recovery does that has asked.

    Raises:
        Violation: the peer has broken a rule.
    """
    _check_blame(host, task, result)
    if task.kind == "recovery":
        reached, task.machine, task.line = bool(task.line), None, 0
        _heard(world, task, result, reached=reached)
        return True
    process.tasks.remove(task)
    machine = task.machine
    state = None if machine is None else machine.state
    if result.outcome is Outcome.SUSPENDED and machine is not None:
        name = b"" if task.kind == "source" else task.image
        process.kept = {**process.kept, name: machine.kept(task.image)}
        if task.kind == "source" and result.code not in _REFUSED and task.line:
            process.refused = None
        return False
    if task.kind == "destination" and not task.image and result.outcome is Outcome.ROLLED_BACK:
        return False  # it was not let in, so there is nothing new
    if task.kind == "destination":
        forget_opening(host, task.image)
    process.rest, process.looked, process.refused = None, False, None
    if task.kind == "source" or task.image:
        world.ends.append((task.kind, str(result.outcome)))
    if state is SourceState.DEPARTED and world.makers.keeps:
        process.refused = NEVER
    process.undecided = result.session if result.outcome is Outcome.UNDECIDED else b""
    if task.kind == "source":
        handed_back = result.verdict is not None and result.verdict.handed_back
        process.heard = Owner.SOURCE if handed_back else None
        if Defect.RESUMES_ON_TIMEOUT in world.defects and result.outcome is Outcome.UNDECIDED:
            _resumes(world, host, process, task)
    return False


def forget_opening(host: Host, session: bytes) -> None:
    """A session that has ended before HANDOVER is not begun anew."""
    noted = host.history.session(session)
    if noted is None or not is_handed_over(host.history, noted):
        host.openings = {name: each for name, each in host.openings.items() if name != session}


def _check_blame(host: Host, task: Task, result: Result) -> None:
    """Bytes arrive as they were sent, and whoever sends them is a machine of ours: nobody breaks a rule.

    A host's refusal of a resumption is none of that, see `sterna.sim.plans`.

    Raises:
        Violation: somebody says that his peer has.
    """
    if result.code is ErrorCode.BAD_TOKEN and not isinstance(result.error, ProtocolError):
        return
    if result.code is not None and result.code >> 8 == _BROKEN_RULES:
        raise Violation("converges", f"the {task.kind} at {host.name} ends with {result.code.name.lower()}")


def _heard(world: World, task: Task, result: Result, *, reached: bool) -> None:
    """What a destination has said, in the terms of recovery.

    If nobody could be reached, it is asked again when somebody is there; without an answer, in any case.
    """
    verdict = result.verdict
    if verdict is None:
        task.peer, task.failed = Owner.UNDECIDED, task.failed or reached
        return
    task.complete = has_all_pages(verdict)
    # With a store a VERDICT says whose the slot is; only that it was handed back is news.
    stored = world.stores and verdict.owner is Owner.SOURCE
    owner = Owner.UNDECIDED if stored else verdict.owner
    task.peer = Owner.SOURCE if verdict.handed_back else owner


def _resumes(world: World, host: Host, process: Process, task: Task) -> None:
    hold(world, host, process, task, Hold("unmark", task.image))
    hold(world, host, process, task, Hold("resume", task.image))
