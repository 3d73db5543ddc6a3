"""Who owns a guest that was handed over, as `sterna migrate` finds it out while its session may go on."""

from __future__ import annotations

from dataclasses import replace

from sterna.cli.endpoint import Ending
from sterna.core.events import Outcome, Result
from sterna.core.verdict import Step
from sterna.host.recovery import Recovered, Recovery
from sterna.registry import Owner


async def interruptible(recovery: Recovery, ending: Ending) -> Recovered | None:
    """Run it; the first wish to end, which may have come already, only ends its waiting [CON-72]."""

    def wish(_: str) -> None:
        ending.late = True
        recovery.stop()

    if ending.late:
        recovery.stop()
        return await recovery.run()
    before, ending.ask = ending.ask, wish
    try:
        return await recovery.run()
    finally:
        ending.ask = before


class Deciding:
    """What one call of the command finds out.

    Args:
        recovery: of the guest, before the session.
        ending: asked to end, it waits for nobody any more.
    """

    def __init__(self, recovery: Recovery, ending: Ending) -> None:
        self._recovery = recovery
        self._ending = ending
        self._recovered: Recovered | None = None

    async def is_elsewhere(self, result: Result) -> bool:
        """Whether the guest of a session that ended so is the destination's; else it may run here now."""
        recovered = await self._find(result, mapped=True)
        if recovered is None or recovered.judgement.owner is not Owner.DESTINATION:
            return False
        # Should the image be gone with its holder: this process has its pages mapped, and serves them now.
        self._recovered = replace(recovered, lost=False)
        return True

    async def in_the_end(self, result: Result) -> Recovered | None:
        """What is known of the owner in the end, None where nobody had to ask.

        A destination that seemed to own the guest may have handed it back instead of running it [ONE-37]. One
        that runs it may lack pages, or one that may yet claim it would; this process was the last to have
        them [ONE-42].
        """
        unknown = result.outcome is Outcome.UNDECIDED and self._recovered is None
        handed_back = result.verdict is not None and result.verdict.handed_back
        if unknown or handed_back or (self._owes(result) and not await self._recovery.has_image()):
            await self._find(result)
        return self._recovered

    def _owes(self, result: Result) -> bool:
        """Whether the guest has, or would have, too few pages without this process."""
        unclaimed = self._recovered is not None and self._recovered.judgement.step is Step.CLAIM_NEXT
        return owes_pages(result) or (result.outcome is Outcome.UNDECIDED and unclaimed)

    async def _find(self, result: Result, *, mapped: bool = False) -> Recovered | None:
        again = self._recovery.anew(result.verdict, mapped=mapped)
        self._recovered = await interruptible(again, self._ending)
        return self._recovered


def owes_pages(result: Result) -> bool:
    """Whether a source's session has ended before the guest, which runs elsewhere, had all of its pages."""
    return result.outcome is Outcome.MOVED and result.after is not None and result.after.seconds is None
