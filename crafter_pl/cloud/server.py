"""The server: LitServe's queues and batches, with a process that classifies and one that talks HTTP.

LitServe's own `run` is not used: it forks a process for HTTP that outlives a killed server, and a request
whose worker is killed would wait for ever. Here this very process talks HTTP, and watches the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from litserve import LitServer
from litserve.utils import LitAPIStatus, WorkerSetupStatus, wrap_litserve_start

from crafter_pl.cloud.api import CloudAPI, Door
from crafter_pl.cloud.gate import Gate
from crafter_pl.cloud.listener import Listener, Protocol, later
from crafter_pl.errors import UserError

LOST = "the classifier was lost while the request waited: send it again"
_NO_QUEUES = "LitServe's queues were lost: start the server again"
_LOOK_EVERY = 0.1  # seconds between two looks at the classifying process


class CloudServer(LitServer):
    """LitServe's server around a `CloudAPI`.

    Args:
        api: what classifies.
        token: that requests must bear; None: none.
        max_body: bytes of a request.
        timeout: seconds after which a request that has no answer gets an error.
    """

    def __init__(self, api: CloudAPI, token: str | None, max_body: int, timeout: float) -> None:
        logging.getLogger("litserve").setLevel(logging.WARNING)
        facts = api.facts
        about = {
            "stage": facts.stage,
            "attributes": list(facts.attributes),
            "shape": list(facts.shape),
            "encoder_sha256": facts.encoder_sha256,
            "defense_sha256": facts.defense_sha256,
        }
        super().__init__(api, accelerator="cpu", devices=1, timeout=timeout, model_metadata=about)
        self.metrics, self.api = api.metrics, api
        self.failure: str | None = None
        self.inference_workers: list[Any] = []
        self._since: dict[str, float] = {}
        self._http: uvicorn.Server | None = None
        self.app.state.door = Door(facts, max_body, self.metrics)
        self.app.add_api_route("/metrics", self._metrics_page, summary="Metrics for Prometheus")
        self.app.add_middleware(Gate, token=token, metrics=self.metrics)
        self._describe(max_body, token is not None)

    def serve(self, sockets: list[socket.socket], listening: Callable[[], None]) -> None:
        """Answers requests on bound sockets until Ctrl+C or SIGTERM; to be called within `started`.

        Args:
            sockets: one for each address.
            listening: called once requests are taken.

        Raises:
            UserError: the process that classifies was lost and could not be started again.
        """
        config = uvicorn.Config(
            self.app,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=10,
        )
        self._http = Listener(config, listening)
        self._http.run(sockets)
        if self.failure:
            raise UserError(self.failure)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Starts LitServe's queues and the process that classifies, and ends them.

        Raises:
            UserError: that process does not start.
        """
        running = contextlib.ExitStack()
        try:
            with later():
                running.enter_context(wrap_litserve_start(self))
            while not self._started():
                if not self.inference_workers[0].is_alive():
                    raise UserError("the classifier's process did not start: see its message above")
                time.sleep(0.05)
            self.metrics.ready = True
            yield
        finally:
            with later():
                for worker in self.inference_workers:
                    worker.kill()  # it is deaf to what LitServe sends
                with contextlib.suppress(OSError, EOFError):  # queues that were lost are missed
                    running.close()
                for process in multiprocessing.active_children():
                    if process.pid == self.api.manager_pid:
                        process.kill()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """LitServe's, and beside it `_watch`."""
        async with super().lifespan(app):
            task = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                task.cancel()

    async def _watch(self) -> None:
        """Gives requests that will get no answer an error, and starts a lost process again."""
        while not self.failure:
            await asyncio.sleep(_LOOK_EVERY)
            now = time.monotonic()
            self._since = {uid: self._since.get(uid, now) for uid in self.response_buffer}
            for uid, since in self._since.items():
                if now - since > self.timeout:
                    self._fail(uid, 504, f"no answer within {self.timeout:g} s: send it again later")
            alive = {process.pid for process in multiprocessing.active_children()}
            if self.api.manager_pid not in alive:
                self._give_up(_NO_QUEUES)
                return
            with contextlib.suppress(OSError, EOFError):  # the queues, just now: see the next look
                self._look_after_classifier(lost=self.inference_workers[0].pid not in alive)

    def _look_after_classifier(self, lost: bool) -> None:
        if not lost:
            self.metrics.ready = self.metrics.ready or self._ready()
            return
        for uid in list(self.response_buffer):
            self._fail(uid, 503, LOST)
        if not self.metrics.ready:
            self._give_up("the classifier's process was lost and does not start again")
            return
        self.metrics.ready = False
        self.metrics.restarts += 1
        print("the classifier's process was lost; starting another", file=sys.stderr, flush=True)
        with later():
            self.inference_workers[0] = self.launch_single_inference_worker(self.api, 0)

    def _fail(self, uid: str, status: int, detail: str) -> None:
        item = self.response_buffer.get(uid)
        if item is not None and not item.event.is_set():
            item.response = (HTTPException(status, detail, {"Retry-After": "5"}), LitAPIStatus.ERROR)
            item.event.set()

    def _give_up(self, why: str) -> None:
        self.failure, self.metrics.ready = why, False
        for uid in list(self.response_buffer):
            self._fail(uid, 503, LOST)
        assert self._http is not None
        self._http.should_exit = True

    def _started(self) -> bool:
        try:
            return self._ready()
        except (OSError, EOFError) as error:
            raise UserError(_NO_QUEUES) from error

    def _ready(self) -> bool:
        return all(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values())

    def _init_manager(self, num_api_servers: int) -> Any:  # noqa: ANN401 (LitServe's)
        """LitServe's; tells the process that classifies whom to end if the server is killed."""
        before = {process.pid for process in multiprocessing.active_children()}
        manager = super()._init_manager(num_api_servers)
        (self.api.manager_pid,) = {process.pid for process in multiprocessing.active_children()} - before
        return manager

    async def _metrics_page(self) -> Response:
        page = self.metrics.page(*self.api.counts)
        return Response(page, media_type="text/plain; version=0.0.4")

    def _describe(self, max_body: int, token: bool) -> None:
        """Completes the OpenAPI page by what FastAPI cannot know: the body, the errors, the token."""
        facts = self.api.facts
        self.app.title, self.app.version = "crafter_pl cloud classifier", "1"
        shape = ", ".join(map(str, facts.shape))
        text = (
            f"safetensors: `features`, F32, F16 or I8 ({shape}) or (n, {shape}), with I8 also `scale` and "
            "`offset`, F32 (n); optional `index`, I64 (n). "
            f"One feature, or a shard of a feature store as it is; at most {max_body} bytes. Metadata "
            "`encoder_sha256`, or the header."
        )
        extra: dict[str, Any] = {
            "requestBody": {
                "required": True,
                "description": text,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            },
            "responses": {
                str(status): {"description": why}
                for status, why in {
                    400: "no HTTP, a body that ends early, or a header twice that may be there once",
                    401: "the token is missing or wrong",
                    408: "the body took too long to arrive",
                    409: "the features are of another encoder or defence",
                    413: "the body is too large",
                    415: "the body is compressed, or something else than safetensors",
                    422: "the body is malformed, or its features are of another shape or type or not finite",
                    503: "too many requests, or the classifier is starting or was lost: send it again later",
                    504: "no answer in time",
                }.items()
            },
        }
        if token:
            extra["security"] = [{"token": []}]
        for route in self.app.routes:
            if getattr(route, "path", "") == "/classify":
                route.summary = "Attributes of faces, from their protected features"
                route.openapi_extra = extra
        plain = self.app.openapi

        def openapi() -> dict[str, Any]:
            page = plain()
            if token:
                schemes = page.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["token"] = {"type": "http", "scheme": "bearer"}
            return page

        self.app.openapi = openapi
