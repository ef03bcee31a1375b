"""A running server: what it answers, what it refuses, what is left when a process of it is killed."""

import http.client
import json
import os
import random
import re
import signal
import socket
import threading
import time

import pytest
import torch
from closeness import near
from cloud_lab import Running, body
from load_test_serve import alive
from test_cloud_wire import MALFORMED

from crafter_pl.cloud.classifier import load_classifier
from crafter_pl.data.store import read_shard

TOKEN = "a-token-of-the-tests-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def server(lab, token_file):
    """Of the task model, with a token, bodies of at most a megabyte."""
    options = ["--token_file", str(token_file), "--max_body_mb", "1", "--timeout", "6"]
    made = Running(lab.ckpt("task"), *options)
    yield made
    made.end()
    assert TOKEN not in made.printed and "Traceback" not in made.printed


@pytest.fixture(scope="module")
def cloud(lab):
    net, facts = load_classifier(lab.ckpt("task"))
    return facts, lambda features: net(features).sigmoid().detach()


def ask(server, data, **headers):
    return server.ask("/classify", data, **BEARER, **headers)


def probabilities(answers):
    return torch.tensor([list(one["attributes"].values()) for one in answers["answers"]])


# What it answers


def test_a_shard_of_a_store_as_it_is(server, lab, cloud):
    facts, classify = cloud
    store, manifest = lab.store(), lab.manifest()
    name = sorted(manifest["shards"])[0]
    features, index = read_shard(store, name, manifest)
    data = (store / name).read_bytes()
    status, answers, _ = ask(server, data, X_Encoder_SHA256=manifest["encoder_sha256"])
    assert status == 200 and [one["index"] for one in answers["answers"]] == index.tolist()
    assert list(answers["answers"][0]["attributes"]) == list(facts.attributes)
    assert near(probabilities(answers), classify(features), steps=10)

    status, answers, _ = ask(server, data)
    assert status == 422 and "encoder_sha256" in answers["detail"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_feature(server, cloud, dtype):
    facts, classify = cloud
    feature = torch.randn(facts.shape).to(dtype)
    status, answers, _ = ask(server, body(feature, server.encoder))
    assert status == 200 and [one["index"] for one in answers["answers"]] == [None]
    expected = classify(feature.float().unsqueeze(0))
    assert near(probabilities(answers), expected, steps=10)


def test_requests_are_batched_and_nobody_gets_anothers_answer(server, cloud):
    facts, classify = cloud
    before = counts(server)
    features = torch.randn(8, 12, *facts.shape)
    wrong = []

    def client(number):
        connection = server.connect()
        for feature in features[number]:
            data = body(feature, server.encoder, [number])
            status, answers, _ = server.ask("/classify", data, connection, **BEARER)
            close = near(probabilities(answers), classify(feature.unsqueeze(0)), steps=10)
            if status != 200 or answers["answers"][0]["index"] != number or not close:
                wrong.append((number, answers))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = counts(server)
    assert not wrong
    assert after["features_total"] - before["features_total"] == 96
    assert after["batches_total"] - before["batches_total"] < 96
    assert after["body_bytes_held"] == 0


def counts(server):
    page = server.ask("/metrics", **BEARER)[1]
    return {name: float(value) for name, value in re.findall(r"^crafter_pl_(\S+) (\S+)$", page, re.MULTILINE)}


def test_health_metrics_and_the_openapi_page(server, cloud):
    assert server.ask("/health")[:2] == (200, "ok")
    seen = counts(server)
    assert seen["ready"] == 1 and seen["requests_in_flight"] == 1
    assert seen['requests_total{path="/health",status="200"}'] >= 1
    assert "swagger" in server.ask("/docs")[1].lower()
    page = server.ask("/openapi.json")[1]
    post = page["paths"]["/classify"]["post"]
    assert post["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert {"200", "401", "409", "413", "422", "503"} <= post["responses"].keys()
    assert page["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    about = server.ask("/info", **BEARER)[1]["model"]
    assert about["encoder_sha256"] == server.encoder and about["attributes"] == list(cloud[0].attributes)


# What it refuses


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(server, name):
    status, answer, _ = ask(server, MALFORMED[name][0], X_Encoder_SHA256=server.encoder)
    assert status == 422 and "\n" not in answer["detail"] and len(answer["detail"]) < 300


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN} x"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-API-Key": TOKEN},
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/metrics", "/info", "/", "/nothing", "/docs/oauth2-redirect"])
def test_the_token(server, given, path):
    data = b"x" if path == "/classify" else None
    status, answer, headers = server.ask(path, data, **given)
    assert status == 401 and headers["www-authenticate"] == "Bearer" and TOKEN not in json.dumps(answer)


def test_a_token_in_the_address_is_none(server):
    assert server.ask(f"/metrics?token={TOKEN}")[0] == 401


def test_another_encoder(server, cloud):
    status, answer, _ = ask(server, body(torch.zeros(cloud[0].shape), "0" * 64))
    assert status == 409 and "000000000000…" in answer["detail"] and server.encoder[:12] in answer["detail"]
    feature = body(torch.zeros(cloud[0].shape), server.encoder)
    assert ask(server, feature, X_Encoder_SHA256="0" * 64)[0] == 422  # the two differ
    assert ask(server, body(torch.zeros(cloud[0].shape)), X_Encoder_SHA256="none")[0] == 422


def test_features_that_have_no_answer(server, cloud):
    """Finite, but too large for the net: that request alone is refused."""
    status, answer, _ = ask(server, body(torch.full(cloud[0].shape, 3e38), server.encoder))
    assert status == 422 and "no finite answer" in answer["detail"]


def test_large_bodies(server, cloud):
    """Announced or not, whole or in chunks; the largest that is allowed is taken."""
    facts, _ = cloud
    status, answer, _ = ask(server, bytes(2**20 + 1))
    assert status == 413 and "smaller shards" in answer["detail"]

    def chunks():
        for _ in range(40):
            yield bytes(2**16)

    connection = server.connect()
    try:
        connection.request("POST", "/classify", chunks(), BEARER, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has hung up on us
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
    "data",
    [b"", b"--x\r\nContent-Disposition", b'{"features": [1]}', b"\x1f\x8b\x08\0\0\0\0\0", b"features=1"],
)
def test_what_is_no_safetensors_is_told_how_it_must_be_sent(server, data):
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl calls any body
    status, answer, _ = ask(server, data, **form)
    assert status == (415 if data else 422)
    assert "--data-binary @FILE" in answer["detail"] and not re.search(r"\d", answer["detail"])


def test_curls_name_for_a_body_does_not_matter(server, cloud):
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    for kind in ("application/x-www-form-urlencoded", "application/json", "application/octet-stream"):
        assert ask(server, data, Content_Type=kind)[0] == 200
    assert ask(server, data, Content_Encoding="Identity")[0] == 200


HEAD = f"POST /classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 401),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: many\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 9999999999\r\n\r\nx", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Authorization: Bearer x\r\nContent-Length: 1\r\n\r\nx", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx", 422),
    ],
)
def test_broken_http(server, sent, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        try:
            sock.sendall(sent)
            line = sock.makefile("rb").readline()
        except ConnectionError:
            line = b""
    assert not line or line.startswith(b"HTTP/1.1 %d " % status)  # or it has hung up on us


@pytest.mark.parametrize("name", ["X-Encoder-SHA256", "x-defense-sha256", "Content-Type", "content-encoding"])
def test_a_header_twice_is_refused(server, cloud, name):
    """Not even where the two are equal: who comes after us may read the other one."""
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    lines = f"{name}: {server.encoder}\r\n".encode() * 2 + b"Content-Length: %d\r\n\r\n" % len(data)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(HEAD + lines + data)
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ") and name.lower().encode() in answer.splitlines()[-1]


def test_a_client_that_has_closed_its_side_gets_its_answer(server, cloud):
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")


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
    before, statuses, connection = counts(server), {}, server.connect()
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
    assert counts(server)["classifier_restarts_total"] == before["classifier_restarts_total"]
    assert ask(server, good)[0] == 200


def test_a_classifier_that_hangs(server, cloud):
    """The request gets an error in time, and the next one an answer."""
    worker, data = server.children()["worker"], body(torch.randn(cloud[0].shape), server.encoder)
    os.kill(worker, signal.SIGSTOP)
    try:
        status, answer, headers = ask(server, data)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert status == 504 and "within 6 s" in answer["detail"] and headers["retry-after"]
    assert ask(server, data)[0] == 200


# Killed. These come last: the last one ends the server.


@pytest.fixture
def clients(server, cloud):
    """`clients(seconds)` starts 12 of them; each notes what became of every request."""
    data = body(torch.randn(cloud[0].shape), server.encoder)
    seen, threads = [], []

    def client(until):
        connection = server.connect()
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                outcome = server.ask("/classify", data, connection, **BEARER)[0]
            except (OSError, http.client.HTTPException) as error:
                outcome = "lost" if isinstance(error, TimeoutError) else "broken"
                connection.close()
            seen.append((began, outcome, time.monotonic() - began))
            if outcome != 200:
                time.sleep(0.2)

    def start(seconds):
        until = time.monotonic() + seconds
        for _ in range(12):
            threads.append(threading.Thread(target=client, args=(until,)))
            threads[-1].start()
        return seen

    yield start
    for thread in threads:
        thread.join()


def test_killed_classifier(server, clients):
    """What waits gets 503 at once, health says so, and another process takes over."""
    worker, before = server.children()["worker"], counts(server)["classifier_restarts_total"]
    seen = clients(2)
    time.sleep(1)
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.5)
    assert server.ask("/health")[0] == 503
    end = time.monotonic() + 60
    while server.ask("/health")[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    outcomes = {outcome for _, outcome, _ in seen}
    assert outcomes == {200, 503}
    assert max(seconds for _, outcome, seconds in seen if outcome == 503) < 3
    assert counts(server)["classifier_restarts_total"] == before + 1
    assert server.children()["worker"] != worker


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 0), ([signal.SIGINT], 130), ([signal.SIGTERM] * 2, 143)]
)
def test_a_signal_to_the_whole_group(lab, cloud, signals, code):
    """As a terminal and systemd send it: what waits is answered; after a second signal it is told at once."""
    server = Running(lab.ckpt("task"))
    data, outcomes = body(torch.randn(cloud[0].shape), server.encoder), []
    worker = server.children()["worker"]
    os.kill(worker, signal.SIGSTOP)  # so that all wait
    threads = [
        threading.Thread(target=lambda: outcomes.append(server.ask("/classify", data)[0])) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    while server.ask("/metrics")[1].count("requests_in_flight 7\n") < 1:
        time.sleep(0.05)
    for number in signals:
        os.killpg(server.process.pid, number)
        time.sleep(0.4)
    os.kill(worker, signal.SIGCONT) if len(signals) == 1 else None
    ended = time.monotonic()
    server.printed += server.process.communicate(timeout=30)[0]
    for thread in threads:
        thread.join()
    assert server.process.returncode == code and time.monotonic() - ended < 9
    assert outcomes == [200 if len(signals) == 1 else 503] * 6
    assert "Traceback" not in server.printed and not alive(worker)


def test_killed_server(server, clients):
    """Every client gets an answer or an error, and no process is left."""
    children = server.children().values()
    assert len(children) == 2
    seen = clients(2)
    time.sleep(1)
    server.process.kill()
    server.process.wait(10)
    time.sleep(1.5)
    outcomes = [outcome for _, outcome, _ in seen]
    assert set(outcomes) == {200, "broken"} and outcomes.count("broken") >= 12
    end = time.monotonic() + 10
    while any(map(alive, children)):
        assert time.monotonic() < end
        time.sleep(0.1)
