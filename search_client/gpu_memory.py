"""A GPU whose memory is full: what to change, instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search_client.errors import OutOfGPUMemory


@contextmanager
def enough_gpu_memory(advice: str) -> Iterator[None]:
    """Raises OutOfGPUMemory, with this advice, where PyTorch finds no memory on the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise OutOfGPUMemory(f"The GPU's memory is full: {reason}. {advice}") from error
