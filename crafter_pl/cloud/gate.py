"""What every request passes first: the token, a limit on how many there are, the counting."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crafter_pl.cloud.metrics import Metrics

OPEN = frozenset({"/health", "/docs", "/openapi.json"})  # without a token; nothing about anybody is in them
PATHS = frozenset({"/classify", "/metrics", "/info", "/", *OPEN})  # counted by name, all others as one
MAX_IN_FLIGHT = 256
ONCE = (  # headers that two readers would understand differently if they came twice
    *(b"authorization", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"),
    *(b"x-encoder-sha256", b"x-defense-sha256"),
)


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
        began, status, held = time.perf_counter(), 0, 0
        if scope["method"] == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}

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
                if status == 405:
                    message["headers"] = [
                        (name, b"GET, HEAD" if (name, value) == (b"allow", b"GET") else value)
                        for name, value in message["headers"]
                    ]
            await send(message)

        async def refuse(code: int, detail: str, headers: dict[str, str] | None = None) -> None:
            await JSONResponse({"detail": detail}, code, headers)(scope, receive, noted_send)

        metrics.in_flight += 1
        try:
            if twice := _twice(Counter(name for name, _ in scope["headers"])):
                await refuse(400, f"the header {twice} may be given once", {"Connection": "close"})
            elif path not in OPEN and not self._may_pass(scope):
                why = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
                await refuse(401, why, {"WWW-Authenticate": "Bearer"})
            elif path not in OPEN and metrics.in_flight > MAX_IN_FLIGHT:
                why = f"more than {MAX_IN_FLIGHT} requests at a time: send it again later"
                await refuse(503, why, {"Retry-After": "1"})
            else:
                await self.app(scope, counted_receive, noted_send)
        except asyncio.CancelledError:  # the server's time to end is over
            if status:
                raise
            await refuse(503, "the server ends: send it again later", {"Retry-After": "5"})
        finally:
            metrics.in_flight -= 1
            metrics.held -= held
            metrics.requests[path if path in PATHS else "other", status or 500] += 1
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


def _twice(names: Counter[bytes]) -> str | None:
    """A header that comes twice and may not, as the length in two ways does."""
    for name in ONCE:
        if names[name] > 1:
            return name.decode()
    both = names[b"content-length"] and names[b"transfer-encoding"]
    return "content-length or transfer-encoding" if both else None
