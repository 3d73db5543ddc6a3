"""The simulated world: both machines over a timed link, in virtual time, from one seed."""

from sterna.sim.guest import PhantomGuest, Writes
from sterna.sim.link import Link, LinkSettings
from sterna.sim.migration import Hosts, Migration, Outline

__all__ = ["Hosts", "Link", "LinkSettings", "Migration", "Outline", "PhantomGuest", "Writes"]
