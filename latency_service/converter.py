"""The converter: a thread that claims subjects, and the process with TensorFlow that it sends them to.

TensorFlow lives in a child process, so that no request waits for its import and its death is not the service's.
What is to be converted, and what came of it, is in the database; several services may share one. Networks that are
sent with their weights are not in the database: they wait in line here, and come first. The thread alone has the
process, one conversion at a time, so that a crash is blamed on what caused it.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from latency_contract.canonical import canonical_json
from latency_service import conversion_queue
from latency_service.conversion_queue import Conversion
from latency_service.database import AWAY, Database, reason
from latency_service.errors import ConversionFailed, ConverterBusy
from latency_service.metrics import Metrics
from latency_service.settings import Settings
from latency_service.weights_file import LayerWeights, TrainedNetwork

POLL_S = 0.5  # how long a subject that another service queued may go unnoticed
REST_S = 30.0  # of a service that cannot convert anything
MAX_WAITING = 4  # networks with weights, of up to 400 MB each; also bounds the request threads that wait
log = logging.getLogger(__name__)


class _InLine(NamedTuple):
    """A network with weights whose sender waits for the model."""

    trained: TrainedNetwork
    model: Future[bytes]


class Converter:
    """Start it, wake it when something is queued, stop it."""

    def __init__(
        self, database: Database, *, settings: Settings, clock: Callable[[], datetime], metrics: Metrics
    ) -> None:
        self._metrics = metrics
        self._database = database
        self._settings = settings
        self._clock = clock
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="converter", daemon=True)
        self._line: queue.Queue[_InLine] = queue.Queue(MAX_WAITING)
        self._pool = _new_pool()

    @property
    def warm(self) -> bool:
        """TensorFlow has been imported."""
        return self._warm.is_set()

    def start(self) -> None:
        self._warm_pool()
        self._thread.start()

    def _warm_pool(self) -> None:
        self._pool.submit(_warm_up).add_done_callback(self._warmed_up)

    def _warmed_up(self, done: Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._warm.set()

    def wake(self) -> None:
        self._work.set()

    def convert(self, trained: TrainedNetwork) -> bytes:
        """The TFLite model of a network with these weights; waits for it.

        Raises:
            ConversionFailed: TensorFlow refuses the network, dies on it twice, or does not finish in time.
            ConverterBusy: many wait already, or the converter cannot be started or is being stopped.
        """
        place = _InLine(trained, Future())
        try:
            self._line.put_nowait(place)
        except queue.Full as error:
            raise ConverterBusy(f"{MAX_WAITING} networks wait for the converter; try again in a moment.") from error
        self.wake()
        if self._stopping.is_set():  # the thread may have looked for the last time
            self._send_away()
        return place.model.result()

    def give_up(self) -> None:
        """End the process; a conversion under way is abandoned and will be claimed again, who waits is sent away."""
        self._stopping.set()
        self._work.set()
        _kill(self._pool)

    def stop(self) -> None:
        """Likewise, and wait for the thread to end."""
        self.give_up()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                worked = self._serve_line() or self._convert_one()
            except AWAY as error:  # or locked: its fault is retried
                log.warning("the converter cannot reach the database; trying again: %s", reason(error))
                self._metrics.database_errors.inc()
                worked = False
            except SQLAlchemyError:
                log.exception("the converter made a mistake; trying again")
                worked = False
            if not worked:
                self._work.wait(POLL_S)
                self._work.clear()
        self._send_away()

    def _serve_line(self) -> bool:
        """Convert for the one who has waited longest."""
        try:
            trained, model = self._line.get_nowait()
        except queue.Empty:
            return False
        try:
            model.set_result(self._converted(trained))
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            model.set_exception(error)
        return True

    def _converted(self, trained: TrainedNetwork) -> bytes:
        key, timeout_s = trained.network.key, self._settings.conversion_timeout_s
        for attempt in (1, 2):
            try:
                done = self._pool.submit(_convert_trained, canonical_json(trained.network), trained.weights)
                return done.result(timeout_s)
            except (RuntimeError, TimeoutError, CancelledError) as error:  # as in _convert_one
                if self._stopping.is_set():
                    raise _stopped() from error
                self._renew_pool()
                log.warning("the converter died or hung on %s (attempt %d)", key, attempt)
                if isinstance(error, TimeoutError):
                    raise ConversionFailed(f"{key} was not converted within {timeout_s:g} s.") from error
            except ImportError as error:
                raise ConverterBusy(f"TensorFlow cannot be imported in the service ({error}). Install it.") from error
        raise ConversionFailed(f"The converter died on {key}, twice. Is there enough memory where the service runs?")

    def _send_away(self) -> None:
        """Nobody waits for a converter that has ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._line.get_nowait().model.set_exception(_stopped())

    def _convert_one(self) -> bool:
        claim_s = self._settings.conversion_claim_s
        with self._database.writing() as session:
            conversion = conversion_queue.claim(session, claim_s=claim_s, now=self._clock())
        if conversion is None:
            return False
        started = time.perf_counter()
        try:
            content = self._result(conversion, self._pool.submit(_convert, conversion.document, conversion.precision))
        except ConversionFailed as error:
            self._give_up(conversion, error=str(error))
        except (RuntimeError, TimeoutError, CancelledError) as error:  # a broken pool, or one that is being shut down
            if self._stopping.is_set():
                with self._database.writing() as session:
                    conversion_queue.postpone(session, conversion)
                return False
            self._after_crash(conversion, error)
        except ImportError:
            log.exception("TensorFlow cannot be imported, so nothing is converted; trying again in %g s", REST_S)
            with self._database.writing() as session:
                conversion_queue.postpone(session, conversion)
            self._stopping.wait(REST_S)
        except Exception as error:  # noqa: BLE001 - raised in the process, about this subject; the thread must live on
            self._give_up(conversion, error=f"the converter failed: {type(error).__name__}: {error}")
        else:
            conversion_s = time.perf_counter() - started
            with self._database.writing() as session:
                conversion_queue.store(session, conversion, content=content, conversion_s=conversion_s)
            log.info("converted %s in %.1f s", conversion.subject_id, conversion_s)
            self._metrics.conversion_s.observe(conversion_s)
            self._metrics.conversions.labels("ready").inc()
        return True

    def _result(self, conversion: Conversion, model: Future[bytes]) -> bytes:
        """Wait for a conversion and keep its claim. Raises TimeoutError, or what the conversion raised."""
        claim_s, deadline = self._settings.conversion_claim_s, time.monotonic() + self._settings.conversion_timeout_s
        while True:
            try:
                return model.result(claim_s / 3)  # concurrent.futures.wait() would miss that it is cancelled
            except TimeoutError:
                if model.done():  # since then, or with a TimeoutError of its own
                    return model.result()
                if time.monotonic() > deadline:
                    raise
            try:
                with self._database.writing() as session:
                    conversion_queue.renew(session, conversion, claim_s=claim_s, now=self._clock())
            except SQLAlchemyError as error:  # no fault of the subject's; a claim that runs out costs a repetition
                log.warning("the converter cannot renew a claim: %s", reason(error))
                self._metrics.database_errors.inc()

    def _renew_pool(self) -> None:
        _kill(self._pool)
        self._warm.clear()
        self._pool = _new_pool()
        self._warm_pool()

    def _give_up(self, conversion: Conversion, *, error: str) -> None:
        log.warning("conversion of %s failed: %s", conversion.subject_id, error)
        self._metrics.conversions.labels("failed").inc()
        with self._database.writing() as session:
            conversion_queue.fail(session, conversion, error=error, now=self._clock())

    def _after_crash(self, conversion: Conversion, error: Exception) -> None:
        """Start a new process. A subject that took several down is given up.

        Claims are not counted: services are stopped and killed in the middle of one, and a process may be killed before
        it has begun, while it imports TensorFlow. What is oldest would always be blamed for that.
        """
        begun = self.warm
        self._renew_pool()
        how = "did not finish in time" if isinstance(error, TimeoutError) else "died"
        where = f"on {conversion.subject_id}" if begun else "before TensorFlow was imported"
        log.warning("the converter %s %s", how, where)
        self._metrics.conversions.labels("crashed").inc()
        with self._database.writing() as session:
            deaths = conversion_queue.count_death(session, conversion) if begun else 0
            if deaths < self._settings.max_conversion_attempts:
                conversion_queue.postpone(session, conversion)
                return
        self._give_up(conversion, error=f"the converter {how} on this model, deaths: {deaths}")


def _stopped() -> ConverterBusy:
    return ConverterBusy("The service is being stopped; try again once it is back.")


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_live_with_parent)


def _live_with_parent() -> None:
    """In the child: leave Ctrl-C to the service, and end when the service ends, even by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = multiprocessing.parent_process()
    assert service is not None

    def end_with_it() -> None:
        service.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def _kill(pool: ProcessPoolExecutor) -> None:
    """Shut a pool down without waiting for what it is doing."""
    processes = list((pool._processes or {}).values())  # the standard library offers kill_workers() from 3.14 on
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    for process in processes:
        process.join()


def _warm_up() -> None:
    import latency_service.tflite_converter  # noqa: F401


def _convert(document: str, precision: str) -> bytes:
    from latency_service.tflite_converter import convert_document

    return convert_document(document, precision)


def _convert_trained(document: str, weights: LayerWeights) -> bytes:
    from latency_service.tflite_converter import convert_document

    return convert_document(document, "float32", weights)
