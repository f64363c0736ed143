"""`padnas-client table calibrate` and `check`: whole networks of a space, measured, to correct and to judge sums of
operators; and some of them measured again, to see whether the device is still as it was.
"""

import json
import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from rich.table import Table as Lines

from latency_contract.calibrations import (
    MAX_NETWORKS,
    MIN_NETWORKS,
    CalibratedNetwork,
    Calibration,
    CalibrationRequest,
)
from latency_contract.operators import Network
from latency_contract.student_t import quantile
from latency_contract.tables import Latency, Purpose, Table
from search_client.command_line import (
    ClassesOption,
    DeviceOption,
    InputSizeOption,
    JsonOption,
    ServiceOption,
    SpaceOption,
    SpaceSize,
    WaitOption,
    WidthOption,
    errors_are_sentences,
    latency_service,
    output,
)
from search_client.errors import IncompleteTable
from search_client.spaces import SearchSpace

# What needs PyTorch is imported where it is used: `--help` and the small commands should not wait for it.
if TYPE_CHECKING:
    from search_client.latencies import LatencyService
    from search_client.progress import ConsoleProgress

NETWORKS = 40
CHECKED = 8  # of them, by `check`
FEWEST = 4  # that say how far they move together
LEFT = 3  # exit status of a check that a calibration does not pass
DRAWS_PER_NETWORK = 100  # from which strata are made


@errors_are_sentences
def calibrate(
    service: ServiceOption,
    space: SpaceOption,
    device: DeviceOption = None,
    networks: Annotated[int, typer.Option(min=MIN_NETWORKS, max=MAX_NETWORKS, help="networks to measure")] = NETWORKS,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure whole networks of a space, and publish with the table how its sums are to be read.

    What the table lacks is measured first. What is measured already is not measured again.
    """
    from search_client.progress import ConsoleProgress

    progress = ConsoleProgress()
    loaded = SpaceSize(input_size, width, classes).of(space)
    with latency_service(service, device, client="table-calibrate", wait=wait) as latencies:
        made = calibrated(loaded, latencies, count=networks, seed=seed, progress=progress)
    if as_json:
        typer.echo(made.model_dump_json())
        return
    output.print(networks_as_lines(made))
    output.print(f"table {made.table_id} version {made.table_version}: {made.sentence}", soft_wrap=True)


@errors_are_sentences
def check(
    service: ServiceOption,
    space: SpaceOption,
    device: DeviceOption = None,
    networks: Annotated[int, typer.Option(min=FEWEST, max=MAX_NETWORKS, help="networks to measure again")] = CHECKED,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure some of a calibration's networks again: is the device still as it was? Exit status 3 if it is not.

    The reference operator does not feel everything that a network does, as what neighbours take of cache and memory.
    """
    from search_client.progress import ConsoleProgress

    loaded = SpaceSize(input_size, width, classes).of(space)
    with latency_service(service, device, client="table-check", wait=wait) as latencies:
        calibration = latencies.published().calibration_for(loaded.operators())
        if calibration is None:
            raise IncompleteTable(
                f"No calibration of the table of {latencies.device.model} holds for '{space}'."
                f" Make one: padnas-client table calibrate --space {space}"
            )
        chosen = spread_over(calibration.networks, count=networks)
        with ConsoleProgress().task(f"measuring on {latencies.device.model} again", len(chosen)) as advance:
            now = latencies.measured_anew([one.network for one in chosen], purpose=Purpose.TABLE, on_progress=advance)
    pairs = [(one.latency_ms, latency.latency_ms) for one, latency in zip(chosen, now, strict=True)]
    found = shift(calibration, pairs)
    if as_json:
        listed = [
            {"key": one.key, "then_ms": then_ms, "now_ms": now_ms}
            for one, (then_ms, now_ms) in zip(chosen, pairs, strict=True)
        ]
        typer.echo(json.dumps(found._asdict() | {"holds": found.holds, "networks": listed}))
    else:
        lines = Lines("network", "then ms", "now ms", "longer by", box=None)
        for one, (then_ms, now_ms) in zip(chosen, pairs, strict=True):
            lines.add_row(one.key, f"{then_ms:.3f}", f"{now_ms:.3f}", f"{100 * (now_ms / then_ms - 1):+.2f} %")
        output.print(lines)
        output.print(found.sentence, soft_wrap=True)
    if not found.holds:
        raise typer.Exit(LEFT)


class Shift(NamedTuple):
    """How much longer a calibration's networks take than when they calibrated."""

    longer_pct: float  # mean
    low_pct: float  # its 95 % interval
    high_pct: float
    allowed_pct: float  # that the intervals of predictions have room for (Calibration.common_variance)

    @property
    def holds(self) -> bool:
        return abs(self.longer_pct) <= self.allowed_pct

    @property
    def sentence(self) -> str:
        verdict = "the calibration holds"
        if not self.holds:
            verdict = (
                "the calibration does not hold now. Measure when the device is as it was, or calibrate anew: the same"
                " `padnas-client table calibrate` measures all of its networks again"
            )
        return (
            f"measured again, its networks take {self.longer_pct:+.2f} % ({self.low_pct:+.2f} to {self.high_pct:+.2f} %"
            f" at 95 %); predictions allow for {self.allowed_pct:.2f} %: {verdict}"
        )


def shift(calibration: Calibration, pairs: Sequence[tuple[float, float]]) -> Shift:
    """From latencies then and now, in ms, of at least FEWEST networks: Student's interval of the mean logarithm."""
    logs = [math.log(now_ms / then_ms) for then_ms, now_ms in pairs]
    half = quantile(0.975, degrees=len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    mean = fmean(logs)
    longer, low, high = (100 * math.expm1(value) for value in (mean, mean - half, mean + half))
    return Shift(longer, low, high, 100 * math.sqrt(fmean(one.half_width**2 for one in calibration.networks)))


def spread_over(networks: Sequence[CalibratedNetwork], *, count: int) -> list[CalibratedNetwork]:
    """So many of them, evenly from the fastest to the slowest; all where there are no more."""
    ordered = sorted(networks, key=lambda one: one.latency_ms)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def calibrated(
    space: SearchSpace, latencies: "LatencyService", *, count: int, seed: int, progress: "ConsoleProgress"
) -> Calibration:
    """The table of the space, complete, and calibrated with networks drawn from the space.

    Raises:
        NotMeasurable: an operator or a network failed on the device.
        NoAgent: there is nobody to measure what is missing.
    """
    operators, model = space.operators(), latencies.device.model
    with progress.task(f"measuring operators of '{space.name}' on {model}", len(operators)) as advance:
        layers = space.layers_of_operators()
        latencies.measured(operators, purpose=Purpose.TABLE, on_progress=advance, layers=layers)
    table = latencies.publish()
    networks = stratified_networks(space, table, count=count, rng=np.random.default_rng(seed))
    with progress.task(f"measuring networks of '{space.name}' on {model}", len(networks)) as advance:
        known = latencies.measured(networks, purpose=Purpose.TABLE, on_progress=advance)
    if some_are_newer(networks, known, table.calibration_for(operators)):
        progress.say("some networks were measured again since; all are, as networks of one lease share its weather")
        with progress.task(f"measuring networks of '{space.name}' on {model} again", len(networks)) as advance:
            latencies.measured_anew(networks, purpose=Purpose.TABLE, on_progress=advance)
    request = CalibrationRequest(
        space=space.name,
        operator_ids=tuple(operator.id for operator in operators),
        network_ids=tuple(network.id for network in networks),
    )
    return latencies.calibrate(table, request)


def some_are_newer(networks: Sequence[Network], known: Sequence[Latency], last: Calibration | None) -> bool:
    """Whether the last calibration was made with these networks, and some but not all were measured again since."""
    if last is None:
        return False
    then = {one.subject_id: one.measurement_id for one in last.networks}
    if then.keys() != {network.id for network in networks}:
        return False
    newer = [then[network.id] != one.measurement_id for network, one in zip(networks, known, strict=True)]
    return any(newer) and not all(newer)


def stratified_networks(space: SearchSpace, table: Table, *, count: int, rng: np.random.Generator) -> list[Network]:
    """Distinct networks whose sums in the table are spread evenly over what random networks have.

    From many uniform draws, one of each of `count` strata of equal width; where a stratum is empty, one of the rest.
    They do not depend on how the table was calibrated before.

    Raises:
        ValueError: the space has too few networks.
        IncompleteTable: an operator of the space is not in the table.
    """
    from search_client.table_latencies import additive_latency

    choices = [len(layer.choices) for layer in space.layers]
    genes = rng.integers(choices, size=(DRAWS_PER_NETWORK * count, len(choices)))
    sums_ms = additive_latency(space, table.with_calibrations(())).of(genes)
    edges = np.linspace(sums_ms.min(), sums_ms.max(), count + 1)
    strata = np.clip(np.searchsorted(edges, sums_ms, side="right") - 1, 0, count - 1)
    _, first = np.unique(strata, return_index=True)
    rest = np.setdiff1d(np.arange(len(genes)), first)
    found: dict[str, Network] = {}
    for index in (*first, *rest):
        network = space.network(
            tuple(layer.choices[gene] for layer, gene in zip(space.layers, genes[index], strict=True))
        )
        found.setdefault(network.id, network)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"'{space.name}' has only {len(found)} networks to calibrate with. Ask for fewer with --networks.")


def networks_as_lines(calibration: Calibration) -> Lines:
    """What was measured, and what the others predicted of each."""
    lines = Lines("network", "operators", box=None)
    for heading in ("sum ms", "predicted ms", "measured ms", "off by"):
        lines.add_column(heading, justify="right")
    for one in sorted(calibration.networks, key=lambda network: network.latency_ms):
        numbers = (one.sum_ms, one.predicted_ms, one.latency_ms)
        lines.add_row(one.key, str(len(one.operators)), *(f"{ms:.3f}" for ms in numbers), f"{one.error_pct:+.2f} %")
    return lines
