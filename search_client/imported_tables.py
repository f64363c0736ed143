"""Tables that somebody else measured, and table files of any kind.

An imported table is another thing than a measured one (`latency_contract.tables.Table`): it has a source instead of
rounds, a unit and a protocol, so that neither can be read as the other. It lives in files alone and never reaches the
service (docs/decisions/0016).
"""

import json
import math
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from latency_contract.canonical import Contract, Sha256, content_hash
from latency_contract.comparisons import KnownLatency
from latency_contract.devices import Name
from latency_contract.errors import validation_sentence
from latency_contract.measurements import Milliseconds
from latency_contract.operators import Activation, Conv, Head, Operator
from latency_contract.tables import Table, TableEntry
from search_client.spaces import Architecture, SearchSpace, SpaceLayer

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ImportFormat(StrEnum):
    JSON = "json"  # what `table export --format json` wrote
    CSV = "csv"  # what `table export --format csv` wrote, or any CSV with the columns key and latency_ms
    PROXYLESSNAS_YAML = "proxylessnas-yaml"  # of ProxylessNAS or once-for-all
    PROXYLESSNAS_CSV = "proxylessnas-csv"  # the same keys in a column `key`, with latency_ms, var_or_std and count
    TUNAS = "tunas"  # a linear model, CSV; its bias in a JSON file of its own


class SourceFile(Contract):
    name: str  # without its directory
    sha256: Sha256


class Source(Contract):
    """Where an imported table comes from."""

    files: Annotated[tuple[SourceFile, ...], Field(min_length=1)]
    format: ImportFormat
    imported_at: AwareDatetime
    stated_by: str | None  # who says so, as the file or whoever imported it tells; None: nobody is named

    @property
    def sentence(self) -> str:
        who = "nobody is named as its author" if self.stated_by is None else f"by {self.stated_by}"
        files = " and ".join(f"{file.name} (sha256 {file.sha256[:12]})" for file in self.files)
        return f"imported on {self.imported_at:%Y-%m-%d} from {files}, format {self.format}; {who}"


class SourceNumber(Contract):
    """One number of the source, as it stands there."""

    key: str  # the source's own
    latency_ms: Milliseconds
    count: Annotated[int, Field(ge=1)] | None = None  # readings behind it
    variance_ms2: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # of one reading


class Interval(Contract):
    low_ms: Milliseconds
    high_ms: Milliseconds
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class ImportedEntry(Contract):
    """The latency of an operator: the sum of what the source has for it, which is one number but for a head."""

    key: str
    operator: Operator
    latency_ms: Milliseconds
    interval: Interval | None  # None where the source does not say how well it knows
    source: Annotated[tuple[SourceNumber, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _says_what_its_source_says(self) -> Self:
        if self.key != self.operator.key:
            raise ValueError(f"{self.key} is not the key of its operator, {self.operator.key}")
        total_ms = sum(number.latency_ms for number in self.source)
        if not math.isclose(self.latency_ms, total_ms, rel_tol=1e-9):
            raise ValueError(f"{self.key}: {self.latency_ms} ms is not the sum of its source, {total_ms} ms")
        if self.interval is not None and not self.interval.low_ms <= self.latency_ms <= self.interval.high_ms:
            raise ValueError(f"{self.key}: {self.latency_ms} ms is outside its interval")
        return self


class _Imported(Contract):
    imported: Literal[True] = True
    device_model: Name
    source: Source

    @cached_property
    def content_hash(self) -> str:
        """Of what it says, whenever it was imported."""
        document = self.model_dump(mode="json")
        del document["source"]["imported_at"]
        return content_hash(document)


class ImportedTable(_Imported):
    """Latencies of operators, from somebody else."""

    kind: Literal["operators"] = "operators"
    interval_means: str | None  # how its intervals were derived; None where there are none
    left_out: tuple[str, ...]  # keys of the source that name nothing that this project has an operator for
    entries: Annotated[tuple[ImportedEntry, ...], Field(min_length=1)]  # by key

    @cached_property
    def by_subject(self) -> dict[str, ImportedEntry]:
        return {entry.operator.id: entry for entry in self.entries}


class LinearLayer(Contract):
    """A layer of the space that a linear model is of, and what each choice adds there."""

    name: str
    height: int
    width: int
    in_channels: int
    out_channels: int
    stride: int
    coefficients_ms: dict[str, Finite]  # by choice; may be negative


class LinearModel(_Imported):
    """Latency of an architecture of one space: a bias, and an offset for the choice in each layer.

    An offset is no latency of an operator: it may be negative, and equal operators in two layers have two offsets.
    Stem and head are in the bias.
    """

    kind: Literal["linear_model"] = "linear_model"
    space_name: str
    stem: Conv
    layers: Annotated[tuple[LinearLayer, ...], Field(min_length=1)]
    head: Head
    activation: Activation
    bias_ms: Finite

    @cached_property
    def space(self) -> SearchSpace:
        layers = (
            SpaceLayer(**layer.model_dump(exclude={"coefficients_ms"}), choices=tuple(layer.coefficients_ms))
            for layer in self.layers
        )
        return SearchSpace(self.space_name, self.stem, tuple(layers), self.head, self.activation)

    def latency_ms(self, architecture: Architecture) -> float:
        """Of an architecture of its space."""
        layers = zip(self.layers, architecture, strict=True)
        return math.fsum([self.bias_ms, *(layer.coefficients_ms[choice] for layer, choice in layers)])

    @model_validator(mode="after")
    def _no_architecture_takes_no_time(self) -> Self:
        fastest_ms = self.bias_ms + sum(min(layer.coefficients_ms.values()) for layer in self.layers)
        if fastest_ms <= 0:
            raise ValueError(
                f"the fastest architecture would take {fastest_ms:.4g} ms; are bias and offsets of one model?"
            )
        return self


OperatorTable = Table | ImportedTable  # what knows latencies of operators
AnyTable = Table | ImportedTable | LinearModel
_imported: TypeAdapter[ImportedTable | LinearModel] = TypeAdapter(
    Annotated[ImportedTable | LinearModel, Field(discriminator="kind")]
)


def of_operators(table: AnyTable) -> OperatorTable:
    """The same table. Raises ValueError for a linear model."""
    if not isinstance(table, LinearModel):
        return table
    raise ValueError(
        f"The {describe(table)} is a linear model: it has offsets of layers, and no latencies of operators. It can be"
        " shown, predicted and searched with, and exported as JSON."
    )


def known_latency(entry: TableEntry | ImportedEntry) -> KnownLatency:
    if isinstance(entry, TableEntry):
        return KnownLatency.of_measured(entry)
    if entry.interval is None:
        return KnownLatency(entry.latency_ms, None, None, None)
    return KnownLatency(entry.latency_ms, entry.interval.low_ms, entry.interval.high_ms, entry.interval.confidence)


def describe(table: AnyTable) -> str:
    """What a table is, in a few words, for people."""
    if isinstance(table, Table):
        return f"table version {table.version} of {table.device_model}"
    return f"imported table of {table.device_model} ({' and '.join(file.name for file in table.source.files)})"


def identity(table: AnyTable) -> dict[str, object]:
    """What `final.json` says of the table that a search was made with."""
    if isinstance(table, Table):
        return {"table_id": table.table_id, "version": table.version}
    return {"imported": table.source.model_dump(mode="json"), "content_sha256": table.content_hash}


def read_table(path: Path) -> AnyTable:
    """A table file: one that `table export --format json` or `table import` wrote, or a search's `table.json`.

    Raises:
        ValueError: it is no such file.
    """
    try:
        return parse_table(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a table: {validation_sentence(error.errors())}.") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is not a table ({error}). Give a file that `padnas-client table export --format json` or"
            " `padnas-client table import` wrote."
        ) from error


def parse_table(content: bytes) -> AnyTable:
    """Raises ValueError."""
    document = json.loads(content)
    if isinstance(document, dict) and "imported" in document:
        return _imported.validate_json(content)
    return Table.model_validate_json(content)
