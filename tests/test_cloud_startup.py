"""What `serve` takes and refuses before it serves, and the parts of the server by themselves."""

import asyncio
import multiprocessing
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
from cloud_lab import Running, body
from fastapi import HTTPException
from litserve.utils import ResponseBufferItem
from starlette.requests import ClientDisconnect, Request

from crafter_pl.cli import main
from crafter_pl.cloud import api, gate
from crafter_pl.cloud.api import CloudAPI, Door
from crafter_pl.cloud.classifier import Facts, classify, load_classifier
from crafter_pl.cloud.gate import Gate
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.cloud.server import CloudServer
from crafter_pl.data.store import read_store
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
    torch.testing.assert_close(classify(net, features, 3), expected)

    net, facts = load_classifier(lab.ckpt("noise"))
    assert (facts.stage, facts.encoder_sha256, facts.defense_sha256) == ("Noise", digest, None)
    torch.testing.assert_close(classify(net, features, 64), expected)

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
