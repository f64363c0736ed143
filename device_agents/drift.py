"""Drift inside a round: its two reference readings must agree, or the device changed while the subject ran.

How far two readings in a row may lie apart is taken from the device's own readings, since a phone's agree within one
percent and a shared host's within ten (docs/decisions/0023).
"""

from collections import deque

from latency_contract.fences import fences, tolerance_of
from latency_contract.measurements import Round
from latency_contract.protocols import Protocol

NEEDED = 20  # rounds before one is judged; quartiles of fewer are chance
REMEMBERED = 500  # newest rounds, some minutes of measuring: how the device scatters now


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
