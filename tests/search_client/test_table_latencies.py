"""Tables in the shape of a space; nothing is measured."""

import math
from pathlib import Path

import numpy as np
import pytest

from search_client.errors import IncompleteTable
from search_client.imported_tables import LinearModel
from search_client.spaces import SearchSpace, load_space
from search_client.table_latencies import additive_latency, predict
from tests.search_client.tables import imported, linear_model_of, table_of

TINY = str(Path(__file__).parent / "tiny.toml")


@pytest.fixture
def space() -> SearchSpace:
    return load_space(TINY)


@pytest.fixture
def model(space: SearchSpace) -> LinearModel:
    """Offsets that differ by layer, some of them negative; Identity has one too."""
    return linear_model_of(space, lambda index, choice: index - 0.5 * len(choice))


def test_latencies_of_a_space_are_summed_with_identity_for_nothing(space: SearchSpace) -> None:
    table = table_of(space, lambda operator: operator.expansion * operator.kernel)
    additive = additive_latency(space, table)
    rng = np.random.default_rng(0)
    for _ in range(20):
        architecture = space.sample(rng)
        genes = [layer.choices.index(choice) for layer, choice in zip(space.layers, architecture, strict=True)]
        predicted = predict(space.network(architecture), architecture, table).latency_ms
        assert additive.of(np.array([genes]))[0] == pytest.approx(predicted)


def test_errors_of_different_operators_add_as_squares_and_of_equal_ones_directly(space: SearchSpace) -> None:
    """Every half-width is a tenth. Layers 3 and 4 are alike, so one operator may occur twice."""
    table = table_of(space, lambda _: 3.0)
    different = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E2")
    prediction = predict(space.network(different), different, table)
    assert prediction.latency_ms == pytest.approx(14.0)
    assert prediction.high_ms is not None
    assert prediction.high_ms - 14.0 == pytest.approx(math.sqrt(2 * 0.1**2 + 4 * 0.3**2))
    alike = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K3_E1")
    prediction = predict(space.network(alike), alike, table)
    assert prediction.low_ms is not None
    assert 14.0 - prediction.low_ms == pytest.approx(math.sqrt(2 * 0.1**2 + 2 * 0.3**2 + 0.6**2))


def test_an_operator_that_is_not_in_the_table_has_no_latency(space: SearchSpace) -> None:
    table = table_of(space, lambda _: 1.0)
    short = table.model_copy(update={"entries": table.entries[:-1]})
    with pytest.raises(IncompleteTable, match=r"does not hold Head_.* Build it for this space"):
        additive_latency(space, short)


def test_a_prediction_from_latencies_without_intervals_has_none(space: SearchSpace, tmp_path: Path) -> None:
    lines = [f"{operator.key},{2.0}" for operator in space.operators()]
    (tmp_path / "t.csv").write_text("key,latency_ms\n" + "\n".join(lines))
    table = imported(tmp_path / "t.csv")
    choices = ("IBConv_K3_E1", "IBConv_K3_E1", "Identity", "Identity")
    prediction = predict(space.network(choices), choices, table)
    assert (prediction.latency_ms, prediction.low_ms, prediction.high_ms) == (8.0, None, None)


def test_what_an_imported_table_lacks_is_named_with_what_to_do(space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"key,latency_ms\n{space.stem.key},1.0\n")
    pattern = r"imported table of Pixel 1 \(t.csv\) does not hold IBConv_.* and \d+ more .*Import a table that covers"
    with pytest.raises(IncompleteTable, match=pattern):
        additive_latency(space, imported(tmp_path / "t.csv"))


def test_a_linear_model_adds_offsets_of_layers_to_its_bias(space: SearchSpace, model: LinearModel) -> None:
    additive = additive_latency(space, model)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choices = space.sample(rng)
        genes = [layer.choices.index(choice) for layer, choice in zip(space.layers, choices, strict=True)]
        expected = 50 + sum(index - 0.5 * len(choice) for index, choice in enumerate(choices))
        assert additive.of(np.array([genes]))[0] == pytest.approx(expected)
        prediction = predict(space.network(choices), choices, model)
        assert prediction.latency_ms == pytest.approx(expected)
        assert (prediction.low_ms, prediction.high_ms) == (None, None)


def test_a_linear_model_knows_a_pruned_space(space: SearchSpace, model: LinearModel) -> None:
    pruned = space.restricted([layer.choices[1:] for layer in space.layers])
    for part, layer, whole in zip(
        additive_latency(pruned, model).layer_ms, space.layers, additive_latency(space, model).layer_ms, strict=True
    ):
        assert part.tolist() == whole[1:].tolist()
        assert len(part) == len(layer.choices) - 1


@pytest.mark.parametrize("change", [{"input_size": 16}, {"classes": 7}, {"width": 2.0}])
def test_a_linear_model_knows_no_other_space(model: LinearModel, change: dict[str, int]) -> None:
    other = load_space(TINY, **change)
    with pytest.raises(IncompleteTable, match="knows architectures of the space 'tiny' with an input of 8x8 and 10"):
        additive_latency(other, model)
    choices = ("IBConv_K3_E1", "IBConv_K3_E1", "Identity", "Identity")
    with pytest.raises(IncompleteTable, match="is a linear model"):
        predict(other.network(choices), choices, model)


def test_a_linear_model_is_not_asked_for_choices_it_does_not_have(space: SearchSpace, model: LinearModel) -> None:
    choices = ("IBConv_K3_E1", "IBConv_K3_E1", "IBConv_K7_E1", "Identity")
    with pytest.raises(IncompleteTable, match="is a linear model"):
        predict(space.network(choices), choices, model)
