"""Does TuNAS's latency model of a Pixel 1, imported, say what TuNAS says? Its authors publish two numbers to check by.

    tunas_test_arch_ms      of the architecture in TuNAS's own test: 84.0 ms, within 1 ms
    proxylessnas_mobile_ms  of ProxylessNAS-mobile: 84.4 ms

The imported model is asked as a search asks it. Nothing is measured, so a figure is one number without a spread.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.results_file import Figure, Target, record
from benchmarks.shared_data import shared_file
from search_client.imported_tables import read_table
from search_client.spaces import IDENTITY, Architecture, load_space
from search_client.table_import import import_table
from search_client.table_latencies import additive_latency

MODEL = "tunas_pixel1_proxylessnas_space_linear_model.csv"
META = "tunas_pixel1_meta.json"
PROXYLESSNAS_MOBILE_MS = 84.4  # as published


def run(*, quick: bool) -> None:
    meta = json.loads(shared_file(META).read_text())
    found_ms = predicted_ms(shared_file(MODEL), shared_file(META))
    published = meta["published_test_arch"]
    test_ms, mobile_ms = found_ms["tunas_test_arch_ms"], found_ms["proxylessnas_mobile_ms"]
    record(
        "tunas_import",
        settings={"model": MODEL, "space": "basic", "published_ms": [published["expected_ms"], PROXYLESSNAS_MOBILE_MS]},
        figures={
            "tunas_test_arch_ms": Figure(test_ms, test_ms, test_ms, "ms"),
            "tunas_test_arch_off_ms": _off(test_ms, published["expected_ms"]),
            "proxylessnas_mobile_ms": Figure(mobile_ms, mobile_ms, mobile_ms, "ms"),
            "proxylessnas_mobile_off_ms": _off(mobile_ms, PROXYLESSNAS_MOBILE_MS),
        },
        targets={
            "tunas_test_arch_off_ms": Target("<=", published["tolerance_ms"]),
            "proxylessnas_mobile_off_ms": Target("<=", 0.05),  # to the last digit that is given
        },
        save=not quick,
    )


def predicted_ms(model: Path, meta: Path) -> dict[str, float]:
    """What the imported model, written to a table file and read again, says of both architectures."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        imported = import_table(
            model, as_format=None, device_model="Pixel 1", stated_by=None, bias=meta, now=datetime.now(UTC)
        )
        file.write_text(imported.model_dump_json())
        space = load_space("basic")
        latency = additive_latency(space, read_table(file))
    architectures = published_architectures(json.loads(meta.read_text()))
    genes = [
        [layer.choices.index(choice) for layer, choice in zip(space.layers, chosen, strict=True)]
        for chosen in architectures.values()
    ]
    return dict(zip(architectures, latency.of(np.array(genes)).tolist(), strict=True))


def published_architectures(meta: Mapping[str, Any]) -> dict[str, Architecture]:
    """By figure: TuNAS's test architecture, and ProxylessNAS-mobile by the indices of its choices."""
    test = meta["published_test_arch"]
    by_index = [_choice(text) for text in meta["ops"]["choice_index"]]
    first, *others = meta["ops"]["proxylessnas_mobile"]
    return {
        "tunas_test_arch_ms": (
            f"IBConv_K{test['sepconv_kernel']}_E1",
            *(IDENTITY if chosen is None else f"IBConv_K{chosen[0]}_E{chosen[1]}" for chosen in test["layers"]),
        ),
        "proxylessnas_mobile_ms": (
            ("IBConv_K3_E1", "IBConv_K5_E1", "IBConv_K7_E1")[first],
            *(by_index[index] for index in others),
        ),
    }


def _choice(text: str) -> str:
    """Of k3e6, say."""
    return IDENTITY if text == "identity" else "IBConv_K{}_E{}".format(*text.removeprefix("k").split("e"))


def _off(found_ms: float, published_ms: float) -> Figure:
    off_ms = abs(found_ms - published_ms)
    return Figure(off_ms, off_ms, off_ms, "ms")
