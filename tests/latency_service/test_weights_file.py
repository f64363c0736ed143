"""What may be sent to be converted, and over the wire to a live service with a real TensorFlow."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from safetensors.numpy import save

from latency_contract.canonical import canonical_json
from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.operators import Head, IBConv, Network, qualified_layers
from latency_service.app import create_app
from latency_service.cli import _Server
from latency_service.database import Database
from latency_service.errors import InvalidWeights
from latency_service.settings import Settings
from latency_service.tflite_converter import random_weights
from latency_service.weights_file import MAX_BODY_BYTES, parse

Make = Callable[..., IBConv]
Tensors = dict[str, NDArray[np.float32]]


@pytest.fixture
def network(operator: Make) -> Network:
    head = Head(height=8, width=8, in_channels=8, hidden_channels=16, out_channels=10)
    return Network(operators=(operator(squeeze_excite=True), head))


@pytest.fixture
def tensors(network: Network) -> Tensors:
    weights = random_weights(network)
    return {f"{n}.weight": w for n, (w, _) in weights.items()} | {f"{n}.bias": b for n, (_, b) in weights.items()}


def test_a_network_arrives_with_its_weights(network: Network, tensors: Tensors) -> None:
    trained = parse(save(tensors, {"subject": canonical_json(network)}))
    assert trained.network == network
    assert list(trained.weights) == [name for name, _ in qualified_layers(network)]
    for name, (weight, bias) in trained.weights.items():
        assert np.array_equal(weight, tensors[f"{name}.weight"])
        assert np.array_equal(bias, tensors[f"{name}.bias"])


def test_the_largest_network_fits_into_a_body(network: Network, tensors: Tensors) -> None:
    """Besides the weights there are names and shapes, and the network itself, of up to 256 operators."""
    besides = len(save(tensors, {"subject": canonical_json(network)})) - sum(t.nbytes for t in tensors.values())
    assert besides / len(network.operators) * 256 < MAX_BODY_BYTES - 4 * 100_000_000


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 an archive", b"\xff" * 8])
def test_what_is_no_safetensors_file_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidWeights, match="not a safetensors file of float32 tensors"):
        parse(content)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (None, "no network as its 'subject': Invalid JSON"),
        ({"subject": "{}"}, "operators: Field required"),
        ({"subject": '{"kind": "tflite", "sha256": "00"}'}, "no network as its 'subject'"),
    ],
)
def test_a_file_without_its_network_is_refused(
    tensors: Tensors, metadata: dict[str, str] | None, sentence: str
) -> None:
    with pytest.raises(InvalidWeights, match=sentence):
        parse(save(tensors, metadata))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"1.linear.bias": None}, "1.linear.bias is missing"),
        ({"2.conv.bias": np.zeros(3, np.float32)}, "2.conv.bias is none of the network's"),
        ({"1.linear.bias": np.zeros(11, np.float32)}, r"1.linear.bias has shape \(11,\), not \(10,\)"),
        ({"1.linear.bias": np.zeros(10)}, "1.linear.bias is of float64, not float32"),
        ({"1.linear.bias": np.full(10, np.nan, np.float32)}, "1.linear.bias holds values that are not finite"),
        ({"1.linear.bias": np.full(10, np.inf, np.float32)}, "1.linear.bias holds values that are not finite"),
    ],
)
def test_weights_of_another_network_are_refused(
    network: Network, tensors: Tensors, change: dict[str, NDArray[np.float32] | None], sentence: str
) -> None:
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(InvalidWeights, match=sentence):
        parse(save(changed, {"subject": canonical_json(network)}))


def test_of_many_faults_the_first_are_named(network: Network) -> None:
    with pytest.raises(InvalidWeights, match=r"0\.depthwise\.bias is missing.*; and 9 more\."):
        parse(save({}, {"subject": canonical_json(network)}))


def test_the_service_converts_what_it_is_sent_and_refuses_the_rest_by_name(
    connection: ServiceConnection, network: Network, tensors: Tensors
) -> None:
    content = save(tensors, {"subject": canonical_json(network)})
    answer = connection.request("POST", "/v1/conversions", content=content, timeout=100)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.content[4:8] == b"TFL3"
    del tensors["1.linear.bias"]
    content = save(tensors, {"subject": canonical_json(network)})
    with pytest.raises(ServiceRefused, match=r"1\.linear\.bias is missing") as refusal:
        connection.request("POST", "/v1/conversions", content=content)
    assert (refusal.value.error, refusal.value.status) == ("InvalidWeights", 422)


def test_a_service_that_is_told_to_stop_sends_away_who_waits_for_a_conversion(
    database: Database, network: Network, tensors: Tensors
) -> None:
    """It has begun another one, which takes a minute."""
    service = create_app(database, settings=Settings())
    converter = service.state.parts.converter
    server = _Server(uvicorn.Config(service, port=0, log_level="warning"), None, converter)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    converter._pool.submit(time.sleep, 60.0)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/conversions"
    with ThreadPoolExecutor() as threads:
        content = save(tensors, {"subject": canonical_json(network)})
        waiting = threads.submit(httpx.post, url, content=content, timeout=100)
        while not converter._line.unfinished_tasks:  # the request stands in line, or is being served
            assert not waiting.done()
            time.sleep(0.01)
        server.should_exit = True
        answer = waiting.result()
    thread.join(30)
    assert not thread.is_alive()
    assert (answer.status_code, "being stopped; try again" in answer.json()["detail"]) == (503, True)
