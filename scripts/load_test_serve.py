"""How much `serve` takes: many clients at a time, on this machine; if asked, one of its processes is killed.

    python scripts/load_test_serve.py --checkpoint runs/synthetic/task/checkpoints/best.ckpt --seconds 60
    python scripts/load_test_serve.py --checkpoint ... --kill worker

Starts a server of its own. Each client sends one request after another over one connection, with a feature of
its own, and compares every answer with its first one. A request is *lost* if neither an answer nor an error
comes for it, and *wrong* if the answer is another than the first. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

ROOT = Path(__file__).parent.parent
LOST_AFTER = 60.0  # seconds; the server's own deadline is 30


@dataclass
class Tally:
    """What all clients have seen."""

    sent: int = 0
    seconds: list[float] = field(default_factory=list)  # of answered requests
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0  # the connection ended: an error that the client sees
    lost: int = 0
    wrong: int = 0
    answered_at: list[float] = field(default_factory=list)


class Server:
    """`python -m crafter_pl serve` in a process and a group of its own, on a free port.

    Raises:
        RuntimeError: it ended before it answered; the message is what it has printed.
    """

    def __init__(self, checkpoint: str, *options: str) -> None:
        serve = [sys.executable, "-m", "crafter_pl", "serve", "--checkpoint", checkpoint, "--port", "0"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*serve, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if "answers at http://" in line:
                self.port = int(line.split("/classify")[0].rpartition(":")[2])
                return
        raise RuntimeError(f"the server did not start (exit code {self.process.wait()})\n{self.printed}")

    def info(self) -> dict:
        """What the classifier tells of itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/info") as answer:
            return json.load(answer)["model"]

    def children(self) -> dict[str, int]:
        """Its processes by what they do: `worker` classifies, `queues` are LitServe's."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"resource_tracker" not in command:
                found["worker" if b"spawn_main" in command else "queues"] = int(pid)
        return found

    def memory(self) -> dict[str, float]:
        """Resident megabytes of each process."""
        return {name: _resident(pid) for name, pid in {"server": self.process.pid, **self.children()}.items()}

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, if it still runs, and waits for its end; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.printed += self.process.communicate(timeout=60)[0]
        return self.process.returncode


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


async def client(port: int, number: int, info: dict, rows: int, until: float, tally: Tally) -> None:
    """Sends until the time is over or the server is gone."""
    torch.manual_seed(number)
    index = torch.arange(rows) + number * rows
    body = save(
        {"features": torch.rand(rows, *info["shape"]), "index": index},
        metadata={name: info[name] for name in ("encoder_sha256", "defense_sha256") if info[name]},
    )
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    first, writer = None, None
    while time.monotonic() < until:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return  # nobody listens any more
        began = time.monotonic()
        tally.sent += 1
        try:
            writer.write(head + body)
            status, answer = await asyncio.wait_for(_answer(reader), LOST_AFTER)
        except asyncio.TimeoutError:
            tally.lost += 1
            return
        except (OSError, asyncio.IncompleteReadError):
            tally.broken += 1
            writer.close()
            writer = None
            continue
        tally.statuses[status] += 1
        if status != 200:
            await asyncio.sleep(1)
            continue
        tally.seconds.append(time.monotonic() - began)
        tally.answered_at.append(time.monotonic())
        answers = json.loads(answer)["answers"]
        first = first or answers
        tally.wrong += [one["index"] for one in answers] != index.tolist() or not _same(first, answers)
    if writer is not None:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), await reader.readexactly(int(length.split(b":")[1]))


def _same(first: list[dict], answers: list[dict]) -> bool:
    """Up to rounding, which depends on what else was in the batch."""
    return all(
        abs(value - then["attributes"][name]) < 1e-3
        for then, now in zip(first, answers, strict=True)
        for name, value in now["attributes"].items()
    )


async def load(server: Server, args: argparse.Namespace) -> dict:
    """Lets the clients loose; returns what was seen."""
    info, tally = server.info(), Tally()
    warm = time.monotonic() + 2
    await asyncio.gather(
        *(client(server.port, n, info, args.rows, warm, Tally()) for n in range(args.clients))
    )
    memory, children, began = server.memory(), server.children(), time.monotonic()
    until = began + args.seconds
    clients = [client(server.port, n, info, args.rows, until, tally) for n in range(args.clients)]
    tasks = [asyncio.create_task(one) for one in clients]
    killed_at = None
    if args.kill:
        await asyncio.sleep(args.seconds / 2)
        os.kill(children["worker"] if args.kill == "worker" else server.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    times = sorted(tally.seconds)
    seen = {
        "clients": args.clients,
        "features_per_request": args.rows,
        "seconds": round(took, 1),
        "sent": tally.sent,
        "answered": len(times),
        "refused": {str(status): count for status, count in sorted(tally.statuses.items()) if status != 200},
        "broken": tally.broken,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "requests_per_second": round(len(times) / took, 1),
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[int(len(times) * 0.99)], 1),
        "memory_mb": {"start": memory, "end": {} if args.kill == "server" else server.memory()},
        "load_average": round(os.getloadavg()[0], 1),
    }
    if args.kill == "worker":
        back = [at - killed_at for at in tally.answered_at if at > killed_at + 0.3]
        seen["answers_again_after_seconds"] = round(min(back), 1) if back else None
    if args.kill == "server":
        server.process.wait(10)
        end = time.monotonic() + 10
        while (left := [pid for pid in children.values() if alive(pid)]) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        seen["processes_left"] = len(left)
    return seen


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    """Runs the test; exit code 1 if a request was lost or an answer was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="as for serve")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rows", type=int, default=1, help="features in a request")
    parser.add_argument("--kill", choices=["worker", "server"], help="kill -9 this process at half time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    try:
        server = Server(args.checkpoint)
    except RuntimeError as error:
        sys.exit(str(error))
    try:
        seen = asyncio.run(load(server, args))
    finally:
        server.end()
    lines = [f"{name:<28} {value}" for name, value in seen.items()]
    print(json.dumps(seen) if args.json else "\n".join(lines))
    return int(bool(seen["lost"] or seen["wrong"] or seen.get("processes_left")))


if __name__ == "__main__":
    sys.exit(main())
