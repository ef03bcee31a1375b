"""What every request passes first: the token, limits, the counting."""

import asyncio
import hashlib
import hmac
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crafter_pl.cloud.metrics import Metrics

OPEN = frozenset({"/health", "/docs", "/openapi.json"})  # without a token; nothing about anybody is in them
PATHS = frozenset({"/classify", "/metrics", "/info", *OPEN})  # counted by name, all others as one
MAX_IN_FLIGHT = 256
SINGLE = (  # headers that two readers would understand differently if they came twice
    *(b"authorization", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"),
    *(b"x-encoder-sha256", b"x-defense-sha256"),
)


class AccessMiddleware:
    """ASGI middleware around the whole application, for HTTP alone, see `Server`.

    Args:
        app: what is behind it.
        token: that requests must bear, but for the paths in `OPEN`; None: none.
        metrics: where it counts.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        metrics, path = self.metrics, scope["path"]
        began, status, held = time.perf_counter(), 0, 0

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

        metrics.in_flight += 1
        try:
            if (refusal := self._refusal(scope)) is not None:
                await refusal(scope, receive, noted_send)
            else:
                if scope["method"] == "HEAD":  # as GET; uvicorn leaves the body out
                    scope = {**scope, "method": "GET"}
                await self.app(scope, counted_receive, noted_send)
        except asyncio.CancelledError:  # the server's time to end is over
            if status:
                raise
            ends = {"detail": "the server ends: send it again later"}
            await JSONResponse(ends, 503, {"Retry-After": "5"})(scope, receive, noted_send)
        finally:
            metrics.in_flight -= 1
            metrics.held -= held
            metrics.requests.labels(path if path in PATHS else "other", status or 500).inc()
            if path == "/classify" and status == 200:
                metrics.seconds.observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Why a request is not passed on; None: it is."""
        names = [name for name, _ in scope["headers"]]
        if twice := next((name for name in SINGLE if names.count(name) > 1), None):
            why = f"the header {twice.decode()} may be given once"
            return JSONResponse({"detail": why}, 400, {"Connection": "close"})
        if scope["path"] in OPEN:
            return None
        if self._digest is not None and not self._bears_token(scope["headers"]):
            return JSONResponse(
                {"detail": "the token is missing or wrong: send the header Authorization: Bearer TOKEN"},
                401,
                {"WWW-Authenticate": "Bearer"},
            )
        if self.metrics.in_flight > MAX_IN_FLIGHT:
            return JSONResponse(
                {"detail": f"more than {MAX_IN_FLIGHT} requests at a time: send it again later"},
                503,
                {"Retry-After": "1"},
            )
        return None

    def _bears_token(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """The time this takes does not tell how much of a token was right."""
        given = next((value for name, value in headers if name == b"authorization"), b"")
        digest = hashlib.sha256(given[7:].strip()).digest()
        return given[:7].lower() == b"bearer " and hmac.compare_digest(digest, self._digest or b"")
