"""One canonical text for every value that travels, and the hash that names it.

Two programs that mean the same thing must write the same bytes, so that a model is converted once and a
latency measured once. The hash of the canonical JSON is the identity of operators, networks and protocols.
"""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _tags_are_required(schema: dict[str, Any]) -> None:
    """In JSON Schema. A tag has one value, which is also its default; without it nobody knows which type is meant."""
    tags = [name for name, field in schema.get("properties", {}).items() if "const" in field]
    if tags:
        schema["required"] = sorted({*schema.get("required", ()), *tags})


class Contract(BaseModel):
    """Base of everything that travels: immutable, and closed to fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_tags_are_required)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinity raise ValueError, as JSON has no word for them."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
