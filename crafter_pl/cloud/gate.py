"""What every request passes first: the token, a limit on how many there are, the counting."""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crafter_pl.cloud.metrics import Metrics

OPEN = frozenset({"/health", "/docs", "/openapi.json"})  # without a token; nothing about anybody is in them
PATHS = frozenset({"/classify", "/metrics", "/info", "/", *OPEN})  # counted by name, all others as one
MAX_IN_FLIGHT = 256


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: what is behind it.
        token: that requests must bear, but for the paths in `OPEN`; None: none.
        metrics: where it counts.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        metrics, path = self.metrics, scope["path"]
        began, status, held = time.perf_counter(), 500, 0

        async def counted_receive() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            metrics.held += size
            return message

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.in_flight += 1
        try:
            if path not in OPEN and not self._may_pass(scope):
                answer = JSONResponse(
                    {"detail": "the token is missing or wrong: send the header Authorization: Bearer TOKEN"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await answer(scope, receive, noted_send)
            elif path not in OPEN and metrics.in_flight > MAX_IN_FLIGHT:
                answer = JSONResponse(
                    {"detail": f"more than {MAX_IN_FLIGHT} requests at a time: send it again later"},
                    503,
                    {"Retry-After": "1"},
                )
                await answer(scope, receive, noted_send)
            else:
                await self.app(scope, counted_receive, noted_send)
        finally:
            metrics.in_flight -= 1
            metrics.held -= held
            metrics.requests[path if path in PATHS else "other", status] += 1
            if path == "/classify" and status == 200:
                metrics.took(time.perf_counter() - began)

    def _may_pass(self, scope: Scope) -> bool:
        """Whether the request bears the token; the time this takes does not tell how much of it was right."""
        if self._digest is None:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or given[0][:7].lower() != b"bearer ":
            return False
        return hmac.compare_digest(hashlib.sha256(given[0][7:].strip()).digest(), self._digest)
