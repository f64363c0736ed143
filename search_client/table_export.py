"""Tables in formats that other programs read: CSV, and the YAML of ProxylessNAS and once-for-all."""

import csv
import io
from collections.abc import Mapping
from statistics import variance
from typing import NamedTuple

from latency_contract.measurements import Measurement
from latency_contract.tables import Table
from search_client.imported_tables import ImportedEntry, ImportedTable, OperatorTable, describe, known_latency
from search_client.proxylessnas_format import Flavour, Row, Written, flavour_of, is_key, to_numbers, to_yaml

IMPORTED_COLUMNS = ("key", "latency_ms", "low_ms", "high_ms", "confidence", "source_keys")


class YamlFile(NamedTuple):
    text: str
    keys: int
    notes: tuple[str, ...]  # what is not in it, and why


def to_csv(table: OperatorTable) -> str:
    """Comment lines that say what it is, then one line an operator."""
    if isinstance(table, Table):
        return table.to_csv()
    text = io.StringIO(newline="")
    text.write(f"# device model: {table.device_model}\n# {table.source.sentence}\n")
    text.write(f"# intervals: {table.interval_means or 'none'}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(IMPORTED_COLUMNS)
    for entry in table.entries:
        known, keys = known_latency(entry), " + ".join(number.key for number in entry.source)
        writer.writerow([entry.key, known.latency_ms, known.low_ms, known.high_ms, known.confidence, keys])
    return text.getvalue()


def proxylessnas(
    table: OperatorTable, flavour: Flavour, *, measurements: Mapping[str, Measurement] | None = None
) -> YamlFile:
    """The table as ProxylessNAS and once-for-all read it.

    Of a measured table, `mean` is the latency that the table states, `count` the number of rounds, and `var` the
    variance of the rounds in ms², which needs the measurements and is left out without them. Of an imported
    one, they are the source's own.

    Raises:
        ValueError: the format cannot express an operator, or cannot tell two apart.
    """
    if isinstance(table, ImportedTable):
        written = _of_source(table, flavour) or to_numbers(map(_imported_row, table.entries), flavour)
    else:
        rows = [
            Row(entry.operator, entry.latency_ms, entry.rounds, _variance(measurements, entry.subject_id))
            for entry in table.entries
        ]
        written = to_numbers(rows, flavour)
    notes = [f"left out: {key}: {reason}" for key, reason in written.left_out.items()]
    comments = [describe(table), *_meanings(table, with_variance=measurements is not None), *notes]
    return YamlFile(to_yaml(written.numbers, comments=comments), len(written.numbers), tuple(notes))


def _of_source(table: ImportedTable, flavour: Flavour) -> Written | None:
    """The source's own numbers, where it has them in this format."""
    numbers = {number.key: number for entry in table.entries for number in entry.source}
    if all(map(is_key, numbers)) and flavour_of(numbers) is flavour:
        return Written(numbers, {})
    return None


def _imported_row(entry: ImportedEntry) -> Row:
    if len(entry.source) > 1:
        return Row(entry.operator, entry.latency_ms)
    (number,) = entry.source
    return Row(entry.operator, entry.latency_ms, number.count, number.variance_ms2)


def _meanings(table: OperatorTable, *, with_variance: bool) -> list[str]:
    if isinstance(table, ImportedTable):
        return [table.source.sentence]
    protocol = table.protocol
    var = "variance over them, ms^2" if with_variance else "left out, as the rounds are not in a table file"
    return [
        f"table {table.table_id}, {protocol.runtime} {protocol.runtime_version}, {protocol.delegate}",
        f"mean: the latency of the table, ms; count: rounds; var: {var}",
        "Logits: the head less Conv_1; its var is the sum of both",
    ]


def _variance(measurements: Mapping[str, Measurement] | None, subject_id: str) -> float | None:
    if measurements is None:
        return None
    return variance(one.block_ms for one in measurements[subject_id].rounds)
