import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latency_contract.operators import Activation, IBConv
from search_client.errors import InvalidSpace
from search_client.spaces import IDENTITY, SearchSpace, builtin_spaces, load_space, space_recipe

TINY = Path(__file__).with_name("tiny.toml")


@pytest.fixture
def tiny() -> SearchSpace:
    return load_space(str(TINY))


def edited(tmp_path: Path, old: str, new: str) -> str:
    text = TINY.read_text()
    assert old in text
    path = tmp_path / "edited.toml"
    path.write_text(text.replace(old, new))
    return str(path)


def test_sizes_agree_with_the_paper() -> None:
    assert load_space("basic").size == 3 * 6**6 * 7**15
    assert load_space("large").size == 3 * 18**6 * 19**15


@pytest.mark.parametrize(("name", "stem", "second"), [("basic", 32, 32), ("large", 16, 24)])
def test_shapes_agree_with_table_1(name: str, stem: int, second: int) -> None:
    space = load_space(name)
    assert space.stem.output_shape == (112, 112, stem)
    blocks = [(layer.height, layer.out_channels, layer.stride) for layer in space.layers if layer.name.endswith(".1")]
    assert blocks == [
        (112, 16, 1), (112, second, 2), (56, 40, 2), (28, 80, 2), (14, 96, 1), (14, 192, 2), (7, 320, 1)
    ]  # fmt: skip
    assert len(space.layers) == 22
    assert (space.head.height, space.head.in_channels, space.head.hidden_channels) == (7, 320, 1280)


def test_operators_agree_with_table_2() -> None:
    basic, large = (set(load_space(name).layers[2].choices) for name in ("basic", "large"))
    assert basic == {f"IBConv_K{k}_E{e}" for k in (3, 5, 7) for e in (3, 6)} | {IDENTITY}
    assert large == {f"IBConv_K{k}_E{e}" for k in (3, 5, 7) for e in range(1, 7)} | {IDENTITY}


@pytest.mark.parametrize("name", builtin_spaces())
def test_identity_is_forbidden_exactly_in_the_first_layer_of_a_block(name: str) -> None:
    for layer in load_space(name).layers:
        assert (IDENTITY in layer.choices) != layer.name.endswith(".1")


def test_first_choices_are_those_of_the_first_layer_alone(tmp_path: Path) -> None:
    space = load_space(edited(tmp_path, "repeat = 3", 'repeat = 3\nfirst_choices = ["IBConv_K7_E1"]'))
    assert space.layers[1].choices == ("IBConv_K7_E1",)
    assert space.layers[2].choices == ("IBConv_K3_E1", "IBConv_K3_E2", "IBConv_K5_E2", IDENTITY)


def test_mbv3_has_every_operator_of_basic_with_and_without_squeeze_excite() -> None:
    space = load_space("mbv3")
    basic = {choice for choice in load_space("basic").layers[2].choices if choice != IDENTITY}
    assert set(space.layers[2].choices) == basic | {f"{choice}_SE" for choice in basic} | {IDENTITY}
    assert space.size == 3 * 12**6 * 13**15
    assert all(operator.activation == Activation.HSWISH for operator in space.operators())


def test_networks_of_nas_bench_macro_have_its_parameters_and_macs(shared_data: Path) -> None:
    published = json.loads((shared_data / "nas-bench-macro_cifar10.json").read_text())
    space = load_space("nas-bench-macro")
    assert space.size == len(published) == 6561
    for digits, entry in published.items():
        choices = [layer.choices[int(digit)] for layer, digit in zip(space.layers, digits, strict=True)]
        network = space.network(tuple(choices))
        assert (network.parameters, network.macs) == (entry["params"], entry["flops"]), digits


def test_proxylessnas_mobile_is_a_network_of_the_basic_space(shared_data: Path) -> None:
    architectures = json.loads((shared_data / "architectures.json").read_text())["archs"]
    (proxyless,) = (one for one in architectures if one["name"] == "ProxylessNAS-mobile")
    choices = [
        IDENTITY if block["op"] == "identity" else f"IBConv_K{block['kernel']}_E{block['expand']}"
        for block in proxyless["blocks"]
    ]
    network = load_space("basic").network(tuple(choices))
    assert (network.macs, network.parameters) == (proxyless["macs"], proxyless["params"])


def test_width_multiplies_the_channels_of_layers_but_not_of_a_narrower_head() -> None:
    narrow, wide = load_space("basic", width=0.5), load_space("basic", width=1.4)
    assert [layer.out_channels for layer in narrow.layers[:2]] == [8, 16]
    assert narrow.stem.out_channels == 16
    assert narrow.head.hidden_channels == 1280
    assert wide.layers[1].out_channels == 48  # 44.8, to a multiple of eight
    assert wide.head.hidden_channels == 1792
    with pytest.raises(InvalidSpace, match="width is 0; use one above 0"):
        load_space("basic", width=0)


def test_operators_are_distinct_and_in_network_order(tiny: SearchSpace) -> None:
    operators = tiny.operators()
    assert operators[0] == tiny.stem
    assert operators[-1] == tiny.head
    assert len(set(operators)) == len(operators)
    # Two choices of block 1; three of the first layer of block 2; three that its other two layers share.
    assert len(operators) == 1 + 2 + 3 + 3 + 1


def test_layers_are_counted_where_an_operator_is_a_choice(tiny: SearchSpace) -> None:
    layers = tiny.layers_of_operators()
    assert set(layers) == {operator.id for operator in tiny.operators()}
    assert Counter(layers.values()) == {1: 1 + 2 + 3 + 1, 2: 3}


def test_every_operator_of_a_network_is_among_the_operators(tiny: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    operators = set(tiny.operators())
    for _ in range(20):
        assert set(tiny.network(tiny.sample(rng)).operators) <= operators


def test_operator_is_residual_exactly_where_shapes_allow(tiny: SearchSpace) -> None:
    residual = [tiny.operator(index, "IBConv_K3_E1") for index in range(len(tiny.layers))]
    assert [operator.residual for operator in residual if isinstance(operator, IBConv)] == [True, False, True, True]


def test_identity_is_no_operator(tiny: SearchSpace) -> None:
    assert tiny.operator(2, IDENTITY) is None
    network = tiny.network(("IBConv_K3_E1", "IBConv_K3_E2", IDENTITY, IDENTITY))
    assert [operator.kind for operator in network.operators] == ["conv", "ibconv", "ibconv", "head"]


def test_activation_and_squeeze_excite_reach_the_operator(tmp_path: Path) -> None:
    path = edited(tmp_path, "IBConv_K5_E2", "IBConv_K5_E2_SE")
    Path(path).write_text(Path(path).read_text().replace("relu6", "hswish"))
    operator = load_space(path).operator(1, "IBConv_K5_E2_SE")
    assert isinstance(operator, IBConv)
    assert operator.squeeze_excite
    assert operator.activation == Activation.HSWISH


def test_input_size_and_classes_override_the_file() -> None:
    space = load_space("basic", input_size=160, classes=12)
    assert space.stem.height == 160
    assert space.head.height == 5
    assert space.head.out_channels == 12


def test_restricted_keeps_the_choices_and_their_order(tiny: SearchSpace) -> None:
    kept = [["IBConv_K5_E1"], ["IBConv_K3_E2"], [IDENTITY, "IBConv_K3_E1"], ["IBConv_K5_E2"]]
    restricted = tiny.restricted(kept)
    assert restricted.layers[2].choices == ("IBConv_K3_E1", IDENTITY)
    assert restricted.size == 2
    assert restricted.stem == tiny.stem


def test_restricting_to_nothing_or_to_unknown_choices_is_refused(tiny: SearchSpace) -> None:
    full = [list(layer.choices) for layer in tiny.layers]
    with pytest.raises(ValueError, match=r"block1\.1 would have no choice left"):
        tiny.restricted([[], *full[1:]])
    with pytest.raises(ValueError, match=r"block1\.1 does not offer IBConv_K9_E9"):
        tiny.restricted([["IBConv_K9_E9"], *full[1:]])


def test_sample_is_uniform_per_layer(tiny: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    samples = [tiny.sample(rng) for _ in range(2000)]
    for index, layer in enumerate(tiny.layers):
        counts = [sum(sample[index] == choice for sample in samples) for choice in layer.choices]
        expected = 2000 / len(layer.choices)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)


def test_json_of_a_space_tells_it_from_any_other(tiny: SearchSpace) -> None:
    restricted = tiny.restricted([layer.choices[:1] for layer in tiny.layers])
    written = json.loads(json.dumps(restricted.to_json()))
    assert written == restricted.to_json() != tiny.to_json()
    assert SearchSpace.from_json(written) == restricted
    assert [layer["choices"] for layer in written["layers"]] == [list(layer.choices) for layer in restricted.layers]


def test_recipe_comes_from_the_file() -> None:
    assert space_recipe(str(TINY))["learning_rates"] == [0.2, 0.1, 0.1]
    assert space_recipe("basic") == {}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("repeat = 3", 'repeat = 3\nfirst_choices = ["Identity"]', "block2.1 has no choice besides Identity"),
        ('"IBConv_K5_E2"', '"Conv_5x5"', "'Conv_5x5' is not a choice"),
        ('"IBConv_K5_E2"', '"IBConv_K4_E2"', "'IBConv_K4_E2' cannot be used in block2.1: kernel"),
        ('"IBConv_K5_E2"', '"Conv_K2"', "'Conv_K2' cannot be used in block2.1: kernel"),
        ('"IBConv_K5_E2"', '"IBConv_K3_E2"', "block2.1 lists a choice twice"),
        ('choices = ["IBConv_K3_E1", "IBConv_K5_E1"]', 'choices = ["Identity"]', "has no choice besides Identity"),
        ("repeat = 3", "repeats = 3", "blocks.1.repeats"),
        ("classes = 10\n", "", "classes: Field required"),
        ("input_size = 8", "input_size = 1", "block2.1 halves an input of one pixel"),
        ("input_size = 8", "input_size = ", "is not TOML"),
    ],
)
def test_a_space_that_cannot_be_built_is_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(InvalidSpace) as refusal:
        load_space(edited(tmp_path, old, new))
    assert sentence in str(refusal.value)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSpace, match=r"no search space 'huge'\. Use basic, demo, large, mbv3, nas-bench-macro"):
        load_space("huge")
