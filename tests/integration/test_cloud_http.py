"""HTTP as it should not be: broken, endless, too large, cut off; and what is left of it in the server."""

import json
import logging
import random
import re
import socket
import time

import pytest
import torch
from cloud_lab import BEARER, TOKEN, ask, body, counts

from crafter_pl.cloud import app
from crafter_pl.cloud import server as server_module

HEAD = f"POST /classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def test_large_bodies(server, cloud):
    """Announced or not, whole or in chunks; the largest that is allowed is taken."""
    facts, _ = cloud
    status, answer, _ = ask(server, bytes(2**20 + 1))
    assert status == 413 and "smaller shards" in answer["detail"]

    def chunks():
        for _ in range(40):
            yield bytes(2**16)

    for more in ({}, {"Connection": "close"}):  # as urllib asks
        connection = server.connect()
        connection.request("POST", "/classify", chunks(), BEARER | more, encode_chunked=True)
        assert (answer := connection.getresponse()).status == 413 and answer.read()
        connection.request("POST", "/classify", bytes(2**22), BEARER | more)
        assert (answer := connection.getresponse()).status == 413 and answer.read()
    rows = (2**20 - 1000) // (4 * torch.Size(facts.shape).numel())
    status, answers, _ = ask(server, body(torch.randn(rows, *facts.shape), server.encoder))
    assert status == 200 and len(answers["answers"]) == rows


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/classify", {}, 405),
        ("PUT", "/classify", {}, 405),
        ("DELETE", "/classify", {}, 405),
        ("OPTIONS", "/classify", {}, 405),
        ("POST", "/nothing", {}, 404),
        ("POST", "/classify/", {}, 404),  # no redirect: it would lead a client, token and all, to http://
        ("POST", "/shutdown", {}, 404),
        ("POST", "/../etc/passwd", {}, 404),
        ("POST", "/classify", {"Content-Encoding": "gzip"}, 415),
        ("POST", "/classify", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ("POST", "/classify", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/classify", {"Content-Type": "application/json"}, 415),
        ("POST", "/classify", {"Content-Type": "application/python-pickle"}, 415),
        ("POST", "/classify", {"Content-Type": "Application/Octet-Stream; a=b"}, 422),
    ],
)
def test_other_requests(server, method, path, headers, status):
    data = b"x" if method in ("POST", "PUT") else None
    assert server.ask(path, data, method=method, **BEARER, **headers)[0] == status


@pytest.mark.parametrize("path", ["/health", "/info", "/metrics", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(server, path):
    status, page, asked = server.ask(path, **BEARER)
    head, empty, headers = server.ask(path, method="HEAD", **BEARER)
    assert (status, head, empty) == (200, 200, "") and page
    assert path == "/metrics" or headers["content-length"] == asked["content-length"]
    status, _, headers = server.ask(path, method="OPTIONS", **BEARER)
    assert status == 405 and set(headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert server.ask("/classify", method="HEAD", **BEARER)[2]["allow"] == "POST"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: many\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 9999999999\r\n\r\nx", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Authorization: Bearer x\r\nContent-Length: 1\r\n\r\nx", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx", 422),
    ],
)
def test_broken_http(server, sent, status):
    said = server.say(sent, lines=1)
    assert not said or said.startswith(b"HTTP/1.1 %d " % status)  # or it has hung up on us


@pytest.mark.parametrize(
    "sent",
    [
        [HEAD, *[b"X-Y: " + b"y" * 10_000 + b"\r\n"] * 30],
        [HEAD + b"X: ", *[b"y" * 10_000] * 30],
        [b"GET /", *[b"y" * 10_000] * 30],
        [CHUNKED + b"1;", *[b"y" * 10_000] * 30],
        [CHUNKED + b"1\r\nx\r\n0\r\n", *[b"X-Y: " + b"y" * 10_000 + b"\r\n"] * 30],
    ],
)
def test_what_has_no_end_is_refused(server, sent):
    """Headers, a header, a path, a chunk's extension, trailers."""
    said = server.say(*sent, pause=0.002, lines=1)
    assert not said or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 "))  # a body, whatever follows it
    assert counts(server)["body_bytes_held"] == 0


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_passed_over(server, cloud, offer):
    more = BEARER | {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offer, "HTTP2-Settings": "AAMAAABk"}
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    connection = server.connect()
    for _ in range(2):
        connection.request("POST", "/classify", data, more)
        answer = connection.getresponse()
        assert answer.status == 200 and len(json.loads(answer.read())["answers"]) == 1


def test_who_still_sends_after_the_answer_is_hung_up_on_in_the_end(server, monkeypatch):
    monkeypatch.setattr(server_module, "LINGER_SECONDS", 0.3)
    began = time.monotonic()
    said = server.say(HEAD + b"Connection: close\r\nContent-Length: 9999999\r\n\r\nx")
    assert said.startswith(b"HTTP/1.1 413 ") and time.monotonic() - began < 10


def test_a_body_must_arrive_in_time(server, monkeypatch):
    monkeypatch.setattr(app, "READ_SECONDS", 0.3)
    began = time.monotonic()
    assert server.say(HEAD + b"Content-Length: 9\r\nConnection: close\r\n\r\nx").startswith(b"HTTP/1.1 408 ")
    drops = [b"1\r\nx\r\n"] * 8
    said = server.say(CHUNKED.replace(b"Host", b"Connection: close\r\nHost"), *drops, pause=0.1)
    assert not said or said.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 10


def test_a_head_must_arrive_in_time(server, cloud, monkeypatch):
    """On a new connection or after an answer; a body has its own limit."""
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)

    def statuses(*parts):
        return re.findall(rb"HTTP/1.1 (\d+)", server.say(*parts, pause=0.1))

    data = body(torch.zeros(cloud[0].shape), server.encoder)
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(data)
    assert statuses(b"GET ", b"/ HT") == [b"408"]
    assert statuses() == [b"408"]
    slowly = [data[:9], data[9:20], data[20:30], data[30:40], data[40:]]
    assert statuses(whole, *slowly, b"GET /") == [b"200", b"408"]


@pytest.mark.parametrize("name", ["X-Encoder-SHA256", "x-defense-sha256", "Content-Type", "content-encoding"])
def test_a_header_twice_is_refused(server, cloud, name):
    """Not even where the two are equal: who comes after us may read the other one."""
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    lines = f"{name}: {server.encoder}\r\n".encode() * 2 + b"Content-Length: %d\r\n\r\n" % len(data)
    answer = server.say(HEAD + lines + data)
    assert answer.startswith(b"HTTP/1.1 400 ") and name.lower().encode() in answer.splitlines()[-1]


def test_clients_that_hang_up(server, cloud):
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    for part in (HEAD, HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data[:100]):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(part)
    for _ in range(20):  # these do not wait for their answers
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    assert ask(server, data)[0] == 200
    end = time.monotonic() + 10
    while (seen := counts(server))["requests_in_flight"] > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert seen["requests_in_flight"] == 1 and seen["body_bytes_held"] == 0


def test_a_thousand_damaged_requests(server, cloud):
    """None crashes it, each gets its answer."""
    chance, good = random.Random(1), body(torch.randn(cloud[0].shape), server.encoder, [5])
    statuses, connection = {}, server.connect()
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(400)
            if chance.random() < 0.5:
                data[place] ^= 1 << chance.randrange(8)
            else:
                data[place : place + chance.randint(0, 30)] = chance.randbytes(chance.randint(0, 30))
        status, answer, _ = server.ask("/classify", bytes(data), connection, **BEARER)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (200, 409, 422) and ("answers" in answer or "\n" not in answer["detail"])
    assert statuses[422] > 500
    assert ask(server, good)[0] == 200


def test_damaged_requests_in_a_row(server, cloud, monkeypatch):
    """Three on a connection, bytes of their heads changed, and the client does not wait: nothing is left."""
    errors, chance = [], random.Random(3)
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *said, **_: errors.append(said))
    data = body(torch.zeros(cloud[0].shape, dtype=torch.float16), server.encoder)
    row = (HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data) * 3
    for _ in range(300):
        sent = bytearray(row)
        for _ in range(chance.randint(0, 3)):
            place = chance.choice([0, len(row) // 3, len(row) // 3 * 2]) + chance.randrange(len(HEAD) + 30)
            sent[place : place + chance.randint(0, 9)] = chance.choice(
                [b"\r\n", b"\0", b":", b"chunked", b""]
            )
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(sent)
    end = time.monotonic() + 10
    while (seen := counts(server))["requests_in_flight"] > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert seen["requests_in_flight"] == 1 and seen["body_bytes_held"] == 0 and not errors
