import hashlib
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from latency_contract.canonical import Contract, canonical_json, content_hash


class Point(Contract):
    y: int
    x: int = 0


class Segment(Contract):
    kind: Literal["segment"] = "segment"
    length: int = 1


class Circle(Contract):
    kind: Literal["circle"] = "circle"
    radius: int = 1


def test_canonical_json_sorts_keys_and_writes_defaults() -> None:
    assert canonical_json(Point(y=1)) == '{"x":0,"y":1}'


def test_equal_values_have_equal_hashes_however_they_were_written() -> None:
    assert content_hash(Point.model_validate_json('{"y": 1, "x": 0}')) == content_hash(Point(y=1))


def test_hash_is_sha256_of_the_canonical_json() -> None:
    assert content_hash(Point(y=1)) == hashlib.sha256(b'{"x":0,"y":1}').hexdigest()


def test_nan_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"latency": float("nan")})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Point.model_validate({"y": 1, "z": 2})


def test_what_tells_types_apart_is_required_and_documented_so() -> None:
    shape: TypeAdapter[Segment | Circle] = TypeAdapter(Annotated[Segment | Circle, Field(discriminator="kind")])
    with pytest.raises(ValidationError, match="Unable to extract tag"):
        shape.validate_python({"radius": 2})
    assert Circle.model_json_schema()["required"] == ["kind"]
    assert "required" not in Contract.model_json_schema()
