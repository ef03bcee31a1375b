"""Requests that wait are put together into batches; one thread classifies batch after batch."""

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from crafter_pl.cloud.metrics import Metrics

Rows = list[list[float]]  # the probabilities of each feature, to six decimals


class ClientGoneError(Exception):
    """The client has hung up before its features were classified."""


class ClassifierError(Exception):
    """The net has failed on the request's batch."""


@dataclass(eq=False, frozen=True)
class _Waiting:
    features: Tensor
    is_gone: Callable[[], bool]
    arrived: float
    answer: asyncio.Future[Rows]


class Batcher:
    """A queue of requests, and the thread that classifies them.

    The thread takes what waits by itself, without the event loop: it need not wait for the interpreter.

    Args:
        classify: features float32 ``(n, C, h, w)`` -> probabilities ``(n, A)``; called in the thread.
        max_batch_size: no request is added to a batch that has so many features.
        batch_timeout: seconds that a request waits for others while the thread has nothing to do.
        timeout: seconds that a request waits for its answer.
        metrics: counts batches and features, and shows whether the classifier works.
    """

    def __init__(
        self,
        classify: Callable[[Tensor], Tensor],
        max_batch_size: int,
        batch_timeout: float,
        timeout: float,
        metrics: Metrics,
    ) -> None:
        self.classify, self.max_batch_size, self.batch_timeout = classify, max_batch_size, batch_timeout
        self.timeout, self.metrics = timeout, metrics
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._began: float | None = None  # of the batch that is being classified
        self._failed = False  # the latest batch
        self._thread = threading.Thread(target=self._run, name="classifier", daemon=True)
        self._thread.start()
        metrics.ready.set_function(lambda: float(self.ready()))

    def hangs(self) -> bool:
        """Whether the batch that is being classified has taken longer than `timeout`."""
        began = self._began
        return began is not None and time.monotonic() - began > self.timeout

    def ready(self) -> bool:
        """Whether the classifier works: it does not hang, and did not fail on its latest batch."""
        return not self._failed and not self.hangs()

    async def submit(self, features: Tensor, is_gone: Callable[[], bool]) -> Rows:
        """The probabilities of one request's features, float32 ``(n, C, h, w)``.

        Args:
            features: of the shape that the net takes.
            is_gone: whether the client has hung up; asked, in the thread, when it is the request's turn.

        Raises:
            asyncio.TimeoutError: there is no answer in time.
            ClientGoneError: the client has hung up.
            ClassifierError: the net has failed.
        """
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._queue.put(_Waiting(features, is_gone, time.monotonic(), answer))
        return await asyncio.wait_for(answer, self.timeout)

    def close(self, seconds: float) -> bool:
        """Ends the thread; returns whether it has ended within so many seconds."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """The thread's."""
        while batch := self._collect():
            self._began = time.monotonic()
            answers: list[Rows] | list[ClassifierError]
            try:
                probabilities = self.classify(torch.cat([item.features for item in batch]))
                rows = iter(probabilities.double().round(decimals=6).tolist())
                answers, self._failed = [list(islice(rows, len(item.features))) for item in batch], False
                self.metrics.features.inc(len(probabilities))
                self.metrics.batches.inc(-(-len(probabilities) // self.max_batch_size))
            except Exception:
                traceback.print_exc()
                answers, self._failed = [ClassifierError()] * len(batch), True
            self._began = None
            _settle(batch, answers)

    def _collect(self) -> list[_Waiting]:
        """The requests of the next batch; none: the thread is to end."""
        batch: list[_Waiting] = []
        count, seconds = 0, None
        while count < self.max_batch_size:
            try:
                item = self._queue.get(timeout=seconds)
            except Empty:
                break
            if item is None:
                return []
            if item.is_gone():
                _settle([item], [ClientGoneError()])
            elif not item.answer.done():
                batch.append(item)
                count += len(item.features)
                seconds = max(0.0, batch[0].arrived + self.batch_timeout - time.monotonic())
        return batch


def _settle(items: list[_Waiting], answers: Sequence[Rows | Exception]) -> None:
    """Gives requests their answers, if they still wait for one, from the thread."""

    def settle() -> None:
        for item, answer in zip(items, answers, strict=True):
            if item.answer.done():
                continue
            if isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        items[0].answer.get_loop().call_soon_threadsafe(settle)
