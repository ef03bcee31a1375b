"""uvicorn, where it does not do what a client or an administrator expects."""

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_SECONDS = 30.0  # that the head of a request may take to arrive
MAX_HEAD = 1 << 16  # bytes that arrive without a byte of a body among them
LINGER_SECONDS = 10.0  # that a client who was answered may go on sending its body
_OFFER = re.compile(rb"(?<=\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


class _Lingering:
    """A transport that is closed by `Protocol.linger`."""

    def __init__(self, protocol: "Protocol") -> None:
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (of the transport)
        return getattr(self._protocol.transport, name)

    def close(self) -> None:
        self._protocol.linger()


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on heads and refusals in JSON; offers of another protocol are passed over."""

    _in_body = False
    _lingers = False
    _deadline: asyncio.TimerHandle | None = None
    _head = 0
    _cycles: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first head is waited for."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """More of a head, or of a body."""
        self._head += len(data)
        if not self._in_body:  # httptools would take what follows an offer, such as h2c, for another protocol
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"x-offer", head) + end + rest
        super().data_received(data)
        if self._head > MAX_HEAD:
            self._refuse(400, f"the head of the request is larger than {MAX_HEAD} bytes")
        self._watch_head()

    def on_message_begin(self) -> None:
        """Lets the application ask whether the client has hung up: ``request.state.is_gone``."""
        super().on_message_begin()
        self.scope["state"]["is_gone"] = self.transport.is_closing

    def on_headers_complete(self) -> None:
        """The end of a head."""
        super().on_headers_complete()
        self._in_body = True
        self.cycle.transport = _Lingering(self)  # type: ignore[assignment]
        self._cycles = (*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle)

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._head, self._in_body = 0, False
        super().on_message_complete()
        if self._lingers:
            self.transport.close()

    def linger(self) -> None:
        """Hangs up, once a client that still sends has had time to: reset, it would not see its answer."""
        if not self._in_body or self.transport.is_closing():
            self.transport.close()
        elif not self._lingers:
            self._lingers = True
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended; uvicorn itself tells only the last one of requests in a row."""
        self._stop_watching()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP."""
        self._refuse(400, "the request is no HTTP/1.1 that can be read")

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._deadline is None:
            late = f"the head of the request took longer than {HEAD_SECONDS:g} s to arrive"
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, late)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, detail: str) -> None:
        """Answers outside the application, unless an answer has begun, and hangs up."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"detail": detail})
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + body).encode())
        self.transport.close()


class Server(uvicorn.Server):
    """Says when it listens; a second signal, of either kind, ends it at once.

    Args:
        app: what answers.
        listening: called once connections are taken and signals are handled.
    """

    def __init__(self, app: ASGIApp, listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=10,
            )
        )
        self._listening = listening
        self._signals: list[tuple[float, int]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At the first signal takes no new requests; at the second one cuts off those that wait."""
        self.should_exit = True
        self._signals.append((time.monotonic(), sig))
        if self._second():
            asyncio.get_running_loop().call_soon_threadsafe(self.cut_off)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but SIGTERM, answered to the end, is an end like any other."""
        super().run(sockets)
        if self._second() or any(sig == signal.SIGINT for _, sig in self._signals):
            signal.raise_signal(self._signals[-1][1])

    def cut_off(self) -> None:
        """Cancels every request; the middleware answers them."""
        for task in self.server_state.tasks:
            task.cancel()

    def _second(self) -> bool:
        """Whether somebody asked twice; what wrappers such as `timeout` send again within 0.2 s is once."""
        return bool(self._signals) and self._signals[-1][0] - self._signals[0][0] > 0.2
