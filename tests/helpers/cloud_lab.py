"""A small experiment with every kind of stage that `serve` takes, and running servers to talk to."""

import functools
import http.client
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from experiment import CONF, forked
from filelock import FileLock
from safetensors.torch import save

from crafter_pl.cli import main
from crafter_pl.cloud import classifier, serve
from crafter_pl.cloud.app import create_app
from crafter_pl.cloud.batching import Batcher
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.cloud.server import Server
from crafter_pl.cloud.sockets import bind
from crafter_pl.data.store import read_manifest

TOKEN = "a-token-of-the-tests-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Lab:
    """Where the runs are; each stage is trained when any worker first asks for it."""

    runs_dir: Path

    def command(self, verb, config, *more):
        return [verb, "--config", str(CONF / f"{config}.yaml"), "--runs_dir", str(self.runs_dir), *more]

    def ckpt(self, stage, config=None, *more):
        file = self.runs_dir / "synthetic" / stage / "checkpoints" / "best.ckpt"
        with FileLock(f"{self.runs_dir}.lock"):
            if not file.is_file():
                assert main(self.command("fit", config or stage, "--name", stage, *more)) == 0
        return str(file)

    def store(self, part="private_test"):
        self.ckpt("task")
        self.ckpt("noise")
        folder = self.runs_dir / "stores" / part
        options = ["--data.predict_split", part, "--protect.out", str(folder)]
        with FileLock(f"{self.runs_dir}.lock"):
            if not folder.is_dir():
                assert main(self.command("predict", "noise", *options)) == 0
        return folder

    def manifest(self):
        return read_manifest(self.store())


def body(features, encoder=None, index=None, **metadata):
    """What a sender posts."""
    tensors = {"features": features} | ({} if index is None else {"index": torch.tensor(index)})
    metadata |= {} if encoder is None else {"encoder_sha256": encoder}
    return save(tensors, metadata=metadata or None)


def ask(server, data, **headers):
    return server.ask("/classify", data, **BEARER, **headers)


def counts(server):
    """What /metrics says, by name and labels."""
    page = server.ask("/metrics", **BEARER)[1]
    return {name: float(value) for name, value in re.findall(r"^crafter_pl_(\S+) (\S+)$", page, re.MULTILINE)}


class Client:
    """Talks to a server on `port`."""

    port: int

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path, data=None, connection=None, method=None, **headers):
        """Status, decoded answer and headers of one request."""
        own = connection or self.connect()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        own.request(method or ("GET" if data is None else "POST"), path, data, headers)
        answer = own.getresponse()
        text = answer.read()
        if connection is None:
            own.close()
        kind = answer.getheader("content-type", "")
        content = json.loads(text) if text and "json" in kind else text.decode()
        return answer.status, content, dict(answer.headers)

    def say(self, *parts, pause=0.0, lines=None):
        """What comes back for bytes, or so many lines of it; empty: the connection was reset."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            try:
                for part in parts:
                    sock.sendall(part)
                    time.sleep(pause)
                file = sock.makefile("rb")
                return file.read() if lines is None else b"".join(file.readline() for _ in range(lines))
            except ConnectionError:
                return b""


class InThread(Client):
    """A server in a thread of this process, of a net and its facts; a block of `with`."""

    def __init__(self, net, facts, token=None, max_body=2**20, timeout=30.0):
        self.metrics, self.encoder = Metrics(), facts.encoder_sha256
        self.batcher = Batcher(net, 64, 0.002, timeout, self.metrics)
        app = create_app(facts, self.batcher, self.metrics, token, max_body)
        self.socks, self.listens = bind("127.0.0.1", 0), threading.Event()
        self.port = self.socks[0].getsockname()[1]
        self.server = Server(app, self.listens.set)
        self.thread = threading.Thread(target=self.server.run, args=(self.socks,))

    def __enter__(self):
        self.thread.start()
        assert self.listens.wait(30)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        assert self.batcher.close(30) and not self.thread.is_alive()


class Running(Client):
    """`serve` in a process of its own; each batch takes so many seconds, and so many are waited for the last.

    Attributes:
        pid: of the process.
    """

    def __init__(self, folder, checkpoint, *options, slow=0.0, end_seconds=5.0):
        self.out = folder / f"printed{time.monotonic_ns()}"
        self.process = forked(
            ["serve", "--checkpoint", checkpoint, "--port", "0", *options],
            self.out,
            self.out,
            functools.partial(_slowed, slow, end_seconds),
        )
        self.pid = self.process.pid
        end = time.monotonic() + 120
        while "answers at http://" not in self.printed:
            assert self.process.is_alive() and time.monotonic() < end, self.printed
            time.sleep(0.05)
        self.port = int(self.printed.split("/classify")[0].rpartition(":")[2])

    @property
    def printed(self):
        return self.out.read_text() if self.out.is_file() else ""

    def signal(self, number):
        os.kill(self.pid, number)

    def code(self):
        """Its exit code, once it has ended."""
        self.process.join(60)
        return self.process.exitcode


def _slowed(seconds, end_seconds):
    """In the process of `Running`: before the net is loaded."""
    classify = classifier.classify

    def slow(net, features, most, answers):
        if most > 1:  # not the first try, before it listens
            time.sleep(seconds)
        return classify(net, features, most, answers)

    classifier.classify, serve.END_SECONDS = slow, end_seconds
