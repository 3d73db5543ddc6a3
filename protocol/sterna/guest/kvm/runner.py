"""The thread of a vCPU: see `sterna.guest.guest_thread` for its rate and how it is stopped.

The guest asks at its doorbell how much to write next, and is kept waiting there. Between two doorbells it
runs by itself; a pause ends that with a kick, at whichever instruction it is. Waiting for a page that comes
later is such an instruction, too, and does not keep a pause waiting. Page tables are another matter: the
kernel itself reads them for the guest, and no signal ends that. So the thread waits for those before the
first instruction, and counts as parked there.

The count of writes is in a register of the guest. It comes with each of its exits.
"""

from __future__ import annotations

from collections.abc import Callable

from sterna.guest.guest_thread import GuestThread
from sterna.guest.kvm.layout import BEAT, COUNT, DOORBELL, ERRORS
from sterna.linux.kvm_vcpu import REGISTERS, PortAccess, Vcpu, VcpuError


class VcpuRunner(GuestThread):
    """Runs a vCPU.

    Args:
        vcpu: it belongs to the runner's thread except while that is parked.
        rate_pages_s: pages that it may write a second; 0 for as fast as it goes.
        on_progress: see `GuestThread`.
        wait_for_tables: called in the runner's thread before the first instruction; None if there is nothing
            to wait for.
        at_first_exit: called there when the guest has come back for the first time; None for nothing.
        at_doorbell: called there with the count whenever the guest comes to its doorbell, until it answers
            that this is enough; None for nothing.

    Attributes:
        count: writes, as of the guest's last exit.
        errors: likewise, bad pages that it met.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        rate_pages_s: float,
        on_progress: Callable[[str], None],
        *,
        wait_for_tables: Callable[[], None] | None = None,
        at_first_exit: Callable[[], None] | None = None,
        at_doorbell: Callable[[int], bool] | None = None,
    ) -> None:
        super().__init__("a vCPU", rate_pages_s, on_progress)
        self.vcpu = vcpu
        registers: tuple[int, ...] = REGISTERS.unpack(vcpu.registers())
        self.count, self.errors = registers[COUNT], registers[ERRORS]
        self._wait_for_tables = wait_for_tables
        self._at_first_exit = at_first_exit
        self._at_doorbell = at_doorbell
        self._thread.start()

    def stop(self) -> None:
        """Likewise, and keep nothing of the machine that is not needed for figures."""
        super().stop()
        self._at_doorbell = None

    def _written(self) -> int:
        return self.count

    def _words(self, failure: BaseException) -> str:
        return str(failure)

    def _interrupt(self) -> None:
        self.vcpu.kick(self._thread)

    def _let_run(self) -> None:
        self.vcpu.let_run()

    def _run_until_told(self) -> None:
        if self._wait_for_tables is not None:
            if not self._wait_as_if_parked(self._wait_for_tables):
                return
            self._wait_for_tables = None
        self._begin()
        first, access = True, None
        while not self._told():
            access = self.vcpu.run()
            if access is None:
                self._heed_kick()
            elif self._at_first_exit is not None:
                self._at_first_exit()
                self._at_first_exit = None
            self._note(self.vcpu.exit_registers())
            self._tick()
            if access is not None and not access.is_out:
                # If it stopped at the doorbell, its first write stands alone.
                self.vcpu.answer(self._answer(access, first=first))
                first = False
            elif access is not None and access.port != BEAT:
                raise VcpuError(f"an access to port {access.port:#x}")
        if access is not None:
            self.vcpu.finish_access()
        self._note(REGISTERS.unpack(self.vcpu.registers()))
        self._end()

    def _heed_kick(self) -> None:
        """A wish to park may have been taken back meanwhile; then the kick must not end each further turn."""
        with self._condition:
            if not self._told():
                self.vcpu.let_run()

    def _note(self, registers: tuple[int, ...]) -> None:
        """Take the count out of the registers, and tell of the first write."""
        count, self.errors = registers[COUNT], registers[ERRORS]
        if count != self.count:
            self.count = count
            self._wrote()

    def _answer(self, access: PortAccess, *, first: bool) -> int:
        if access.port != DOORBELL:
            raise VcpuError(f"an access to port {access.port:#x}")
        at_doorbell = self._at_doorbell
        if at_doorbell is not None and not at_doorbell(self.count):
            self._at_doorbell = None
        return self._grant(first=first)
