"""How a refusal travels: `{"error": NAME, "detail": SENTENCE}` with an HTTP status."""

from typing import Any

from pydantic import Field

from latency_contract.canonical import Contract


class ErrorBody(Contract):
    error: str = Field(examples=["UnknownDevice"])
    detail: str = Field(examples=["There is no device 'Pixel 9'. Known device models: Pixel 3."])


def validation_sentence(errors: list[Any]) -> str:
    """One sentence from pydantic's list of errors: what is wrong where, the first five."""
    shown = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        shown.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    if len(errors) > 5:
        shown.append(f"and {len(errors) - 5} more")
    return "; ".join(shown).replace("Value error, ", "")
