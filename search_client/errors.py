"""What can go wrong in a search, each with a sentence for people.

SearchError
├── InvalidSpace              a search space that cannot be built (also a ValueError)
├── InvalidData               no such data set, or a file that does not hold what it should
├── WorkersLost               a process that decodes images is gone
├── NoFeasibleArchitecture    nothing in the space satisfies the latency bounds
├── TrainingDiverged          the loss is no longer a number
├── OutOfGPUMemory            what is to be computed at a time does not fit
├── InvalidCheckpoint         a checkpoint that training cannot go on from
├── NoTrainedNetwork          a directory without a trained network that can be loaded
├── MissingPackage            what an extra of this package would have installed
├── AnotherSearch             the output directory is not this search's, or is in use
├── NoSuchDevice              the service does not know the device
├── NoAgent                   no agent measures on the device
├── NotMeasurable             operators that failed on the device
├── IncompleteTable           a latency that the table does not hold
└── ProtocolChanged           the device measures otherwise than when the search began
"""


class SearchError(Exception):
    """The search cannot go on; the text says why and what to do next."""


class InvalidSpace(SearchError, ValueError):
    pass


class InvalidData(SearchError):
    pass


class WorkersLost(SearchError):
    pass


class NoFeasibleArchitecture(SearchError):
    """Carries the bounds that were asked for, and the range of latencies that the space attains.

    `margin_ms`: how far below the upper bound a prediction has to stay for the confidence that was asked for.
    """

    def __init__(self, *, min_ms: float, max_ms: float, low_ms: float, high_ms: float, margin_ms: float = 0.0) -> None:
        room = f" With --latency-confidence, predictions have to stay {margin_ms:.2g} ms or more below the upper bound."
        super().__init__(
            f"No architecture with a latency between {min_ms:g} and {max_ms:g} ms was found:"
            f" this space reaches from {low_ms:.4g} to {high_ms:.4g} ms."
            + (room if margin_ms else "")
            + " Choose latency bounds that overlap this range, or widen them."
        )
        self.min_ms = min_ms
        self.max_ms = max_ms
        self.low_ms = low_ms
        self.high_ms = high_ms


class TrainingDiverged(SearchError):
    pass


class OutOfGPUMemory(SearchError):
    pass


class InvalidCheckpoint(SearchError):
    pass


class NoTrainedNetwork(SearchError):
    pass


class MissingPackage(SearchError):
    pass


class AnotherSearch(SearchError):
    pass


class NoSuchDevice(SearchError):
    pass


class NoAgent(SearchError):
    pass


class NotMeasurable(SearchError):
    pass


class IncompleteTable(SearchError):
    pass


class ProtocolChanged(SearchError):
    pass
