from pathlib import Path
from typing import get_args

import pytest

from search_client.algorithms import ALGORITHMS
from search_client.config import SearchConfig, load, resolve

TINY = str(Path(__file__).parent / "tiny.toml")


def test_defaults_are_those_of_the_paper() -> None:
    config = resolve({"space": "basic", "data": "digits"}, file=None)
    assert (config.stages, config.epochs, config.learning_rates) == (4, (120, 80, 40), (0.5, 0.1, 0.1))
    assert (config.population, config.iterations, config.pruning_threshold, config.max_rank) == (64, 40, 0.01, 10)
    assert (config.batch_size, config.momentum, config.weight_decay) == (1024, 0.9, 4e-5)


def test_final_search_names_the_algorithms_that_there_are() -> None:
    assert set(get_args(SearchConfig.model_fields["final_search"].annotation)) == set(ALGORITHMS)


def test_an_oracle_needs_no_data() -> None:
    config = resolve({"space": "nas-bench-macro", "oracle": "nas-bench-macro:a.json"}, file=None)
    assert (config.data, config.oracle) == (None, "nas-bench-macro:a.json")
    with pytest.raises(
        ValueError, match=r"Use --data\. A search with published accuracies \(--oracle\) needs no data\."
    ):
        resolve({"space": "nas-bench-macro"}, file=None)


def test_a_flag_beats_the_file_and_the_file_beats_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('space = "demo"\ndata = "digits"\npopulation = 10\niterations = 3\n')
    config = resolve({"population": 12}, file=file)
    recipe = resolve({"space": "demo", "data": "digits"}, file=None)
    assert (config.population, config.iterations) == (12, 3)
    assert config.batch_size == recipe.batch_size != SearchConfig.model_fields["batch_size"].default


def test_a_recipe_whose_epochs_are_no_list_is_a_sentence(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(Path(TINY).read_text().partition("[recipe]")[0] + "[recipe]\nepochs = 10\n")
    with pytest.raises(ValueError, match=r"The settings cannot be used: epochs: "):
        resolve({"space": str(mine), "data": "digits"}, file=None)


@pytest.mark.parametrize(
    ("stages", "epochs", "rates"),
    [(2, (240,), (0.5,)), (3, (120, 120), (0.5, 0.1)), (4, (120, 80, 40), (0.5, 0.1, 0.1))],
)
def test_fewer_stages_train_as_many_epochs(stages: int, epochs: tuple[int, ...], rates: tuple[float, ...]) -> None:
    """I-Supernet, P-Supernet and PAD-NAS of section 4.1."""
    config = resolve({"space": "basic", "data": "digits", "stages": stages}, file=None)
    assert (config.epochs, config.learning_rates) == (epochs, rates)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "No space and no data given. Use --space and --data"),
        ({"space": "demo"}, "No data given"),
        ({"oracle": "nas-bench-macro:a.json"}, "either data or an oracle, and only one of them"),
        ({"stages": 5}, "5 stages train the supernet 4 times, but there are 3 epochs"),
        ({"epochs": [1]}, "but there are 1 epochs"),
        ({"latency_min_ms": 2.0, "latency_max_ms": 1.0}, "latency_min_ms 2 is above latency_max_ms 1"),
        ({"refine": 4, "table": "pixel1.json"}, "leave it out with a table file or an oracle"),
        ({"population": 1}, "population: Input should be greater than or equal to 2"),
        ({"final_search": "grid"}, "final_search: Input should be 'ces', 'spos' or 'random'"),
        ({"pruning_threshold": float("nan")}, "pruning_threshold"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(flags: dict[str, object], sentence: str) -> None:
    given = flags if set(flags) <= {"space"} else {"space": "demo", "data": "digits"} | flags
    with pytest.raises(ValueError, match=sentence):
        resolve(given, file=None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("space = ", "is not TOML"),
        ('space = "demo"\ndata = "digits"\ncolour = 1', "colour"),
        ('space = "demo"\ndata = "digits"\nstages = "many"', "stages: Input should be a valid integer"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        resolve({}, file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read: No such file"):
        resolve({}, file=tmp_path / "nowhere.toml")


def test_saved_settings_are_read_back_the_same(tmp_path: Path) -> None:
    config = resolve({"space": TINY, "data": "digits", "latency_max_ms": 1.5}, file=None)
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert load(tmp_path / "config.toml") == config
