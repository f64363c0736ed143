"""TFLite files: fetched by agents, given by whoever has one to measure."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from latency_contract.model_files import TFLiteModel
from latency_service import model_files
from latency_service.routes.dependencies import OCTETS, Reading, Service, body_up_to, octets_in, refusals

router = APIRouter(prefix="/v1", tags=["model files"])

ModelSha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["0" * 64])]
TFLITE_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {OCTETS: {}}, "description": "a TFLite file"}}


@router.get("/models/{sha256}", response_class=Response, responses=refusals(404) | TFLITE_FILE)
def model_file(sha256: ModelSha256, session: Reading) -> Response:
    """The bytes of a TFLite model. They never change under their hash."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(model_files.content(session, sha256), media_type=OCTETS, headers=headers)


@router.put("/models/{sha256}", responses=refusals(413), openapi_extra=octets_in("a TFLite file"))
def give_model_file(
    sha256: ModelSha256,
    content: Annotated[bytes, Depends(body_up_to(model_files.MAX_FILE_BYTES))],
    service: Service,
) -> TFLiteModel:
    """Give a TFLite file to be measured as it is; the answer is the subject to ask for. Giving it twice is no harm."""
    model_files.check(sha256, content)
    with service.database.writing() as session:
        model_files.store(session, content)
    return TFLiteModel(sha256=sha256)
