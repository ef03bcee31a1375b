"""uvicorn, where it does not do what a client or an administrator expects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing.resource_tracker
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0  # that the head of a request may take to arrive
_TWICE = 0.2  # seconds
_ENDS = (signal.SIGINT, signal.SIGTERM)


class Protocol(H11Protocol):
    """HTTP/1.1: heads arrive in time, refusals are JSON, and who has said all still gets an answer."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock of the first head starts."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """More of a head, or of a body."""
        super().data_received(data)
        self._watch_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has closed its side of the connection: whether this side stays open."""
        waits = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        if waits:
            self.cycle.keep_alive = False
        return waits

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock is left."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._refuse(400, "the request is no HTTP/1.1 that can be read")

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            late = f"the head of the request took longer than {HEAD_SECONDS:g} s to arrive"
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, detail: str) -> None:
        """Answers outside the application, and hangs up."""
        body = json.dumps({"detail": detail}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Listener(uvicorn.Server):
    """Says when it listens; a second signal, of either kind, ends it at once.

    Args:
        config: uvicorn's.
        listening: called once connections are taken and signals are handled.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening
        self._signals: list[tuple[float, int]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Lets those be answered that are there; at the second signal nobody."""
        self.should_exit = True
        self._signals.append((time.monotonic(), sig))
        if self._second():
            self._loop.call_soon_threadsafe(self._drop)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but SIGTERM, answered to the end, is an end like any other."""
        super().run(sockets)
        if self._second() or any(sig == signal.SIGINT for _, sig in self._signals):
            signal.raise_signal(self._signals[-1][1])

    def _second(self) -> bool:
        """Whether somebody asked twice; what wrappers such as `timeout` send again at once is once."""
        return bool(self._signals) and self._signals[-1][0] - self._signals[0][0] > _TWICE

    def _drop(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()
        self._loop.call_later(1.0, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Ctrl+C and SIGTERM come after this block; processes that are started in it never get them.

    Whoever signals the whole group, as a terminal and systemd do, means the server: it ends the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    multiprocessing.resource_tracker.ensure_running()  # started later, it would let them through
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDS}
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
