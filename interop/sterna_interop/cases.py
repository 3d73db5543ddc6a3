"""Every endpoint case of the kit with a scripted peer. Ids are stable, and never used for anything else."""

from __future__ import annotations

from typing import Final

from sterna_interop.case import Case
from sterna_interop.cases_asked import ASKED
from sterna_interop.cases_honest import HONEST, TLS
from sterna_interop.cases_misbehaving import MISBEHAVIOURS, case_of

CASES: Final[tuple[Case, ...]] = (
    *HONEST,
    *TLS,
    *ASKED,
    *(case_of(each) for each in MISBEHAVIOURS),
)
