import json
from pathlib import Path

import numpy as np
import pytest

from search_client.errors import InvalidData
from search_client.spaces import load_space
from search_client.tabular_oracle import TabularOracle, all_architectures, distinct_architectures, load_oracle

SPACE = load_space("nas-bench-macro")
BEST = (*["IBConv_K5_E6"] * 3, "IBConv_K3_E3", *["IBConv_K5_E6"] * 3, "Identity")  # 22212220


@pytest.fixture
def published(shared_data: Path) -> Path:
    return shared_data / "nas-bench-macro_cifar10.json"


def test_accuracies_are_the_published_means(published: Path) -> None:
    oracle = TabularOracle(published, SPACE)
    worst = ("Conv_K1", "Identity", "Conv_K1", "Identity", "Identity", "Conv_K1", "Identity", "Identity")
    entries = json.loads(published.read_text())
    assert oracle.evaluate([BEST, worst]) == [entries[key]["mean_acc"] / 100 for key in ("22212220", "00000000")]
    everything = oracle.evaluate(list(all_architectures(SPACE)))
    assert max(everything) == oracle.evaluate([BEST])[0] == pytest.approx(0.93127, abs=5e-6)


def test_a_pruned_space_is_answered_as_the_full_one(published: Path) -> None:
    pruned = SPACE.restricted([[choice] for choice in BEST])
    oracle = TabularOracle(published, SPACE)
    assert oracle.evaluate([pruned.sample(np.random.default_rng(0))]) == oracle.evaluate([BEST])


def test_the_networks_of_nas_bench_macro_are_3969() -> None:
    distinct = distinct_architectures(SPACE)
    assert len(distinct) == len({SPACE.network(architecture).id for architecture in distinct}) == 3969


def test_another_space_is_refused_by_name(published: Path) -> None:
    for other in (load_space("demo"), load_space("nas-bench-macro", width=0.5)):
        with pytest.raises(InvalidData, match=r"knows the networks of the space nas-bench-macro"):
            TabularOracle(published, other)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"00000000": 1}',
        b'{"00000000": {"mean_acc": "high"}}',
        b'{"00000000": {"mean_acc": 50.0}}',  # the others are missing
        json.dumps({f"{n:08}": {"mean_acc": 50.0} for n in range(6561)}).encode(),  # other architectures
        json.dumps({np.base_repr(n, 3).zfill(8): {"mean_acc": 5000.0} for n in range(6561)}).encode(),
        json.dumps({np.base_repr(n, 3).zfill(8): {"mean_acc": float("nan")} for n in range(6561)}).encode(),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"table\.json is not the accuracy table of NAS-Bench-Macro"):
        TabularOracle(path, SPACE)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidData, match=r"nowhere\.json cannot be read: No such file"):
        load_oracle("nas-bench-macro:nowhere.json", SPACE)


@pytest.mark.parametrize("setting", ["nas-bench-201:a.json", "nas-bench-macro", "nas-bench-macro:", ""])
def test_an_oracle_that_there_is_not_is_a_sentence(setting: str) -> None:
    with pytest.raises(InvalidData, match="Use nas-bench-macro:PATH"):
        load_oracle(setting, SPACE)
