"""Reading tables that others have published: which format it is, and what becomes of it."""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from scipy.stats import t as student_t

from latency_contract.errors import validation_sentence
from latency_contract.operators import Conv, Head, IBConv, parse_key
from latency_contract.tables import Table
from search_client import proxylessnas_format, tunas_format
from search_client.imported_tables import (
    ImportedEntry,
    ImportedTable,
    ImportFormat,
    Interval,
    LinearModel,
    Source,
    SourceFile,
    SourceNumber,
    parse_table,
)

CONFIDENCE = 0.95  # of an interval that is derived from a variance
OWN_INTERVALS = "as the exported table states them"
OF_VARIANCES = (
    "mean ± t · √(variance / count) at 95 %: how well the source knows the mean of its own readings, were they"
    " independent; a repetition may differ by more"
)


class Given(NamedTuple):
    """What a reader is given."""

    text: str
    device_model: str
    bias_text: str | None
    source: Source


class Read(NamedTuple):
    """What a file says, before it is a table."""

    entries: Iterable[ImportedEntry]
    interval_means: str | None
    left_out: Iterable[str] = ()
    stated_by: str | None = None


def import_table(
    path: Path,
    *,
    as_format: ImportFormat | None,
    device_model: str,
    stated_by: str | None,
    bias: Path | None,
    now: datetime,
) -> ImportedTable | LinearModel:
    """The table in a file, marked as imported.

    Args:
        as_format: None: by the file's content.
        stated_by: who says so; None: whom the file names, if anybody.
        bias: JSON file that holds `bias_ms`, for a TuNAS linear model.

    Raises:
        ValueError: the file does not hold what its format says.
    """
    text = _text(path)
    chosen = as_format or guess(text, path)
    if (bias is not None) != (chosen is ImportFormat.TUNAS):
        raise ValueError(
            f"{path} is read as {chosen}, which has no bias. Leave out --bias."
            if bias is not None
            else f"{path} holds the offsets of a linear model. Give the JSON file with its bias_ms with --bias."
        )
    files = tuple(SourceFile(name=file.name, sha256=_sha256(file)) for file in (path, bias) if file is not None)
    source = Source(files=files, format=chosen, imported_at=now, stated_by=stated_by)
    given = Given(text, device_model, None if bias is None else _text(bias), source)
    try:
        return READERS[chosen](given)
    except ValidationError as error:
        raise ValueError(f"{path} cannot be read as {chosen}: {validation_sentence(error.errors())}.") from error
    except (KeyError, ValueError) as error:
        missing = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be read as {chosen}: {missing}.") from error


def guess(text: str, path: Path) -> ImportFormat:
    """The format of a file by its content. Raises ValueError."""
    if text.lstrip().startswith("{"):
        return ImportFormat.JSON
    columns = set(_header(text))
    if columns >= set(tunas_format.COLUMNS):
        return ImportFormat.TUNAS
    if columns >= {"key", "latency_ms", "var_or_std"}:
        return ImportFormat.PROXYLESSNAS_CSV
    if columns >= {"key", "latency_ms"}:
        return ImportFormat.CSV
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if proxylessnas_format.begins_with_a_key(first):
        return ImportFormat.PROXYLESSNAS_YAML
    raise ValueError(f"{path} is in no format that is known here. Known are {', '.join(ImportFormat)}.")


def _own_json(given: Given) -> ImportedTable:
    match parse_table(given.text.encode()):
        case Table() as table:
            pass
        case _:
            raise ValueError("it is an imported table already; use it as it is")
    entries = [
        _entry(
            entry.operator,
            (SourceNumber(key=entry.key, latency_ms=entry.latency_ms),),
            Interval(low_ms=entry.low_ms, high_ms=entry.high_ms, confidence=entry.confidence),
        )
        for entry in table.entries
    ]
    protocol = table.protocol
    stated_by = (
        f"PAD-NAS table {table.table_id[:12]} version {table.version}, published {table.published_at:%Y-%m-%d}:"
        f" {table.device_model}, {protocol.runtime} {protocol.runtime_version}, {protocol.delegate}"
    )
    return _table(given, Read(entries, OWN_INTERVALS, stated_by=stated_by))


def _own_csv(given: Given) -> ImportedTable:
    said = [line.lstrip("# ") for line in given.text.splitlines() if line.startswith("#")]
    entries = []
    for line in _rows(given.text):
        operator, number = parse_key(line["key"]), {"key": line["key"], "latency_ms": line["latency_ms"]}
        stated = {name: line.get(name) for name in ("low_ms", "high_ms", "confidence")}
        interval = None if None in stated.values() or "" in stated.values() else Interval.model_validate(stated)
        entries.append(_entry(operator, (SourceNumber.model_validate(number),), interval))
    means = OWN_INTERVALS if any(entry.interval for entry in entries) else None
    named = [line for line in said if not line.startswith(("protocol: ", "intervals: "))]
    return _table(given, Read(entries, means, stated_by="; ".join(named) or None))


def _proxylessnas_yaml(given: Given) -> ImportedTable:
    return _table(given, _proxylessnas(proxylessnas_format.yaml_numbers(given.text), stated_by=None))


def _proxylessnas_csv(given: Given) -> ImportedTable:
    rows = _rows(given.text)
    for line in rows:
        if line.get("se") not in (None, "", "0") or line.get("act") not in (None, "", "relu6"):
            raise ValueError(f"'{line['key']}' has squeeze-and-excitation or another activation than ReLU6")
    numbers = [
        proxylessnas_format.source_number(
            line["key"],
            mean_ms=line["latency_ms"],
            count=line.get("count") or None,
            variance_ms2=line["var_or_std"] or None,  # the variance, whatever the name of the column leaves open
        )
        for line in rows
    ]
    says = dict.fromkeys(" on ".join(filter(None, (line.get("framework"), line.get("device")))) for line in rows)
    return _table(given, _proxylessnas(numbers, stated_by="; ".join(filter(None, says)) or None))


def _proxylessnas(numbers: Iterable[SourceNumber], *, stated_by: str | None) -> Read:
    found, left_out = proxylessnas_format.operators_of(numbers)
    entries = [_entry(operator, source, interval_of_mean(source)) for operator, source in found.items()]
    means = OF_VARIANCES if any(entry.interval for entry in entries) else None
    return Read(entries, means, left_out, stated_by)


def _tunas(given: Given) -> LinearModel:
    assert given.bias_text is not None
    return tunas_format.linear_model(
        _rows(given.text),
        bias_ms=tunas_format.bias_ms(given.bias_text),
        device_model=given.device_model,
        source=given.source,
    )


READERS: dict[ImportFormat, Callable[[Given], ImportedTable | LinearModel]] = {
    ImportFormat.JSON: _own_json,
    ImportFormat.CSV: _own_csv,
    ImportFormat.PROXYLESSNAS_YAML: _proxylessnas_yaml,
    ImportFormat.PROXYLESSNAS_CSV: _proxylessnas_csv,
    ImportFormat.TUNAS: _tunas,
}


def interval_of_mean(numbers: Iterable[SourceNumber]) -> Interval | None:
    """Of a sum of means, each known by the variance and the number of its readings.

    With n readings of variance v, Student's t with n - 1 degrees of freedom times √(v / n); half-widths of several
    add up as squares. None where a variance, a count above 1, or a lower end above zero is missing.
    """
    total_ms, squares = 0.0, 0.0
    for number in numbers:
        if number.variance_ms2 is None or number.count is None or number.count < 2:
            return None
        quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, number.count - 1))
        total_ms += number.latency_ms
        squares += quantile**2 * number.variance_ms2 / number.count
    half_width_ms = math.sqrt(squares)
    if half_width_ms >= total_ms:
        return None
    return Interval(low_ms=total_ms - half_width_ms, high_ms=total_ms + half_width_ms, confidence=CONFIDENCE)


def _entry(
    operator: Conv | IBConv | Head, source: tuple[SourceNumber, ...], interval: Interval | None
) -> ImportedEntry:
    total_ms = sum(number.latency_ms for number in source)
    return ImportedEntry(key=operator.key, operator=operator, latency_ms=total_ms, interval=interval, source=source)


def _table(given: Given, read: Read) -> ImportedTable:
    entries = sorted(read.entries, key=lambda entry: entry.key)
    if twice := [one.key for one, following in pairwise(entries) if one.key == following.key]:
        raise ValueError(f"it holds {twice[0]} more than once")
    return ImportedTable(
        device_model=given.device_model,
        source=given.source.model_copy(update={"stated_by": given.source.stated_by or read.stated_by}),
        interval_means=read.interval_means,
        left_out=tuple(read.left_out),
        entries=tuple(entries),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text. Give a table as JSON, CSV or YAML.") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _uncommented(text: str) -> io.StringIO:
    return io.StringIO("".join(line + "\n" for line in text.splitlines() if not line.startswith("#")))


def _header(text: str) -> list[str]:
    return next(csv.reader(_uncommented(text)), [])


def _rows(text: str) -> list[dict[str, str]]:
    """Raises ValueError for a line with too few cells, as the last one of a file that was cut off has."""
    rows = list(csv.DictReader(_uncommented(text)))
    for row in rows:
        if None in row.values():
            raise ValueError(f"the line '{','.join(filter(None, row.values()))}' has too few cells")
    return rows
