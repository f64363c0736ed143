"""Settings of a search. What is saved as `config.toml` is what the result is a function of.

A setting comes from, in this order: the command line, the file given with `--config`, the `[recipe]` of the search
space, the paper.
"""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from latency_contract.canonical import Contract
from latency_contract.errors import validation_sentence
from search_client.data import ImageData, OnDecoded, load_data
from search_client.decoding import DecodingPass
from search_client.errors import InvalidData
from search_client.progress import ConsoleProgress
from search_client.search_problem import SearchBudget
from search_client.spaces import SearchSpace, load_space, space_recipe
from search_client.training import TrainingRecipe

# A search may be taken up with other values of these. Which device it is for is said by its table.
CHANGE_NO_RESULT = {"device", "evaluation_memory_mb"}


class SearchConfig(Contract):
    """Every setting of a search; defaults are those of section 4.1 of the paper."""

    space: str
    data: str | None = None  # None with an oracle, which needs no images
    oracle: str | None = None  # TABLE:PATH of published accuracies; None: those of the trained supernet
    validation_per_class: Annotated[int, Field(ge=1)] = 50  # images of the training part
    train_per_class: Annotated[int, Field(ge=1)] | None = None  # at most so many of the others; None: all
    device: str | None = None  # None: the only one that the service knows
    table: str | None = None  # path of a table file, instead of a service that measures; a copy is in `table.json`
    input_size: Annotated[int, Field(ge=1)] | None = None  # pixels of a side; None: the space's
    width: Annotated[float, Field(gt=0)] = 1.0  # times the channels of the space
    latency_min_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # None: see pad_nas.latency_bounds
    latency_max_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    latency_confidence: Annotated[float, Field(gt=0.5, le=0.999999)] | None = None  # of the upper bound
    latency_targets_ms: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()  # one final for each
    stages: Annotated[int, Field(ge=2, le=10)] = 4  # M
    epochs: tuple[Annotated[int, Field(ge=1)], ...] = (120, 80, 40)  # of each training, M - 1 of them
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 0.1, 0.1)
    batch_size: Annotated[int, Field(ge=2)] = 1024
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 4e-5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None  # None: gradients are not clipped
    population: Annotated[int, Field(ge=2)] = 64
    iterations: Annotated[int, Field(ge=0)] = 40
    final_search: Literal["ces", "spos", "random"] = "ces"  # algorithm of the last stage (line 10 of Algorithm 1)
    pruning_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01  # P_th
    refine: Annotated[int, Field(ge=0, le=1000)] = 0  # operators to measure again after each stage
    max_rank: Annotated[int, Field(ge=2)] = 10  # nondomination ranks below it count for pruning
    calibration_images: Annotated[int, Field(ge=2)] = 512  # for the batch-norm statistics of a candidate
    evaluation_memory_mb: Annotated[int, Field(ge=0)] = 2048  # see SupernetOracle; changes no result
    finals: Annotated[int, Field(ge=1)] = 5  # architectures to return where no targets are given
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.epochs) != self.stages - 1 or len(self.learning_rates) != self.stages - 1:
            raise ValueError(
                f"{self.stages} stages train the supernet {self.stages - 1} times, but there are {len(self.epochs)}"
                f" epochs and {len(self.learning_rates)} learning_rates; give one of each for every training"
            )
        if (self.data is None) == (self.oracle is None):
            raise ValueError("a search needs either data or an oracle, and only one of them")
        if self.refine and (self.table is not None or self.oracle is not None):
            raise ValueError(
                "refine has operators measured again while the next supernet trains; leave it out with a table file or"
                " an oracle"
            )
        low_ms, high_ms = self.latency_min_ms, self.latency_max_ms
        if low_ms is not None and high_ms is not None and low_ms > high_ms:
            raise ValueError(f"latency_min_ms {low_ms:g} is above latency_max_ms {high_ms:g}")
        for target_ms in self.latency_targets_ms:
            if target_ms < (low_ms or 0) or target_ms > (high_ms or math.inf):
                raise ValueError(f"the latency target {target_ms:g} ms is outside the latency bounds")
        return self

    @property
    def budget(self) -> SearchBudget:
        return SearchBudget(population=self.population, iterations=self.iterations)

    def training(self, stage: int) -> TrainingRecipe:
        """How the supernet of a stage (from 1) is trained."""
        return TrainingRecipe(
            epochs=self.epochs[stage - 1],
            learning_rate=self.learning_rates[stage - 1],
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            max_gradient_norm=self.max_gradient_norm,
        )

    def load_space(self, *, classes: int | None = None) -> SearchSpace:
        return load_space(self.space, input_size=self.input_size, width=self.width, classes=classes)

    def load_data(
        self,
        *,
        input_size: int,
        progress: ConsoleProgress,
        known: DecodingPass | None = None,
        on_decoded: OnDecoded = lambda _: None,
    ) -> ImageData:
        """`known`, `on_decoded`: as of `load_data`.

        Raises:
            InvalidData: as `load_data`, or there is no data set, as accuracies came from a table.
        """
        if self.data is None:
            raise InvalidData("This search used published accuracies and no images. Give a data set with --data.")
        return load_data(
            self.data,
            input_size=input_size,
            validation_per_class=self.validation_per_class,
            train_per_class=self.train_per_class,
            seed=self.seed,
            known=known,
            on_decoded=on_decoded,
            progress=progress,
        )

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def resolve(flags: dict[str, Any], *, file: Path | None) -> SearchConfig:
    """The settings of a search from the command line (None: not given) and a TOML file.

    Fewer stages than a recipe was written for train as many epochs in all: the last training takes over those of
    the trainings that are left out. I-Supernet (M = 2) and P-Supernet (M = 3) of the paper are made so.

    Raises:
        ValueError: a setting that is unknown, out of range or missing, or a file that cannot be read.
        InvalidSpace: no such search space.
    """
    settings = _read(file) if file is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    needed = ("space",) if "oracle" in settings else ("space", "data")
    if missing := [name for name in needed if name not in settings]:
        instead = " A search with published accuracies (--oracle) needs no data." if "data" in missing else ""
        raise ValueError(
            f"No {' and no '.join(missing)} given. Use {' and '.join(f'--{name}' for name in missing)}.{instead}"
        )
    defaults = {name: field.default for name, field in SearchConfig.model_fields.items() if not field.is_required()}
    defaults |= space_recipe(str(settings["space"]))
    stages = settings.get("stages", defaults["stages"])
    if isinstance(stages, int):  # anything else is refused below
        defaults |= _for_trainings(defaults, stages - 1)
    try:
        return SearchConfig.model_validate(defaults | settings)
    except ValidationError as error:
        raise ValueError(f"The settings cannot be used: {validation_sentence(error.errors())}.") from error


def _for_trainings(recipe: dict[str, Any], trainings: int) -> dict[str, Any]:
    """Epochs and learning rates of a recipe with fewer trainings, and as many epochs in all."""
    epochs, rates = recipe["epochs"], recipe["learning_rates"]
    listed = isinstance(epochs, Sequence) and isinstance(rates, Sequence)  # anything else is refused later
    if not listed or not 1 <= trainings < len(epochs):
        return {}
    return {"epochs": [*epochs[: trainings - 1], sum(epochs[trainings - 1 :])], "learning_rates": rates[:trainings]}


def load(path: Path) -> SearchConfig:
    """The settings that a search saved. Raises ValueError."""
    try:
        return SearchConfig.model_validate(_read(path))
    except ValidationError as error:
        raise ValueError(f"{path} does not hold settings: {validation_sentence(error.errors())}.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error
