r"""How much a server takes from many clients at a time; several servers take turns on one machine.

    python benchmarks/load_test_serve.py --checkpoint runs/synthetic/task/checkpoints/best.ckpt --seconds 60
    python benchmarks/load_test_serve.py --checkpoint CKPT --kill
    python benchmarks/load_test_serve.py --rounds 5 --seconds 10 --net CKPT \
        --server "before=cd ../before && exec python -m crafter_pl serve --checkpoint CKPT --port 0" \
        --server "after=exec python -m crafter_pl serve --checkpoint CKPT --port 0"

A server is a command that prints `http://HOST:PORT/classify`, or such an address where one runs already. Each
client sends one request after another over one connection, with features of its own, and compares every
answer with its first one: *wrong* is another one, *lost* a request for which neither an answer nor an error
comes, *broken* one whose connection has ended. Figures are medians over the rounds; memory in MB is that of
all processes of the command (Linux only). `--net` measures the net alone, too: batch after batch, in its own
process, while the clients get answers from nowhere, as often as they got them from the last server.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

LOST_AFTER = 60.0  # seconds; the server's own deadline is 30
ROUNDING = 1e-3  # which depends on what else was in the batch
WARM_SECONDS = 2.0
OPTIONS: dict[str, dict] = {
    "checkpoint": {"help": "of the one server, where no --server is given"},
    "server": {"action": "append", "metavar": "NAME=COMMAND", "help": "or NAME=URL; several"},
    "rounds": {"type": int, "default": 1, "help": "of each server; they take turns"},
    "clients": {"type": int, "default": 50},
    "seconds": {"type": float, "default": 30.0, "help": "of a round"},
    "rows": {"type": int, "default": 1, "help": "features in a request"},
    "kill": {"action": "store_true", "help": "kill -9 the server at half time"},
    "net": {"metavar": "CHECKPOINT", "help": "measure its net alone, too"},
}


@dataclass
class Tally:
    """What the clients see in one round: seconds of answered requests; counts, of refused ones by status."""

    seconds: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Server:
    """A server that is started here, in a session of its own, or that runs already."""

    def __init__(self, command: str) -> None:
        self.process, printed = None, command if command.startswith("http://") else ""
        if not printed:
            self.process = subprocess.Popen(
                command, shell=True, text=True, start_new_session=True, stdout=-1, stderr=subprocess.STDOUT
            )
            for line in self.process.stdout:
                printed += line
                if "http://" in line:
                    break
            else:
                sys.exit(f"{command} did not start (exit code {self.process.wait()})\n{printed}")
        host, port = re.search(r"http://(\S+):(\d+)/classify", printed).groups()
        self.host, self.port = host.strip("[]"), int(port)
        with urllib.request.urlopen(f"http://{host}:{port}/info") as answer:
            self.info: dict = json.load(answer)["model"]

    def processes(self) -> list[Path]:
        """The folders in /proc of all running processes of its session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat") if self.process else ():
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                found += [stat.parent] if int(session) == self.process.pid and state != "Z" else []
        return found

    def memory(self, what: str) -> float:
        """Megabytes of all its processes: `VmRSS`, resident now, or `VmHWM`, the most of it so far."""
        texts = [(one / "status").read_text() for one in self.processes()]
        return round(sum(int(re.search(rf"{what}:\s*(\d+)", text)[1]) for text in texts) / 1024, 1)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to all its processes, and waits for the first one's end."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.communicate(timeout=60)


async def client(server: Server, number: int, rows: int, until: float, pause: float, tally: Tally) -> None:
    """Sends until the time is over or the server is gone, at most every ``pause`` seconds."""
    features = torch.rand(rows, *server.info["shape"], generator=torch.Generator().manual_seed(number))
    index = torch.arange(rows) + number * rows
    body = save(
        {"features": features, "index": index},
        {name: server.info[name] for name in ("encoder_sha256", "defense_sha256") if server.info[name]},
    )
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    first, writer = None, None
    while (began := time.monotonic()) < until:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(server.host, server.port)
        except OSError:
            return  # nobody listens any more
        tally.counts["sent"] += 1
        try:
            writer.write(head + body)
            status, answer = await asyncio.wait_for(read_answer(reader), LOST_AFTER)
        except asyncio.TimeoutError:
            tally.counts["lost"] += 1
            return
        except (OSError, asyncio.IncompleteReadError):
            tally.counts["broken"] += 1
            writer = writer.close()
            continue
        if status == 200:
            tally.seconds.append(time.monotonic() - began)
            answers = json.loads(answer)["answers"]
            first = first or answers
            tally.counts["wrong"] += [one["index"] for one in answers] != index.tolist() or any(
                abs(value - now["attributes"][name]) > ROUNDING
                for then, now in zip(first, answers, strict=True)
                for name, value in then["attributes"].items()
            )
        else:
            tally.counts[str(status)] += 1
        await asyncio.sleep(began + pause - time.monotonic() if status == 200 else 1)
    if writer is not None:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)[1]
    return int(head.split()[1]), await reader.readexactly(int(length))


async def clients(server: Server, args: argparse.Namespace, seconds: float, pause: float = 0.0) -> Tally:
    """All of them, for so long."""
    tally, until = Tally(), time.monotonic() + seconds
    await asyncio.gather(*(client(server, n, args.rows, until, pause, tally) for n in range(args.clients)))
    return tally


async def load(server: Server, args: argparse.Namespace) -> tuple[dict[str, float], Counter[str]]:
    """Figures of one round, memory in MB, and counts of what the clients saw."""
    await clients(server, args, WARM_SECONDS)
    start, began = server.memory("VmRSS"), time.monotonic()
    running, left = asyncio.create_task(clients(server, args, args.seconds)), 0
    if args.kill:
        await asyncio.sleep(args.seconds / 2)
        server.end(signal.SIGKILL)
        left = len(server.processes())
    tally = await running
    rate, times = len(tally.seconds) / (time.monotonic() - began), sorted(tally.seconds) or [0.0]
    return {
        "requests_per_second": round(rate, 1),
        **{f"p{part}_ms": round(1000 * times[len(times) * part // 100], 1) for part in (50, 99)},
        "memory_start": start,
        "memory_end": server.memory("VmRSS"),
        "memory_peak": server.memory("VmHWM"),
    }, tally.counts + Counter({"processes left": left})


async def beside_clients(server: Server, args: argparse.Namespace, rate: float) -> dict[int, float]:
    """Features a second of the net alone, by size of the batch, beside clients that send so often."""
    one = {"index": 0, "attributes": dict.fromkeys(server.info["attributes"], 0.5)}
    text = json.dumps({"answers": [one] * args.rows}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.rpartition(b":")[2]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))

    nowhere = await asyncio.start_server(answer, "127.0.0.1", 0)
    server.host, server.port = nowhere.sockets[0].getsockname()
    found = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for size in (1, 25, 50):  # features
            net = asyncio.get_running_loop().run_in_executor(pool, net_alone, args.net, size, args.seconds)
            while not net.done():
                await clients(server, args, 0.5, args.clients / rate)
            found[size] = round(await net, 1)
    return found


def net_alone(checkpoint: str, size: int, seconds: float) -> float:
    """Features a second in batches of so many, with as many threads as `serve` takes."""
    from crafter_pl.cloud.classifier import classify, load_classifier, spare_one_core

    net, facts, answers = load_classifier(checkpoint)
    spare_one_core()
    features, done = torch.rand(size, *facts.shape), 0
    classify(net, features, size, answers)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        classify(net, features, size, answers)
        done += size
    return done / (time.monotonic() - began)


def main() -> int:
    """Runs the test; exit code 1 if a request was lost, an answer was wrong or a process is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, settings in OPTIONS.items():
        parser.add_argument(f"--{name}", **settings)
    args = parser.parse_args()
    if not args.server and not args.checkpoint:
        parser.error("give --checkpoint or --server")
    own = [sys.executable, "-m", "crafter_pl", "serve", "--checkpoint", args.checkpoint or "", "--port", "0"]
    named = [one.partition("=") for one in args.server or [f"serve=exec {shlex.join(own)}"]]
    results: dict[str, list[tuple[dict[str, float], Counter[str]]]] = {}
    failures = 0
    for name, _, command in named * args.rounds:
        server = Server(command)
        try:
            results.setdefault(name, []).append(asyncio.run(load(server, args)))
        finally:
            server.end()
    for name, rounds in results.items():
        row = {key: statistics.median(figures[key] for figures, _ in rounds) for key in rounds[0][0]}
        seen = sum((counts for _, counts in rounds), Counter())
        failures += seen["lost"] + seen["wrong"] + seen["processes left"]
        print(json.dumps({"server": name, **row, **seen}))
    if args.net:
        alone = asyncio.run(beside_clients(server, args, max(1.0, row["requests_per_second"])))
        print(json.dumps({"net alone, features a second by batch": alone}))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
