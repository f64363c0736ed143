import multiprocessing
import os
import signal

import pytest
import torch

from search_client.errors import WorkersLost
from search_client.worker_processes import chunked, in_order

# A machine with one core has torch warn that two processes are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def doubled(chunk: range) -> list[int]:
    return [2 * place for place in chunk]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_places(workers: int) -> None:
    results = list(in_order(doubled, chunked(range(100)), workers=workers))
    assert [number for result in results for number in result] == list(range(0, 200, 2))


def test_no_process_stays_when_the_work_is_left_half_done() -> None:
    before = set(multiprocessing.active_children())  # of other tests
    results = in_order(doubled, chunked(range(1000)), workers=2)
    next(results)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del results
    assert set(multiprocessing.active_children()) == before


def test_work_does_not_draw_from_the_generator_of_weights() -> None:
    before = torch.get_rng_state()
    list(in_order(doubled, chunked(range(100)), workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_killed_process_is_reported_in_a_sentence() -> None:
    def killed(chunk: range) -> range:
        os.kill(os.getpid(), signal.SIGKILL)
        return chunk

    with pytest.raises(WorkersLost, match=r"A process that decodes images was lost: .* The same command goes on"):
        list(in_order(killed, chunked(range(10)), workers=1))
