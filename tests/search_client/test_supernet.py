from pathlib import Path

import pytest
import torch
from torch import nn

from search_client.networks import build_network
from search_client.spaces import IDENTITY, SearchSpace, load_space
from search_client.supernet import Supernet

ARCHITECTURE = ("IBConv_K5_E1", "IBConv_K3_E2", IDENTITY, "IBConv_K5_E2")


@pytest.fixture
def space() -> SearchSpace:
    return load_space(str(Path(__file__).with_name("tiny.toml")))


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space)


def test_one_path_is_the_network_of_its_architecture(space: SearchSpace, supernet: Supernet) -> None:
    network = build_network(space.network(ARCHITECTURE), affine=False)
    network.load_state_dict(supernet.candidate(ARCHITECTURE).state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(supernet(x, ARCHITECTURE), network(x), rtol=0, atol=0)


def test_an_architecture_of_another_length_or_choice_is_an_error(supernet: Supernet) -> None:
    with pytest.raises(ValueError, match="shorter"):
        supernet(torch.zeros(2, 3, 8, 8), ARCHITECTURE[:-1])
    with pytest.raises(KeyError):
        supernet(torch.zeros(2, 3, 8, 8), ("IBConv_K9_E9", *ARCHITECTURE[1:]))


def test_candidate_shares_nothing_with_the_supernet(supernet: Supernet) -> None:
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    candidate = supernet.candidate(ARCHITECTURE)
    candidate.train()
    candidate(torch.randn(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_candidate_averages_its_statistics_over_the_batches_it_sees(supernet: Supernet) -> None:
    supernet.train()
    supernet(torch.randn(4, 3, 8, 8) + 5, ARCHITECTURE)  # statistics that the candidate must forget
    candidate = supernet.candidate(ARCHITECTURE)
    batches = torch.randn(3, 4, 3, 8, 8).unbind()
    candidate.train()
    means = []
    for batch in batches:
        candidate(batch)
        means.append(candidate.get_submodule("0.conv.conv")(batch).mean(dim=(0, 2, 3)))
    norm = candidate.get_submodule("0.conv.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))


def test_pruned_supernet_inherits_the_weights_of_what_is_left(space: SearchSpace, supernet: Supernet) -> None:
    pruned = Supernet(space.restricted([layer.choices[1:] for layer in space.layers]))
    pruned.inherit(supernet)
    parent = supernet.state_dict()
    assert len(pruned.state_dict()) < len(parent)
    assert all(torch.equal(value, parent[name]) for name, value in pruned.state_dict().items())


def test_inheriting_leaves_new_choices_as_they_are(space: SearchSpace, supernet: Supernet) -> None:
    parent = Supernet(space.restricted([layer.choices[:1] for layer in space.layers]))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    supernet.inherit(parent)
    new = [name for name in before if name not in parent.state_dict()]
    assert new
    assert all(torch.equal(before[name], supernet.state_dict()[name]) for name in new)
