"""What waits for the classifier: batches, limits, and what happens when the net hangs or fails."""

import asyncio
import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cloud_lab import InThread, ask, body, counts
from safetensors.torch import save

from crafter_pl.cloud import app, middleware
from crafter_pl.cloud.batching import Batcher, ClassifierError, ClientGoneError
from crafter_pl.cloud.classifier import Facts
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.data.transport import encode

FACTS = Facts("TaskModel", ("a",), (1, 2, 2), "e" * 64, None)


class Net:
    """Answers each feature with its first number, as long as it is `open`; notes the sizes of batches."""

    def __init__(self):
        self.open, self.fails, self.batches = threading.Event(), False, []
        self.open.set()

    def __call__(self, features):
        self.batches.append(len(features))
        assert self.open.wait(30)
        if self.fails:
            raise RuntimeError("out of memory")
        return features.flatten(1)[:, :1]


@pytest.fixture
def net():
    made = Net()
    yield made
    made.open.set()


@contextlib.contextmanager
def asking(server, *values):
    """Requests of one feature each, under way; a list of (status, first probability)."""
    answered = []

    def one(value):
        status, said, _ = ask(server, body(torch.full((1, 2, 2), value), FACTS.encoder_sha256))
        answered.append((status, said["answers"][0]["attributes"]["a"] if status == 200 else None))

    with ThreadPoolExecutor(max(1, len(values))) as pool:
        before = server.metrics.in_flight
        for value in values:
            pool.submit(one, value)
        until(lambda: server.metrics.in_flight == before + len(values) or len(answered) == len(values))
        yield answered


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# By itself


def submit(batcher, *sizes, gone=(), wait=0.0):
    """Requests of so many features at once; their rows, or what was raised."""

    async def go():
        tasks = []
        for number, size in enumerate(sizes):
            features = torch.full((size, 1, 2, 2), float(number))
            tasks.append(asyncio.create_task(batcher.submit(features, lambda n=number: n in gone)))
            await asyncio.sleep(wait)
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(go())


@pytest.fixture
def batcher(net):
    """Batches of four features, for which 0.1 s is waited; answers within 0.5 s."""
    made = Batcher(net, 4, 0.1, 0.5, Metrics())
    yield made
    net.open.set()
    assert made.close(10)


def test_requests_are_put_together_in_their_order(net, batcher):
    assert submit(batcher, 1, 2, 2, 9, 1, 1) == [
        [[float(n)]] * size for n, size in enumerate((1, 2, 2, 9, 1, 1))
    ]
    assert net.batches == [5, 9, 2]  # full; larger than one is meant to be, and alone; after the time to wait


def test_a_request_waits_for_others_only_so_long(net, batcher):
    began = time.monotonic()
    submit(batcher, 1)
    assert 0.09 < time.monotonic() - began < 5
    submit(batcher, 1, 1, wait=0.3)
    assert net.batches == [1, 1, 1]


def test_a_request_whose_client_has_gone_is_dropped(net, batcher):
    answers = submit(batcher, 1, 1, 1, 1, gone={1, 2})
    assert [type(answer) for answer in answers] == [list, ClientGoneError, ClientGoneError, list]
    assert net.batches == [2]


def test_no_answer_in_time_and_what_nobody_waits_for_any_more(net, batcher):
    net.open.clear()
    assert all(isinstance(answer, asyncio.TimeoutError) for answer in submit(batcher, 4, 4, 4))
    until(batcher.hangs)
    assert not batcher.ready() and not batcher.close(0.05)
    net.open.set()
    until(lambda: not batcher.hangs())
    assert net.batches == [4]  # the other two were not classified


def test_a_failure_is_that_of_its_batch(net, batcher, capsys):
    net.fails = True
    assert [type(answer) for answer in submit(batcher, 1, 1)] == [ClassifierError] * 2
    assert not batcher.ready() and not batcher.hangs() and "out of memory" in capsys.readouterr().err
    net.fails = False
    assert submit(batcher, 1) == [[[0.0]]] and batcher.ready()


# Behind HTTP


def test_a_net_that_hangs(net):
    """Who waits gets 504; who comes then 503 at once, until it works again."""
    with InThread(net, FACTS, timeout=0.3) as server:
        net.open.clear()
        with asking(server, 0.25) as answered:
            pass
        assert answered == [(504, None)]
        until(server.batcher.hangs)
        assert server.ask("/health")[0] == 503 and counts(server)["ready"] == 0
        status, _, headers = ask(server, b"anything")
        assert status == 503 and headers["retry-after"]
        net.open.set()
        until(lambda: server.ask("/health")[0] == 200)
        with asking(server, 0.25) as answered:
            pass
        assert answered == [(200, 0.25)]


def test_a_net_that_fails(net, capsys):
    with InThread(net, FACTS) as server:
        net.fails = True
        with asking(server, 0.25) as answered:
            pass
        assert answered == [(500, None)] and server.ask("/health")[0] == 503
        net.fails = False
        with asking(server, 0.5) as answered:
            pass
        assert answered == [(200, 0.5)] and server.ask("/health")[0] == 200
    assert "out of memory" in capsys.readouterr().err


def test_clients_that_hang_up_while_they_wait(net):
    data = body(torch.zeros(1, 2, 2), FACTS.encoder_sha256)
    with InThread(net, FACTS) as server:
        net.open.clear()
        with asking(server, 0.25) as answered:
            until(lambda: net.batches == [1])
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    sock.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                    until(lambda: server.metrics.in_flight > 1)
            until(lambda: server.metrics.in_flight == 6)
            time.sleep(0.1)  # the server hears of their end
            net.open.set()
        until(lambda: server.metrics.in_flight == 0)
        assert answered == [(200, 0.25)] and net.batches == [1] and server.metrics.held == 0
        assert counts(server)['requests_total{path="/classify",status="499"}'] == 5


def test_only_so_many_requests_at_a_time(net, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_IN_FLIGHT", 3)
    with InThread(net, FACTS) as server:
        net.open.clear()
        with asking(server, 0.125, 0.25, 0.5) as answered:
            status, _, headers = ask(server, b"x")
            assert status == 503 and headers["retry-after"]
            assert server.ask("/metrics")[0] == 503 and server.ask("/health")[0] == 200
            net.open.set()
        assert sorted(answered) == [(200, 0.125), (200, 0.25), (200, 0.5)]
        assert ask(server, b"x")[0] == 422


def test_only_so_many_bytes_at_a_time(net, monkeypatch):
    data = body(torch.zeros(1, 2, 2), FACTS.encoder_sha256)
    monkeypatch.setattr(app, "BODIES_HELD", 3)
    with InThread(net, FACTS, max_body=len(data)) as server:
        net.open.clear()
        with asking(server, 0.125, 0.25, 0.5) as answered:
            until(lambda: server.metrics.held == 3 * len(data))
            status, _, headers = ask(server, data)
            assert status == 503 and headers["retry-after"]
            net.open.set()
        assert sorted(answered) == [(200, 0.125), (200, 0.25), (200, 0.5)]
        until(lambda: server.metrics.held == 0)  # a moment after the answers
        assert ask(server, data)[0] == 200


def test_what_a_body_stands_for_is_held_too(net, monkeypatch):
    coded = encode(torch.rand(1000, 1, 2, 2), "int8")
    data = save(coded, metadata={"encoder_sha256": FACTS.encoder_sha256})
    assert len(data) < 16_000, "a third more as float32"
    with InThread(net, FACTS, max_body=len(data)) as server:
        monkeypatch.setattr(app, "BODIES_HELD", 1)
        status, _, headers = ask(server, data)
        assert status == 503 and headers["retry-after"]
        monkeypatch.setattr(app, "BODIES_HELD", 2)
        assert ask(server, data)[0] == 200
        until(lambda: server.metrics.held == 0)
