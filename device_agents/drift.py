"""Drift inside a round: its two reference readings must agree, or the device changed while the subject ran.

How far two readings in a row may lie apart is taken from the device's own readings, since a phone's agree within one
percent and a shared host's within ten (docs/decisions/0023).
"""

import time
from collections import deque
from collections.abc import Callable

from latency_contract.fences import fences, tolerance_of
from latency_contract.measurements import Round
from latency_contract.protocols import Protocol

LATELY_S = 600.0  # for which a quiet moment is remembered, over many leases
NEEDED = 20  # rounds before one is judged; quartiles of fewer are chance
REMEMBERED = 500  # newest rounds, some minutes of measuring: how the device scatters now


class QuietReadings:
    """The smallest reading of the reference operator on one device of late (docs/decisions/0033).

    Not for ever: a device that has become slower, and stays so, is soon judged by what it is now; whether it is still
    the device that it was is for its history.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._smallest: deque[tuple[float, float]] = deque()  # when, and ms: those that no later one is below

    def note(self, made: Round) -> None:
        now_s, reading_ms = self._clock_s(), min(made.reference_before_ms, made.reference_after_ms)
        while self._smallest and self._smallest[-1][1] >= reading_ms:
            self._smallest.pop()
        self._smallest.append((now_s, reading_ms))

    @property
    def smallest_ms(self) -> float | None:
        """None before the first."""
        while len(self._smallest) > 1 and self._smallest[0][0] < self._clock_s() - LATELY_S:
            self._smallest.popleft()
        return self._smallest[0][1] if self._smallest else None


class Brackets:
    """How the readings around each round of one device have differed so far."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)

    def disagreement(self, made: Round, *, protocol: Protocol) -> str | None:
        """Why a round does not count; None where its readings agree, or where it is too early to say.

        A round that is rejected is remembered too: a device that has come to scatter more widely is soon judged by
        that, and goes on measuring, with wider intervals.
        """
        ratio = made.reference_after_ms / made.reference_before_ms
        known = tuple(self._ratios)
        self._ratios.append(ratio)
        if len(known) < NEEDED:
            return None
        usual = fences(known, tolerance=tolerance_of(protocol.stopping.target))
        if not usual.outside(ratio):
            return None
        return (
            f"the reference operator took {made.reference_before_ms:.4g} ms before and {made.reference_after_ms:.4g} ms"
            f" after, {100 * (ratio - 1):+.1f} %; here {100 * (usual.low - 1):+.1f} to {100 * (usual.high - 1):+.1f} %"
            " is usual"
        )
