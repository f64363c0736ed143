"""Work on many images, done by processes and handed back in order, whoever is done first.

The processes are torch's: forked when work begins, gone when it ends, and within seconds when the program is killed.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from search_client.errors import WorkersLost

CHUNK = 16  # images that a process hands over at a time: 2.4 MB of shared memory at 224x224
MOST_WORKERS = 8
WORTH_WORKERS = 256  # images; decoding fewer takes less time than starting processes
ANSWER_S = 600.0  # for one chunk; a process that takes longer will never answer

Result = TypeVar("Result")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(images: int) -> int:
    """Processes for so many images; 0 is this process. One core stays free, as while a supernet is trained."""
    return min(MOST_WORKERS, max(1, cores() - 1)) if images >= WORTH_WORKERS else 0


def chunked(places: range) -> list[range]:
    return [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]


def in_order(
    work: Callable[[range], Result], chunks: Sequence[range], *, workers: int, ahead: int = 1
) -> Iterator[Result]:
    """What `work` makes of each chunk. `ahead`: chunks that are made before anybody asks for them.

    Raises:
        WorkersLost: a process was killed, or does not answer.
    """
    if workers == 0:
        yield from map(work, chunks)
        return
    loader = DataLoader(
        _Work(work),
        batch_size=None,  # a chunk is the unit
        sampler=chunks,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(ahead / workers)),
        multiprocessing_context="fork",  # nothing to pickle, and no second import of torch for each process
        timeout=ANSWER_S,
        generator=torch.Generator(),  # without one, it would draw from the generator that makes initial weights
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of locks that other threads hold at this moment. The work reads files and takes none;
        # should it hang all the same, the time limit ends it.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        results = iter(loader)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            raise WorkersLost(
                f"A process that decodes images was lost: {error} Where shared memory is short (in Docker it is 64 MB"
                " without --shm-size), give more. The same command goes on where this one was."
            ) from error
        yield result


class _Work(Dataset[Result], Generic[Result]):
    def __init__(self, work: Callable[[range], Result]) -> None:
        self._work = work

    def __getitem__(self, chunk: range) -> Result:
        return self._work(chunk)


def _as_it_is(result: Result) -> Result:
    return result
