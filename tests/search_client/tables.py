"""Tables of a space, measured by nobody, for the tests of whatever reads a table."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import Table, TableEntry
from search_client.imported_tables import ImportedTable, ImportFormat, LinearLayer, LinearModel, Source, SourceFile
from search_client.spaces import SearchSpace
from search_client.table_import import import_table
from tests.conftest import START

NOW = datetime(2026, 2, 3, tzinfo=UTC)


def table_of(space: SearchSpace, milliseconds: Callable[[IBConv], float]) -> Table:
    """A table in which stem and head take 1 ms, and everything is known to a tenth."""
    entries = []
    for number, operator in enumerate(space.operators()):
        ms = milliseconds(operator) if isinstance(operator, IBConv) else 1.0
        entries.append(
            TableEntry(
                measurement_id=number, latency_ms=ms, low_ms=0.9 * ms, high_ms=1.1 * ms, confidence=0.95,
                verdict="steady", rounds=6, device_serial="A1", measured_at=START, key=operator.key,
                subject_id=operator.id, operator=operator,
            )
        )  # fmt: skip
    return Table(
        table_id="0" * 64,
        version=1,
        device_model="Pixel 3",
        protocol=Protocol(runtime="litert", runtime_version="2.3.0"),
        published_at=START,
        entries=tuple(entries),
    )


def imported(path: Path, *, as_format: ImportFormat | None = None, bias: Path | None = None) -> ImportedTable:
    """The table of operators in a file."""
    table = import_table(path, as_format=as_format, device_model="Pixel 1", stated_by=None, bias=bias, now=NOW)
    assert isinstance(table, ImportedTable)
    return table


def linear_model_of(space: SearchSpace, offset_ms: Callable[[int, str], float], *, bias_ms: float = 50) -> LinearModel:
    """A linear model of a space; the offset is a function of layer and choice."""
    source = Source(
        files=(SourceFile(name="model.csv", sha256="0" * 64),),
        format=ImportFormat.TUNAS,
        imported_at=NOW,
        stated_by="nobody",
    )
    layers = tuple(
        LinearLayer(
            name=layer.name,
            height=layer.height,
            width=layer.width,
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            stride=layer.stride,
            coefficients_ms={choice: offset_ms(index, choice) for choice in layer.choices},
        )
        for index, layer in enumerate(space.layers)
    )
    return LinearModel(
        device_model="Pixel 1", source=source, space_name=space.name, stem=space.stem, layers=layers, head=space.head,
        activation=space.activation, bias_ms=bias_ms,
    )  # fmt: skip
