"""TFLite files under the hash of their bytes: converted here, or given by somebody to be measured as they are."""

import hashlib
from datetime import datetime

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from latency_contract.model_files import TFLiteModel
from latency_contract.operators import MAX_PARAMETERS
from latency_service.errors import InvalidModel, UnknownModel
from latency_service.models import ModelFileRow, ModelRow, ModelState
from latency_service.subjects import insert_if_absent

MAX_FILE_BYTES = 4 * MAX_PARAMETERS + 2**20  # float32 weights of the largest network, and a megabyte for the rest
MARK = slice(4, 8)  # where a flatbuffer says what it is
TFLITE = b"TFL3"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def store(session: Session, sha256: str, content: bytes) -> None:
    """Keep a file's bytes under their hash, which whoever calls has computed: no transaction waits for that."""
    session.execute(
        insert_if_absent(session, ModelFileRow).values(sha256=sha256, content=content).on_conflict_do_nothing()
    )


def check(sha256: str, content: bytes) -> None:
    """Raises InvalidModel: the bytes are not those of the hash, or not of a TFLite file."""
    found = sha256_of(content)
    if found != sha256:
        raise InvalidModel(f"The bytes have SHA-256 {found}, the address says {sha256}. Send the file again.")
    if content[MARK] != TFLITE:
        raise InvalidModel(
            f"This is no TFLite file: its bytes 4 to 8 are {content[MARK]!r}, not {TFLITE!r}."
            " Convert the model to TFLite first, for example with: padnas-client export --format tflite"
        )


def content(session: Session, sha256: str) -> bytes:
    """Bytes of a TFLite file. Raises UnknownModel."""
    row = session.get(ModelFileRow, sha256)
    if row is None:
        raise UnknownModel(f"There is no model with SHA-256 {sha256}; a lease names those that exist.")
    return row.content


def make_ready(session: Session, file: TFLiteModel, *, precision: str, now: datetime) -> None:
    """A file that was given is its own model: there is nothing to convert.

    Raises:
        UnknownModel: its bytes were never given.
    """
    if not session.scalar(select(exists().where(ModelFileRow.sha256 == file.sha256))):
        raise UnknownModel(
            f"The bytes of {file.key} are not here. Send them first, with PUT /v1/models/{file.sha256},"
            " or use: padnas-client measure --tflite FILE"
        )
    ready = {"state": ModelState.READY, "sha256": file.sha256, "requested_at": now}
    session.execute(
        insert_if_absent(session, ModelRow)
        .values(subject_id=file.id, precision=precision, **ready)
        .on_conflict_do_nothing()
    )
    dropped = (ModelRow.subject_id == file.id, ModelRow.precision == precision, ModelRow.state == ModelState.DROPPED)
    session.execute(update(ModelRow).where(*dropped).values(**ready))  # and sent again since
