"""The classifier as LitServe's API: how a request is read, batched, classified and answered.

Annotations here are objects and not strings: LitServe hands them to FastAPI.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from queue import Empty, Queue
from typing import Annotated, Any

import torch
from fastapi import Depends, Header, HTTPException, Request
from litserve import LitAPI
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.base import MessageTransport
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from torch import Tensor

from crafter_pl.cloud.classifier import Facts, classify, load_classifier
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.cloud.wire import Features, Foreign, Refused, claimed_hash, read_features
from crafter_pl.errors import UserError

BODIES_HELD = 8  # of the greatest size, together, in requests that are being read or wait
READ_SECONDS = 30.0  # that a body may take to arrive
_LARGE = 1 << 18  # bytes; larger bodies are checked beside the event loop
_HOW = "send the file as it is: curl --data-binary @FILE -H 'Content-Type: application/octet-stream'"


class Answer(BaseModel):
    """One feature's."""

    index: int | None
    """The sender's number of the feature; null if the body had none."""
    attributes: dict[str, float]
    """Probability of each attribute, in the checkpoint's order."""


class Answers(BaseModel):
    """In the order of the features in the body."""

    answers: list[Answer]


class Door:
    """Reads a body and decides whether it is taken.

    Args:
        facts: of the classifier.
        max_body: bytes.
        metrics: how much is held, and whether the classifier is ready.
    """

    def __init__(self, facts: Facts, max_body: int, metrics: Metrics) -> None:
        self.facts, self.max_body, self.metrics = facts, max_body, metrics

    async def read(self, request: Request) -> bytes:
        """The body, if it is not too large, too slow, compressed or empty.

        Raises:
            HTTPException: it is (413, 408, 415, 422); it ended early (400); too much is waiting (503).
        """
        too_large = HTTPException(413, f"the body is larger than {self.max_body} bytes: send smaller shards")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, f"compressed bodies are not taken: {_HOW}")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self.max_body:
            raise too_large
        try:
            body = await asyncio.wait_for(self._collect(request, too_large), READ_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took longer than {READ_SECONDS:g} s to arrive") from None
        except ClientDisconnect:
            raise HTTPException(400, "the body ended early") from None
        if not body:
            raise HTTPException(422, f"the body is empty: {_HOW}")
        return body

    async def _collect(self, request: Request, too_large: HTTPException) -> bytes:
        parts, total = [], 0
        async for part in request.stream():
            total += len(part)
            if total > self.max_body:
                raise too_large
            if self.metrics.held > BODIES_HELD * self.max_body:
                raise HTTPException(503, "too much is waiting: send it again later", {"Retry-After": "1"})
            parts.append(part)
        return b"".join(parts)

    def check(self, body: bytes, encoder: str | None, defense: str | None, kind: str = "") -> Features:
        """The features in a body, of the encoder and the defence that this classifier belongs to.

        Args:
            body: of the request.
            encoder: the header X-Encoder-SHA256.
            defense: the header X-Defense-SHA256.
            kind: the header Content-Type. curl calls a file a form by itself, so a sound body is taken under
                any name.

        Raises:
            HTTPException: the body is malformed (422), something else, as its name says (415), or of another
                encoder or defence (409).
        """
        facts = self.facts
        try:
            features = read_features(body, facts.shape)
            encoder = claimed_hash("encoder_sha256", features.metadata, encoder)
            defense = claimed_hash("defense_sha256", features.metadata, defense)
        except Foreign as foreign:
            named = kind.partition(";")[0].strip().lower() not in ("", "application/octet-stream")
            raise HTTPException(415 if named else 422, f"{foreign}: {_HOW}") from None
        except Refused as refused:
            raise HTTPException(422, str(refused)) from None
        for name, mine, theirs in (
            ("encoder_sha256", facts.encoder_sha256, encoder),
            ("defense_sha256", facts.defense_sha256, defense),
        ):
            if mine is None or mine == theirs:
                continue
            if theirs is None:
                raise HTTPException(
                    422,
                    f"say what made the features: {name} of the store's manifest.json as safetensors "
                    f"metadata or as the header X-{name.replace('_', '-')}",
                )
            raise HTTPException(
                409,
                f"the features' {name} is {theirs[:12]}…, this classifier's {mine[:12]}…: they do not belong "
                "together; protect with the checkpoint that is served, or serve the other one",
            )
        return features


async def receive(
    request: Request,
    x_encoder_sha256: Annotated[str | None, Header(description="`encoder_sha256` of the manifest")] = None,
    x_defense_sha256: Annotated[str | None, Header(description="`defense_sha256` of the manifest")] = None,
) -> Features:
    """Reads and checks a request before LitServe sees it."""
    door: Door = request.app.state.door
    if not door.metrics.ready:
        raise HTTPException(503, "the classifier is starting: send it again later", {"Retry-After": "5"})
    body = await door.read(request)
    given = body, x_encoder_sha256, x_defense_sha256, request.headers.get("content-type", "")
    return door.check(*given) if len(body) < _LARGE else await asyncio.to_thread(door.check, *given)


class PatientLoop(BatchedLoop):
    """LitServe's batched loop, but it sleeps while there is nothing to do, and counts features."""

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: "Queue[Any]", transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """The requests to be classified together: (consumer, id, features) each; and those too old."""
        taken, late, count, wait = [], [], 0, 1.0
        end = 0.0
        while count < lit_api.max_batch_size:
            try:
                item = request_queue.get(timeout=wait)
            except Empty:
                break
            except (EOFError, OSError):
                raise _StopLoopError from None  # the queues are gone; the server says so
            if item == _SENTINEL_VALUE:
                raise _StopLoopError
            consumer, uid, since, features = item
            now = time.monotonic()
            if now - since > lit_api.request_timeout:
                late.append((consumer, uid))
                continue
            end = end or now + lit_api.batch_timeout
            taken.append((consumer, uid, features))
            count += features.count
            wait = max(0.0, end - now)
        return taken, late


class CloudAPI(LitAPI):
    """Classifies features in a process of its own.

    Args:
        checkpoint: see `load_classifier`.
        facts: what the server knows of it.
        device: where the net is put.
        max_batch_size: features in one pass.
        batch_timeout: seconds that the first request of a batch waits for others.
    """

    def __init__(
        self, checkpoint: str, facts: Facts, device: str, max_batch_size: int, batch_timeout: float
    ) -> None:
        super().__init__(max_batch_size, batch_timeout, api_path="/classify", loop=PatientLoop())
        self.checkpoint, self.facts, self.net_device = checkpoint, facts, device
        # Batches and features so far; without a lock, which a killed process would keep.
        self.counts = multiprocessing.get_context("spawn").RawArray("Q", 2)
        self.manager_pid: int | None = None
        self.metrics = Metrics()  # the server's; the process that classifies has no use for its copy

    async def authorize(self) -> None:
        """Nothing: the gate has looked at the token. Without this LitServe would look for one of its own."""

    def health(self) -> bool:
        """Whether requests are taken; for LitServe's ``/health``."""
        return self.metrics.ready

    def setup(self, device: str) -> None:
        """Loads the net; sees to it that this process and LitServe's queues end with the server."""
        threading.Thread(target=self._end_with_server, daemon=True).start()
        try:
            self.net, facts = load_classifier(self.checkpoint)
            if facts != self.facts:
                raise UserError(f"{self.checkpoint} is another one than when the server started")
        except UserError as error:
            print(f"the classifier does not start: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        self.net.to(self.net_device)
        classify(self.net, torch.zeros(1, *facts.shape, device=self.net_device), 1)

    def _end_with_server(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            if self.manager_pid is not None:
                os.kill(self.manager_pid, signal.SIGKILL)
            os._exit(1)

    def decode_request(
        self, request: Annotated[Features, Depends(receive)]
    ) -> tuple[Tensor, list[int] | None]:
        """A checked request -> features float32 ``(n, C, h, w)``, and their numbers."""
        return torch.from_numpy(request.array()), request.index

    def batch(self, inputs: list[tuple[Tensor, list[int] | None]]) -> Any:  # noqa: ANN401 (LitServe's)
        """Several requests' features in one tensor, and where each begins and what its numbers are."""
        return torch.cat([features for features, _ in inputs]), [(len(f), index) for f, index in inputs]

    def predict(self, x: tuple[Tensor, list[Any]]) -> Any:  # noqa: ANN401 (LitServe's)
        """Probabilities ``(N, A)``, at most `max_batch_size` features in one pass."""
        features, parts = x
        probabilities = classify(self.net, features.to(self.net_device), self.max_batch_size)
        self.counts[0] += -(-len(features) // self.max_batch_size)
        self.counts[1] += len(features)
        return probabilities, parts

    def unbatch(self, output: tuple[Tensor, list[Any]]) -> list[Any]:
        """Each request's own probabilities and numbers."""
        probabilities, parts = output
        shares = probabilities.split([count for count, _ in parts])
        return [(share, index) for share, (_, index) in zip(shares, parts, strict=True)]

    def encode_response(self, output: tuple[Tensor, list[int] | None]) -> Answers:
        """One request's answers; where a feature gives none, that request alone is refused."""
        probabilities, index = output
        if not bool(probabilities.isfinite().all()):
            refusal = {"detail": "the classifier gives no finite answer to these features"}
            return JSONResponse(refusal, 422)  # type: ignore[return-value]  # FastAPI passes it on as it is
        rows = [[round(value, 6) for value in row] for row in probabilities.tolist()]
        numbers: list[Any] = [None] * len(rows) if index is None else index
        return {  # type: ignore[return-value]  # FastAPI makes it `Answers`
            "answers": [
                {"index": number, "attributes": dict(zip(self.facts.attributes, row, strict=True))}
                for number, row in zip(numbers, rows, strict=True)
            ]
        }
