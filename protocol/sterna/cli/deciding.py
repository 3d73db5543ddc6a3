"""Who owns a guest that was handed over, as `sterna migrate` finds it out while its session may go on."""

from __future__ import annotations

from sterna.cli.endpoint import Ending
from sterna.core.events import Outcome, Result
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
        recovered = await interruptible(self._recovery.anew(result.verdict), self._ending)
        self._recovered = recovered
        return recovered is not None and recovered.judgement.owner is Owner.DESTINATION

    async def in_the_end(self, result: Result) -> Recovered | None:
        """What is known of the owner in the end, None where nobody had to ask.

        A destination that seemed to own the guest may have handed it back instead of running it [ONE-37].
        """
        unknown = result.outcome is Outcome.UNDECIDED and self._recovered is None
        if unknown or (result.verdict is not None and result.verdict.handed_back):
            await self.is_elsewhere(result)
        return self._recovered
