"""TFLite files: fetched by agents, given by whoever has one to measure, made of a network and its weights."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from latency_contract.model_files import TFLiteModel
from latency_service import model_files, weights_file
from latency_service.errors import ConvertsElsewhere
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import OCTETS, Octets, Reading, Service, octets_in, refusals

router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["model files"])

ModelSha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["0" * 64])]
TFLITE_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {OCTETS: {}}, "description": "a TFLite file"}}


@router.get("/models/{sha256}", response_class=Response, responses=refusals(404) | TFLITE_FILE)
def model_file(sha256: ModelSha256, session: Reading) -> Response:
    """The bytes of a TFLite model. They never change under their hash."""
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(model_files.content(session, sha256), media_type=OCTETS, headers=headers)


@router.put("/models/{sha256}", responses=refusals(), openapi_extra=octets_in("a TFLite file"))
def give_model_file(
    sha256: ModelSha256,
    content: Octets,
    service: Service,
) -> TFLiteModel:
    """Give a TFLite file to be measured as it is; the answer is the subject to ask for. Giving it twice is no harm."""
    model_files.check(sha256, content)
    with service.database.writing() as session:
        model_files.store(session, sha256, content)
    return TFLiteModel(sha256=sha256)


@router.post(
    "/conversions",
    response_class=Response,
    responses=refusals(400, 421, 503) | TFLITE_FILE,
    openapi_extra=octets_in(
        "a safetensors file: float32 tensors INDEX.NAME.weight and INDEX.NAME.bias for every layer of a network, with"
        " the network's canonical JSON as `subject` in the metadata"
    ),
)
def convert_network(content: Octets, service: Service) -> Response:
    """The TFLite model of a network with trained weights: input (1, height, width, channels). Nothing is kept here."""
    if service.converter is None:
        raise ConvertsElsewhere(
            "This service converts nothing (serve --no-convert). Send it to one that does; a proxy in front of both"
            " has to lead /v1/conversions there."
        )
    return Response(service.converter.convert(weights_file.parse(content)), media_type=OCTETS)
