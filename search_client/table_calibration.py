"""`padnas-client table calibrate`: whole networks of a space, measured, to correct and to judge sums of operators."""

from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table as Lines

from latency_contract.calibrations import MAX_NETWORKS, MIN_NETWORKS, Calibration, CalibrationRequest
from latency_contract.operators import Network
from latency_contract.tables import Purpose, Table
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
from search_client.spaces import SearchSpace

# What needs PyTorch is imported where it is used: `--help` and the small commands should not wait for it.
if TYPE_CHECKING:
    from search_client.latencies import LatencyService
    from search_client.progress import ConsoleProgress

NETWORKS = 40
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
        latencies.measured(networks, purpose=Purpose.TABLE, on_progress=advance)
    request = CalibrationRequest(
        space=space.name,
        operator_ids=tuple(operator.id for operator in operators),
        network_ids=tuple(network.id for network in networks),
    )
    return latencies.calibrate(table, request)


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
