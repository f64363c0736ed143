"""`python -m benchmarks NAME [--quick]`: run one benchmark, or `all`."""

from collections.abc import Callable
from typing import Annotated

import typer

from benchmarks import (
    adb_faults,
    adb_overhead,
    adb_table,
    api_fuzz,
    ces_overhead,
    chaos,
    demo_search,
    estimator_study,
    idle_agents,
    lookup,
    nas_bench_macro_ranking,
    nas_bench_macro_search,
    population_evaluation,
    queue_throughput,
    repeatability,
    replica_memory,
    supernet_step,
    table_accuracy,
    table_time,
    tunas_import,
    under_load,
)

BENCHMARKS: dict[str, Callable[..., None]] = {
    "table_time": table_time.run,
    "table_accuracy": table_accuracy.run,
    "repeatability": repeatability.run,
    "estimator_study": estimator_study.run,
    "under_load": under_load.run,
    "demo_search": demo_search.run,
    "supernet_step": supernet_step.run,
    "ces_overhead": ces_overhead.run,
    "population_evaluation": population_evaluation.run,
    "nas_bench_macro_ranking": nas_bench_macro_ranking.run,
    "nas_bench_macro_search": nas_bench_macro_search.run,
    "tunas_import": tunas_import.run,
    "adb_table": adb_table.run,
    "adb_overhead": adb_overhead.run,
    "adb_faults": adb_faults.run,
    "queue_throughput": queue_throughput.run,
    "lookup": lookup.run,
    "idle_agents": idle_agents.run,
    "replica_memory": replica_memory.run,
    "api_fuzz": api_fuzz.run,
    "chaos": chaos.run,
}


def main(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}, or all")],
    quick: Annotated[bool, typer.Option("--quick", help="see that it runs; results are not saved")] = False,
) -> None:
    """Run a benchmark; it prints its figures and writes benchmarks/results/NAME.json."""
    if name != "all" and name not in BENCHMARKS:
        typer.echo(f"There is no benchmark '{name}'. Known: {', '.join(BENCHMARKS)}, all.", err=True)
        raise typer.Exit(2)
    for run in BENCHMARKS.values() if name == "all" else [BENCHMARKS[name]]:
        run(quick=quick)


typer.run(main)
