"""What a search says of itself, where it was asked to: how far it is and the best it has found.

It is for people who look at the dashboard. Nothing is decided by it, and a search that cannot be heard goes on.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from latency_contract.canonical import Contract
from latency_contract.devices import Name
from latency_contract.measurements import Milliseconds, Moment

Words = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$")]


class SearchState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # by a person, or by what it could not mend; the same command goes on


class BestFound(Contract):
    accuracy: Annotated[float, Field(ge=0, le=1)]  # one-shot, on validation images
    latency_ms: Milliseconds  # predicted


class SearchReport(Contract):
    name: Words  # of its directory
    device: Name
    space: Words
    state: SearchState
    started_at: Moment
    stage: Annotated[int, Field(ge=0, le=1000)]  # 0: before the first
    stages: Annotated[int, Field(ge=1, le=1000)]
    doing: Words  # as whoever runs it reads it
    done: Annotated[int, Field(ge=0, lt=2**53)]  # of `total` steps of what it is doing
    total: Annotated[int, Field(ge=0, lt=2**53)]
    best: BestFound | None = None  # of the stage

    @model_validator(mode="after")
    def _within_its_stages(self) -> Self:
        if self.stage > self.stages:
            raise ValueError(f"stage {self.stage} of {self.stages}; there are no more stages than that")
        return self
