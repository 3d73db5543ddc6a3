"""How a destination says no: to a session, to a guest, and to what is neither of these two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sterna.core.conduct import refusal_items
from sterna.core.negotiate import BASE_FEATURES
from sterna.core.readmission import Readmission
from sterna.core.session import Config
from sterna.core.tables import DestinationState
from sterna.errors import LimitExceeded, RemoteProtocolError, SternaError
from sterna.registry import ERRORS, ErrorCode, Feature, FrameType
from sterna.wire import FrameWriter
from sterna.wire.records import Record, Refuse

# What of a guest may be more than was announced.
_UNFIT: Final = frozenset({ErrorCode.LIMIT_REGIONS, ErrorCode.LIMIT_MEMORY, ErrorCode.LIMIT_STATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationConfig(Config):
    """A migration as its destination sees it; who may come is the host's answer to `Admit`.

    `features`: what it supports, see `BASE_FEATURES` and the conditional ones of sterna.core.negotiate.
    """

    features: frozenset[Feature] = BASE_FEATURES
    retry_after_ms: int = 5000  # what a full host tells its peer


class Refusing(Readmission):
    """The part of a destination's machine that refuses."""

    def __init__(self, config: DestinationConfig, now: float) -> None:
        super().__init__(config, now)
        self._job = config

    def _refuse(self, error: SternaError, now: float) -> None:
        """The session that HELLO asks for is not opened, or the guest of GUEST is not taken [CON-11]."""
        self._fail(error, now, words=self._refusal(error))

    def _refusal(self, error: SternaError) -> Refuse:
        again = error.code in {ErrorCode.FULL, ErrorCode.BUSY}
        retry_after_ms = self._job.retry_after_ms if again else 0
        return Refuse(error.code, retry_after_ms, refusal_items(error), ERRORS[error.code].text)

    def _last_words(self, error: SternaError) -> Record:
        """Some refusals are the codec's.

        It holds GUEST to what this side has announced [CON-15], and does not read a HELLO that has a value of
        a later version, which must be refused whatever it holds [VRS-3]. On a data connection all words bear
        its number [HDR-5].
        """
        control = self._lanes.control
        if (control.reader.stream or 0) > 0:
            control.outbox.writer = FrameWriter(stream=control.reader.stream or 0)
        unfit = isinstance(error, LimitExceeded) and error.code in _UNFIT
        strange = isinstance(error, RemoteProtocolError) and error.frame == FrameType.HELLO
        if (unfit and self._state is DestinationState.WELCOMED) or (
            strange and self._state is DestinationState.IDLE
        ):
            return self._refusal(error)
        return super()._last_words(error)
