"""Trained networks as files for other programs: ONNX is written here, TFLite is converted by the service.

Sending the weights to the service keeps TensorFlow off this machine. ONNX takes images as PyTorch does, (N, C, H, W),
TFLite takes one, (1, H, W, C); both take them normalised as in training.
"""

import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import nn

from latency_contract.canonical import canonical_json
from latency_contract.connection import ServiceConnection
from latency_contract.operators import Network
from search_client.accuracy_sources import ORACLE_BATCH_SIZE
from search_client.errors import MissingPackage, NoTrainedNetwork
from search_client.networks import build_network, inference_weights
from search_client.oracle import SupernetOracle
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunFiles
from search_client.supernet import Supernet
from search_client.training import weights_in

CONVERSION_S = 600.0  # the service gives one up after half of it, and may be busy with another before
ONNX_OPSET = 18


class Trained(NamedTuple):
    network: Network
    module: nn.Sequential  # of that network, in evaluation mode


def load_trained(source: Path, *, name: str) -> Trained:
    """A trained network from a directory.

    Case 1, `network.json` and `weights.safetensors`: a network that was trained on its own.
    Case 2, `final.json`: the architecture called `name` of a finished search, with the weights that it inherits.

    Raises:
        NoTrainedNetwork: the directory is neither, or its files do not belong together.
    """
    for file, load in (("network.json", _stand_alone), ("final.json", _inherited)):
        if (source / file).exists():
            try:
                return load(source, name)
            except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
                raise NoTrainedNetwork(f"The trained network in {source} cannot be loaded: {reason}") from error
    raise NoTrainedNetwork(
        f"{source} holds no trained network: neither network.json, as `padnas-client train` writes it,"
        " nor the final.json of a finished search."
    )


def _stand_alone(source: Path, name: str) -> Trained:  # noqa: ARG001 (there is but one)
    """Case 1."""
    network = Network.model_validate_json((source / "network.json").read_text())
    module = build_network(network)
    module.load_state_dict(load_file(source / "weights.safetensors"))
    return Trained(network, module.eval())


def _inherited(source: Path, name: str) -> Trained:
    """Case 2: weights of the last supernet, and batch-norm statistics as when the search scored the architecture."""
    run = RunFiles(source)
    config, stage = run.config(), run.stages()[-1]
    try:
        found = run.architecture(name)
    except ValueError as error:
        raise NoTrainedNetwork(str(error)) from error
    if config.data is None:
        raise NoTrainedNetwork(
            f"The search in {source} trained nothing: its accuracies are published ones."
            f" Train an architecture first: padnas-client train --from {source} --name {name} --data DATA"
        )
    data = run.images(ConsoleProgress())
    supernet = Supernet(stage.space())
    supernet.load_state_dict(weights_in(load_file(stage.checkpoint)))
    oracle = SupernetOracle(
        supernet,
        data,
        calibration_images=config.calibration_images,
        batch_size=ORACLE_BATCH_SIZE,
        seed=config.seed,
    )
    network = Network.model_validate(found["network"])
    return Trained(network, oracle.calibrated(tuple(found["choices"].values())))


def to_tflite(trained: Trained, connection: ServiceConnection) -> bytes:
    """TFLite file made by the service: input (1, H, W, C), output logits (1, classes).

    Raises:
        ServiceRefused: the weights are not finite, or TensorFlow cannot convert the network.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, (weight, bias) in inference_weights(trained.module, trained.network).items():
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    body = save(tensors, {"subject": canonical_json(trained.network)})
    return connection.request("POST", "/v1/conversions", content=body, timeout=CONVERSION_S).content


def to_onnx(trained: Trained) -> bytes:
    """ONNX file, with batch normalisation folded in: `input` (batch, C, H, W), `logits` (batch, classes).

    Raises:
        MissingPackage: PyTorch's exporter needs packages that are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (the exporter itself imports it)
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise MissingPackage(f"{error}. Exporting to ONNX needs: pip install 'pad-nas[export]'") from error
    first = trained.network.operators[0]
    image = torch.zeros(2, first.in_channels, first.height, first.width)  # of one image, the batch would be fixed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of every package that it could also use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's of itself
        program = torch.onnx.export(
            trained.module,
            (image,),
            dynamo=True,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=ONNX_OPSET,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # it names files of this machine
    onnx.checker.check_model(program.model_proto)
    content: bytes = program.model_proto.SerializeToString()
    return content
