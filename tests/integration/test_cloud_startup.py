"""What `serve` takes and refuses before it serves, and how it ends."""

import asyncio
import configparser
import errno
import http.client
import shlex
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from closeness import near
from cloud_lab import TOKEN, Running, body

from crafter_pl.cli import main
from crafter_pl.cloud.classifier import Facts, classify, load_classifier
from crafter_pl.cloud.serve import serve
from crafter_pl.cloud.server import Server
from crafter_pl.cloud.sockets import bind, is_loopback
from crafter_pl.data.store import read_store
from crafter_pl.errors import UserError
from crafter_pl.stages.base import load_stage, sha256
from crafter_pl.stages.task import TaskModel

# Checkpoints


def test_the_cloud_of_each_kind_of_stage(lab):
    task = load_stage(lab.ckpt("task"), TaskModel)
    names, digest = tuple(task.hparams["attribute_names"]), sha256(lab.ckpt("task"))
    features, _, manifest = read_store(lab.store())
    expected = task.cloud(features).sigmoid()

    net, facts, _ = load_classifier(lab.ckpt("task"))
    assert facts == Facts("TaskModel", names, task.feature_shape, digest, None)
    assert near(classify(net, features, 3), expected, steps=10)

    net, facts, _ = load_classifier(lab.ckpt("noise"))
    assert (facts.stage, facts.encoder_sha256, facts.defense_sha256) == ("Noise", digest, None)
    assert near(classify(net, features, 64), expected, steps=10)

    net, facts, _ = load_classifier(lab.ckpt("adversarial_learning"))  # trains encoder and cloud anew
    assert facts.encoder_sha256 == digest and len(facts.defense_sha256) == 64
    assert (classify(net, features, 64) - expected).abs().max() > 1e-4

    stores = [f"--model.init_args.{n}_store={lab.store(f'private_{n}')}" for n in ("train", "test")]
    net, facts, _ = load_classifier(lab.ckpt("cloud", "training_scenario", *stores))
    assert (facts.stage, facts.attributes, facts.encoder_sha256) == ("CloudClassifier", names, digest)
    assert facts.defense_sha256 == manifest["defense_sha256"]


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
        (["--checkpoint", "{prior}"], "GanPrior"),
        ([], "checkpoint"),
        (["--port", "{taken}"], "127.0.0.1, port {taken}"),
        (["--port", "70000"], "--port"),
        (["--max_body_mb", "0"], "--max_body_mb is 0"),
        (["--max_batch_size", "0"], "--max_batch_size is 0"),
        (["--batch_timeout", "-1"], "--batch_timeout is -1"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--host", "0.0.0.0"], "--token_file"),
        (["--host", "::"], "--token_file"),
        (["--host", ""], "--host"),
        (["--host", "local\0host"], "--host"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--host", "203.0.113.7", "--token_file", "{files}/good"], "203.0.113.7"),
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
        (["--device", "abacus"], "--device abacus"),
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
        socks = bind("localhost", 0)
        assert {sock.family for sock in socks} == {socket.AF_INET, socket.AF_INET6} and len(socks) == 2
        assert len({sock.getsockname()[1] for sock in socks}) == 1
        close(socks)


def test_an_address_that_this_machine_has_not_is_left_out_unless_it_is_the_only_one(named):
    named([(socket.AF_INET6, ("2001:db8::1", 0, 0, 0)), LOCAL[0]])
    socks = bind("localhost", 0)
    close(socks)
    assert [sock.family for sock in socks] == [socket.AF_INET]
    named([(socket.AF_INET6, ("2001:db8::1", 0, 0, 0))])
    with pytest.raises(UserError, match="localhost"):
        bind("localhost", 0)


def test_an_address_that_is_taken_is_an_error_and_nothing_stays_bound(named):
    named(LOCAL)
    with socket.socket(socket.AF_INET6) as busy:
        busy.bind(("::1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match="cannot listen") as refused:
            bind("localhost", port)
        assert refused.value.__cause__.errno == errno.EADDRINUSE
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))


def test_a_name_is_loopback_if_all_its_addresses_are(named):
    named(LOCAL)
    assert is_loopback("localhost")
    named([*LOCAL, (socket.AF_INET, ("10.0.0.1", 0))])
    assert not is_loopback("localhost")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "crafter_pl.cloud.server")
    monkeypatch.setitem(sys.modules, "httptools", None)
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl")
    with pytest.raises(UserError, match="httptools"):
        serve("absent.ckpt", port=0)


# Ends


@pytest.mark.parametrize(("after", "twice"), [([0.0], False), ([0.0, 0.01], False), ([0.0, 0.5], True)])
def test_a_signal_that_a_wrapper_sends_again_at_once_is_one(after, twice, monkeypatch):
    made, cut_off = Server(None, lambda: None), []
    monkeypatch.setattr(made, "cut_off", lambda: cut_off.append(True))

    async def go():
        for seconds in after:
            monkeypatch.setattr(time, "monotonic", lambda at=seconds: 100 + at)
            made.handle_exit(signal.SIGTERM, None)
        monkeypatch.undo()
        await asyncio.sleep(0)

    asyncio.run(go())
    assert made.should_exit and bool(cut_off) == twice


@pytest.fixture
def running(lab, tmp_path):
    """`running(*options, ...)` is a server of its own process: see `cloud_lab.Running`."""
    made = []

    def start(*options, **how):
        made.append(Running(tmp_path, lab.ckpt("task"), *options, **how))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.join()


@pytest.fixture(scope="module")
def feature(lab):
    facts = load_classifier(lab.ckpt("task"))[1]
    return body(torch.randn(facts.shape), facts.encoder_sha256)


@pytest.mark.parametrize(
    ("signals", "slow", "status", "code"),
    [
        ([signal.SIGTERM], 1.0, 200, 0),
        ([signal.SIGINT], 1.0, 200, 130),
        ([signal.SIGTERM] * 2, 2.0, 503, 143),
        ([signal.SIGTERM] * 2, 60.0, 503, 1),  # the net hangs: the process ends without it
    ],
)
def test_a_signal(running, feature, signals, slow, status, code):
    """What waits is answered; after a second signal it is told at once."""
    server = running(slow=slow, end_seconds=5.0 if slow < 10 else 0.5)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.ask, "/classify", feature) for _ in range(6)]
        while "requests_in_flight 7" not in server.ask("/metrics")[1]:
            time.sleep(0.02)
        for number in signals:
            server.signal(number)
            time.sleep(0.4)
        began = time.monotonic()
        assert [one.result()[0] for one in asked] == [status] * 6
    assert server.code() == code and time.monotonic() - began < 20
    assert "Traceback" not in server.printed


def test_the_token_is_not_printed_and_the_mode_of_its_file_is_remarked(running, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    server = running("--host", "0.0.0.0", "--token_file", str(file))
    assert server.ask("/metrics")[0] == 401
    assert server.ask("/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    server.signal(signal.SIGTERM)
    assert server.code() == 0 and "chmod 600" in server.printed and TOKEN not in server.printed


def test_killed(running, feature):
    """Every client sees it at once."""
    server, seen = running(slow=0.2), []

    def client():
        connection = server.connect()
        try:
            while True:
                seen.append(server.ask("/classify", feature, connection)[0])
        except (OSError, http.client.HTTPException) as error:
            seen.append("lost" if isinstance(error, TimeoutError) else "broken")

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    while seen.count(200) < 12:
        time.sleep(0.02)
    server.signal(signal.SIGKILL)
    for thread in threads:
        thread.join(5)
    assert set(seen) == {200, "broken"} and seen.count("broken") == 12


def test_the_examples_for_supervisors_start_it(capsys):
    examples = Path(__file__).parents[2] / "docs" / "examples"
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(examples / "serve.service")
    compose = yaml.safe_load((examples / "serve.compose.yaml").read_text())
    for command in (unit["Service"]["ExecStart"], compose["services"]["classifier"]["command"]):
        words = shlex.split(command)
        assert words[1:4] == ["-m", "crafter_pl", "serve"]
        capsys.readouterr()
        assert main([*words[3:], "--port", "70000"]) == 2  # read as far as the last option
        assert "--port is 70000" in capsys.readouterr().err
