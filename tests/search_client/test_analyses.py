import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from search_client.analyses import RunRecord, kendall_tau, last_layer, numbers, read_run, spread
from search_client.run_directory import RunFiles


def record(path: Path) -> RunRecord:
    return read_run(RunFiles(path))


def noisy_pairs(count: int) -> list[tuple[float, float]]:
    """With ties on both sides."""
    rng = random.Random(3)
    firsts = [rng.randrange(8) for _ in range(count)]
    return [(first, first + rng.randrange(6)) for first in firsts]


def test_tau_of_five_pairs_is_what_one_counts_by_hand() -> None:
    """Of ten pairs of pairs, two are in another order: (8 - 2) / 10."""
    found = kendall_tau([(1, 1), (2, 3), (3, 2), (4, 5), (5, 4)])
    assert found is not None
    assert found.value == pytest.approx(0.6)


def test_tau_with_ties_is_that_of_scipy() -> None:
    pairs = noisy_pairs(20)
    found = kendall_tau(pairs)
    assert found is not None
    assert found.value == pytest.approx(kendalltau(*zip(*pairs, strict=True)).statistic)


def test_the_interval_of_tau_holds_it_and_is_a_function_of_the_seed() -> None:
    found = kendall_tau(noisy_pairs(20), seed=1)
    assert found is not None
    assert found.low < found.value < found.high
    assert kendall_tau(noisy_pairs(20), seed=1) == found
    assert kendall_tau(noisy_pairs(20), seed=2) != found


def test_more_architectures_make_the_interval_narrower() -> None:
    few, many = kendall_tau(noisy_pairs(10)), kendall_tau(noisy_pairs(100))
    assert few is not None
    assert many is not None
    assert many.high - many.low < few.high - few.low


def test_a_perfect_ranking_has_no_interval_to_speak_of() -> None:
    assert kendall_tau([(value, 2 * value) for value in range(5)]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("pairs", [[], noisy_pairs(4), [(value, 0.9) for value in range(9)]])
def test_too_few_or_constant_accuracies_have_no_tau(pairs: list[tuple[float, float]]) -> None:
    assert kendall_tau(pairs) is None


def test_one_run_has_a_mean_but_no_deviation() -> None:
    assert spread([None, 0.5]) == (0.5, None, 1)
    assert spread([0.4, None, 0.6]) == pytest.approx((0.5, 0.1414, 2), abs=1e-4)
    assert spread([None]) is None


def test_costs_are_summed_by_part(make_run: Callable[..., Path]) -> None:
    """Epochs take 12.5 s; the four generations of a stage 3, 4, 5 and 6 s, of which 2 s each for accuracies."""
    run = record(make_run("run", stages=3, epochs=(4, 2), learning_rates=(0.1, 0.1), alone=2))
    assert run.costs == (6 * 12.5, 2 * 18, 2 * 4 * 2, 2 * 3 * 12.5)


def test_a_part_that_was_not_done_costs_nothing_known(make_run: Callable[..., Path]) -> None:
    run = record(make_run("run", trained=False))
    assert (run.costs.training_s, run.costs.stand_alone_s) == (None, None)
    assert (run.supernet_accuracy, run.best_stand_alone, run.tau) == (None, None, None)


def test_epochs_are_counted_through_all_stages(make_run: Callable[..., Path]) -> None:
    run = record(make_run("run", stages=4, epochs=(4, 2, 3), learning_rates=(0.1, 0.1, 0.1)))
    assert len(run.accuracy_by_epoch) == 9
    assert run.pruned_after == [4, 6]
    assert run.supernet_accuracy == run.stages[-1].epochs[-1].validation_accuracy


def test_an_architecture_without_a_one_shot_accuracy_is_not_ranked(make_run: Callable[..., Path]) -> None:
    path = make_run("run", alone=6)
    assert record(path).tau is not None
    for name in ("1", "2"):
        file = path / "standalone" / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"one_shot_accuracy": None}))
    run = record(path)
    assert len(run.accuracy_pairs) == 4
    assert run.tau is None
    assert numbers(run)["trained_alone"] == 6


def test_a_pruned_operator_of_the_last_layer_has_probability_0_in_that_run(make_run: Callable[..., Path]) -> None:
    runs = [record(make_run(str(seed), seed=seed)) for seed in (1, 2)]
    found = last_layer(runs)
    assert list(found) == list(runs[0].space.layers[-1].choices)
    assert sum(one.mean for one in found.values()) == pytest.approx(1)
    for choice, one in found.items():
        kept = [run.stages[-1].distribution[-1].get(choice, 0) for run in runs]
        assert one.mean == pytest.approx(sum(kept) / 2)


def test_a_directory_without_a_finished_search_is_a_sentence(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold a finished search"):
        record(tmp_path / "nowhere")
    path = make_run("run")
    (path / "final.json").unlink()
    with pytest.raises(ValueError, match="does not hold a finished search"):
        record(path)


def test_a_result_that_cannot_be_read_is_named(make_run: Callable[..., Path]) -> None:
    path = make_run("run", alone=1)
    (path / "standalone" / "1" / "result.json").write_text('{"name": "1"}')
    with pytest.raises(ValueError, match=r"1/result\.json is not the result of a stand-alone training: choices"):
        record(path)
