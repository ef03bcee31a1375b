"""What `serve` takes and refuses before it serves, and the parts of the server by themselves."""

import asyncio
import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import uvicorn
from closeness import near
from cloud_lab import Running, body
from fastapi import HTTPException
from litserve.utils import ResponseBufferItem
from starlette.requests import ClientDisconnect, Request
from uvicorn.server import ServerState

from crafter_pl.cli import main
from crafter_pl.cloud import api, gate, listener, serve
from crafter_pl.cloud.api import CloudAPI, Door
from crafter_pl.cloud.classifier import Facts, classify, load_classifier
from crafter_pl.cloud.gate import Gate
from crafter_pl.cloud.listener import Listener, Protocol, later
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.cloud.server import CloudServer
from crafter_pl.data.store import read_store
from crafter_pl.errors import UserError
from crafter_pl.stages.base import load_stage, sha256
from crafter_pl.stages.task import TaskModel

TOKEN = "a-token-of-the-tests-0123456789"


# Checkpoints


def test_the_cloud_of_each_kind_of_stage(lab):
    task = load_stage(lab.ckpt("task"), TaskModel)
    names, digest = tuple(task.hparams["attribute_names"]), sha256(lab.ckpt("task"))
    features, _, manifest = read_store(lab.store())
    expected = task.cloud(features).sigmoid()

    net, facts = load_classifier(lab.ckpt("task"))
    assert facts == Facts("TaskModel", names, task.feature_shape, digest, None)
    assert near(classify(net, features, 3), expected, steps=10)

    net, facts = load_classifier(lab.ckpt("noise"))
    assert (facts.stage, facts.encoder_sha256, facts.defense_sha256) == ("Noise", digest, None)
    assert near(classify(net, features, 64), expected, steps=10)

    net, facts = load_classifier(lab.ckpt("adversarial_learning"))  # trains encoder and cloud anew
    assert facts.encoder_sha256 == digest and len(facts.defense_sha256) == 64
    assert (classify(net, features, 64) - expected).abs().max() > 1e-4

    stores = [f"--model.init_args.{n}_store={lab.store(f'private_{n}')}" for n in ("train", "test")]
    net, facts = load_classifier(lab.ckpt("cloud", "training_scenario", *stores))
    assert (facts.stage, facts.attributes, facts.encoder_sha256) == ("CloudClassifier", names, digest)
    assert facts.defense_sha256 == manifest["defense_sha256"]


def test_the_defence_must_be_the_classifiers():
    facts = Facts("CloudClassifier", ("a",), (1, 2, 2), "e" * 64, "d" * 64)
    door = Door(facts, 1000, Metrics())
    feature = body(torch.zeros(1, 2, 2), "e" * 64)
    assert door.check(feature, None, "d" * 64).count == 1
    assert door.check(body(torch.zeros(1, 2, 2), "e" * 64, defense_sha256="d" * 64), None, None).count == 1
    for defense, status in (("c" * 64, 409), (None, 422)):
        with pytest.raises(HTTPException, match="defense_sha256") as refused:
            door.check(feature, None, defense)
        assert refused.value.status_code == status


# Mistakes


@pytest.fixture
def files(tmp_path):
    """Files that options may name."""
    (tmp_path / "good").write_text(f"{TOKEN}\n")
    (tmp_path / "short").write_text("secret")
    (tmp_path / "empty").write_text("")
    (tmp_path / "two").write_text(f"{TOKEN}\n{TOKEN}")
    (tmp_path / "binary").write_bytes(bytes(range(128, 200)))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint", "absent.ckpt"], "no checkpoint absent.ckpt"),
        (["--checkpoint", "{files}/binary"], "no readable checkpoint"),
        (["--checkpoint", "{prior}"], "is a checkpoint of GanPrior, which has no cloud classifier"),
        ([], "checkpoint"),
        (["--port", "{taken}"], "cannot listen on 127.0.0.1, port {taken}"),
        (["--port", "70000"], "--port is 70000; give 0 to 65535"),
        (["--max_body_mb", "0"], "--max_body_mb is 0"),
        (["--max_batch_size", "0"], "--max_batch_size is 0"),
        (["--batch_timeout", "-1"], "--batch_timeout is -1"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines: give --token_file"),
        (["--host", "::"], "can be reached from other machines"),
        (["--host", ""], "is no address of this machine"),
        (["--host", "local\0host"], "is no address of this machine"),
        (["--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--host", "203.0.113.7", "--token_file", "{files}/good"], "cannot listen on 203.0.113.7"),
        (["--token_file", "{files}/absent"], "absent is missing"),
        (["--token_file", "{files}"], "Is a directory"),
        *(
            (["--token_file", f"{{files}}/{name}"], "holds no token")
            for name in ("short", "empty", "two", "binary")
        ),
        (["--token", TOKEN], "give --token_file FILE"),
        ([f"--token={TOKEN}"], "give --token_file FILE"),
        (["--tok", TOKEN], "give --token_file FILE"),
        (["--batch", "3"], "--batch"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_mistakes_are_one_message(options, words, files, lab, capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        names = {"files": files, "taken": busy.getsockname()[1], "prior": ""}
        if "{prior}" in options:
            names["prior"] = lab.ckpt("prior")
        if "--checkpoint" not in options and options:
            options = ["--checkpoint", "absent.ckpt", *options]
        capsys.readouterr()
        assert main(["serve", *(option.format(**names) for option in options)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words.format(**names) in said.err
    assert said.err.count("\n") == 1 or options == [] or "--batch" in options  # jsonargparse's own
    assert TOKEN not in said.err + said.out and "Traceback" not in said.err


def test_ctrl_c_ends_it(lab):
    """The note about the token file's mode is printed, and nothing else but how it ended."""
    file = lab.runs_dir / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    server = Running(lab.ckpt("noise"), "--host", "0.0.0.0", "--token_file", str(file))
    assert server.ask("/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    children = server.children().values()
    assert server.end(signal.SIGINT) == 130 and len(children) == 2
    assert "chmod 600" in server.printed and server.printed.endswith("Ctrl+C ends it\ninterrupted\n")
    assert TOKEN not in server.printed


# Addresses


LOCAL = [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0, 0, 0))]


@pytest.fixture
def named(monkeypatch):
    """`named(addresses)` lets every name mean these."""

    def mean(addresses):
        found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    return mean


def close(socks):
    for sock in socks:
        sock.close()


def test_a_name_of_several_addresses_is_listened_on_at_all(named):
    for addresses in (LOCAL, LOCAL[::-1], LOCAL * 2):
        named(addresses)
        socks = serve._bind("localhost", 0)
        assert {sock.family for sock in socks} == {socket.AF_INET, socket.AF_INET6} and len(socks) == 2
        assert len({sock.getsockname()[1] for sock in socks}) == 1
        close(socks)


def test_an_address_that_this_machine_has_not_is_left_out_unless_it_is_the_only_one(named):
    named([(socket.AF_INET6, ("2001:db8::1", 0, 0, 0)), LOCAL[0]])
    socks = serve._bind("localhost", 0)
    close(socks)
    assert [sock.family for sock in socks] == [socket.AF_INET]
    named([(socket.AF_INET6, ("2001:db8::1", 0, 0, 0))])
    with pytest.raises(UserError, match="cannot listen on localhost"):
        serve._bind("localhost", 0)


def test_an_address_that_is_taken_is_an_error_and_nothing_stays_bound(named):
    named(LOCAL)
    with socket.socket(socket.AF_INET6) as busy:
        busy.bind(("::1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match="cannot listen") as refused:
            serve._bind("localhost", port)
        assert refused.value.__cause__.errno == errno.EADDRINUSE
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))


def test_a_name_is_loopback_if_all_its_addresses_are(named):
    named(LOCAL)
    assert serve._loopback("localhost")
    named([*LOCAL, (socket.AF_INET, ("10.0.0.1", 0))])
    assert not serve._loopback("localhost")


# Signals


def test_signals_come_later_and_never_to_processes_that_are_started_meanwhile():
    steps = []
    with pytest.raises(KeyboardInterrupt), later():
        child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1)
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("went on")
    assert steps == ["went on"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.communicate(b"\n")
    assert child.returncode == 0


@pytest.mark.parametrize(("after", "twice"), [([0.0], False), ([0.0, 0.01], False), ([0.0, 0.5], True)])
def test_a_signal_that_a_wrapper_sends_again_at_once_is_one(after, twice, monkeypatch):
    made, called = Listener(uvicorn.Config(None), lambda: None), []
    made._loop = SimpleNamespace(call_soon_threadsafe=called.append)
    for seconds in after:
        monkeypatch.setattr(listener.time, "monotonic", lambda at=seconds: 100 + at)
        made.handle_exit(signal.SIGTERM, None)
    assert made.should_exit and bool(called) == twice


# Parts


def request(*parts, headers=()):
    """A request whose body comes in these parts; an exception among them is raised, a number is waited."""
    left = list(parts)

    async def receive():
        part = left.pop(0)
        if isinstance(part, float):
            await asyncio.sleep(part)
            part = b""
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return Request({"type": "http", "headers": list(headers)}, receive)


@pytest.mark.parametrize(
    ("given", "held", "status"),
    [
        (request(b"x" * 60, b"x" * 41), 0, 413),
        (request(b"", headers=[(b"content-length", b"101")]), 0, 413),
        (request(b"", headers=[(b"content-length", b"9" * 30)]), 0, 413),
        (request(b"x", 5.0), 0, 408),
        (request(b"x", None), 0, 400),
        (request(b"x"), 801, 503),
        (request(b"x", headers=[(b"content-encoding", b"br")]), 0, 415),
        (request(b""), 0, 422),
        (request(b"", b""), 0, 422),
    ],
)
def test_bodies_that_are_not_read(given, held, status, monkeypatch):
    monkeypatch.setattr(api, "READ_SECONDS", 0.1)
    door = Door(Facts("", (), (1, 1, 1), "", None), 100, Metrics(held=held))
    with pytest.raises(HTTPException) as refused:
        asyncio.run(door.read(given))
    assert refused.value.status_code == status


def test_a_body_is_read():
    door = Door(Facts("", (), (1, 1, 1), "", None), 100, Metrics())
    assert asyncio.run(door.read(request(b"ab", b"", b"c"))) == b"abc"


def test_the_gate_lets_so_many_in(monkeypatch):
    """Health is answered even then; what a failing application leaves is counted, and nothing stays held."""
    monkeypatch.setattr(gate, "MAX_IN_FLIGHT", 2)
    metrics, sent = Metrics(), []

    async def application(scope, receive, send):
        await receive()
        assert metrics.held == 3
        if scope["path"] == "/classify":
            raise ClientDisconnect
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def send(message):
        sent.append(message.get("status"))

    def go(path):
        scope = {"type": "http", "path": path, "headers": [], "method": "POST"}
        asyncio.run(Gate(application, None, metrics)(scope, receive, send))

    with pytest.raises(ClientDisconnect):
        go("/classify")
    metrics.in_flight = 2
    go("/health")
    go("/classify")
    assert [status for status in sent if status] == [200, 503]
    go("/health")
    assert metrics.in_flight == 2 and metrics.held == 0
    assert metrics.requests == {("/classify", 500): 1, ("/health", 200): 2, ("/classify", 503): 1}


def through_the_gate(headers=(), app=None, method="GET"):
    """Status, headers and body of a request for /info."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": "/info", "headers": list(headers), "method": method}
    asyncio.run(Gate(app, None, Metrics())(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("name", gate.ONCE)
def test_the_gate_refuses_a_header_twice(name):
    status, headers, said = through_the_gate([(name, b"a"), (b"host", b"x"), (name, b"a")])
    assert status == 400 and name in said and headers[b"connection"] == b"close"


def test_the_gate_answers_what_the_end_of_the_server_cuts_off():
    async def cut(scope, receive, send):
        raise asyncio.CancelledError

    status, headers, said = through_the_gate(app=cut)
    assert status == 503 and b"ends" in said and headers[b"retry-after"]


def test_a_head_must_arrive_in_time(monkeypatch):
    """Drop by drop, on a new connection or after an answer; a body has its own limit."""
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)

    async def app(scope, receive, send):
        await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def talk(*parts):
        config = uvicorn.Config(app, http=Protocol, lifespan="off", log_level="critical")
        config.load()
        make = lambda: Protocol(config, ServerState(), {})  # noqa: E731
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.1)
        said = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        server.close()
        return [line[9:12] for line in said.split(b"\r\n") if line.startswith(b"HTTP/")]

    whole = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    assert asyncio.run(talk(b"GET ", b"/ HT")) == [b"408"]
    assert asyncio.run(talk()) == [b"408"]
    assert asyncio.run(talk(whole % b"/slow", b"", b"", b"", b"", b"", b"GET /")) == [b"200", b"408"]
    assert asyncio.run(talk(b"nonsense\r\n\r\n")) == [b"400"]


def test_a_checkpoint_that_is_gone_when_the_classifier_starts_again_is_one_line(lab, tmp_path, capsys):
    other = Facts("TaskModel", ("a",), (1, 2, 2), "e" * 64, None)
    for checkpoint, words in (
        (str(tmp_path / "gone.ckpt"), "no checkpoint"),
        (lab.ckpt("task"), "is another"),
    ):
        with pytest.raises(SystemExit) as ended:
            CloudAPI(checkpoint, other, "cpu", 4, 0.0).setup("cpu")
        said = capsys.readouterr().err
        assert ended.value.code == 1 and words in said and said.count("\n") == 1


@pytest.mark.parametrize("ready", [True, False])
def test_what_waits_gets_an_error_when_a_process_is_lost(ready):
    """Without queues there is no server; nor where a new process is lost before it was ready."""
    facts = Facts("TaskModel", ("a",), (1, 2, 2), "e" * 64, None)
    made = CloudServer(CloudAPI("none.ckpt", facts, "cpu", 4, 0.0), None, 1000, 5.0)
    made._http, made.metrics.ready = SimpleNamespace(should_exit=False), ready
    sleeper = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    sleeper.start()
    try:
        # The queues are a process that is none, or they are there and the classifier is not.
        made.api.manager_pid = -1 if ready else sleeper.pid
        made.inference_workers = [SimpleNamespace(pid=-2)]

        async def go():
            made.response_buffer["one"] = ResponseBufferItem(asyncio.Event())
            await asyncio.wait_for(made._watch(), 10)
            return made.response_buffer["one"]

        item = asyncio.run(go())
    finally:
        sleeper.kill()
    assert item.event.is_set() and item.response[0].status_code == 503 and made._http.should_exit
    assert made.failure.startswith("LitServe's queues" if ready else "the classifier's process")


def test_the_page_of_metrics():
    metrics = Metrics(restarts=2, ready=True)
    for seconds in (0.001, 0.005, 0.3, 99.0):
        metrics.took(seconds)
    metrics.requests["other", 404] += 3
    lines = metrics.page(4, 7).splitlines()
    assert 'crafter_pl_requests_total{path="other",status="404"} 3' in lines
    assert 'crafter_pl_answer_seconds_bucket{le="0.005"} 2' in lines
    assert 'crafter_pl_answer_seconds_bucket{le="30.0"} 3' in lines
    assert 'crafter_pl_answer_seconds_bucket{le="+Inf"} 4' in lines
    assert {"crafter_pl_batches_total 4", "crafter_pl_features_total 7", "crafter_pl_ready 1"} <= set(lines)
