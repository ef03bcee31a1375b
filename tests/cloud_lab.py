"""A small experiment with every kind of stage that `serve` takes, and a running server to talk to."""

import http.client
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from experiment import CONF
from safetensors.torch import save

from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest
from crafter_pl.stages.base import sha256

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from load_test_serve import Server

QUICK = [
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "1",
    "--trainer.limit_val_batches",
    "1",
]


@dataclass
class Lab:
    """Where the runs are; each stage is trained when it is first asked for."""

    runs_dir: Path

    def ckpt(self, stage, config=None, *more):
        file = self.runs_dir / "synthetic" / stage / "checkpoints" / "best.ckpt"
        if not file.is_file():
            command = [
                "fit",
                "--config",
                str(CONF / f"{config or stage}.yaml"),
                "--runs_dir",
                str(self.runs_dir),
            ]
            assert main([*command, "--name", stage, *QUICK, *more]) == 0
        return str(file)

    def store(self, part="private_test"):
        self.ckpt("task")
        self.ckpt("noise")
        folder = self.runs_dir / "stores" / part
        if not folder.is_dir():
            command = ["predict", "--config", str(CONF / "noise.yaml"), "--runs_dir", str(self.runs_dir)]
            assert main([*command, "--data.predict_split", part, "--protect.out", str(folder)]) == 0
        return folder

    def manifest(self):
        return read_manifest(self.store())


def body(features, encoder=None, index=None, **metadata):
    """What a sender posts."""
    tensors = {"features": features} | ({} if index is None else {"index": torch.tensor(index)})
    metadata |= {} if encoder is None else {"encoder_sha256": encoder}
    return save(tensors, metadata=metadata or None)


class Running(Server):
    """A server with what tests ask of it."""

    def __init__(self, checkpoint, *options):
        super().__init__(checkpoint, *options)
        self.encoder = sha256(checkpoint)

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
