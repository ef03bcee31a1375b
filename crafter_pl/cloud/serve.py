"""`serve`: the cloud's classifier behind HTTP."""

import contextlib
import gc
import os
import stat
import sys
from pathlib import Path

from crafter_pl.cloud.sockets import bind, is_loopback
from crafter_pl.errors import UserError

_MIN_TOKEN = 16  # characters
END_SECONDS = 5.0  # that a batch may take to end when the server ends
_PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client")


def serve(
    checkpoint: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    open_to_all: bool = False,
    max_body_mb: float = 16.0,
    max_batch_size: int = 64,
    batch_timeout: float = 0.002,
    timeout: float = 30.0,
    device: str = "auto",
) -> None:
    """Answer protected features with what the model says of their faces, over HTTP, until Ctrl+C.

    POST /classify takes one feature or a shard of a feature store (safetensors); /docs describes it.

    Args:
        checkpoint: of a task model, a CloudClassifier or a defence of any kind.
        host: address to listen on; others than loopback need a token.
        port: to listen on; 0: any that is free.
        token_file: file with the token that requests must bear; none: everybody on this machine may ask.
        open_to_all: listen beyond loopback without a token.
        max_body_mb: largest body of a request, in megabytes.
        max_batch_size: features classified in one pass.
        batch_timeout: seconds that a request waits for others to be classified with it.
        timeout: seconds after which a request without an answer gets an error.
        device: auto, cpu, cuda, cuda:1, ...

    Raises:
        UserError: the checkpoint has no cloud classifier, the token file holds no token, or the address
            cannot be listened on.
    """
    for name, value, least, most in (
        ("max_body_mb", max_body_mb, 0.001, 1024),
        ("max_batch_size", max_batch_size, 1, 65536),
        ("batch_timeout", batch_timeout, 0, 10),
        ("timeout", timeout, 0.1, 3600),
        ("port", port, 0, 65535),
    ):
        if not least <= value <= most:
            raise UserError(f"--{name} is {value}; give {least:g} to {most:g}")
    token = None if token_file is None else read_token(token_file)
    if token is None and not open_to_all and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines: give --token_file FILE, or, if everybody who "
            "reaches it may ask, --open_to_all true"
        )
    import torch

    try:
        from crafter_pl.cloud.answer import NOUNS
        from crafter_pl.cloud.app import create_app
        from crafter_pl.cloud.server import Server
    except ModuleNotFoundError as error:
        if (name := (error.name or "").partition(".")[0]) not in _PACKAGES:
            raise
        raise UserError(f"serve needs {name}: pip install {' '.join(_PACKAGES)}") from error
    from crafter_pl.cloud.batching import Batcher
    from crafter_pl.cloud.classifier import classify, load_classifier, spare_one_core
    from crafter_pl.cloud.metrics import Metrics
    from crafter_pl.device import pick_device

    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(sock) for sock in bind(host, port)]
        device = pick_device(device)
        spare_one_core()
        sys.setswitchinterval(0.0005)  # seconds; the net asks for the interpreter in every layer
        net, facts, answers = load_classifier(checkpoint)
        net.to(device)
        answers.to(device)
        classify(net, torch.zeros(1, *facts.shape, device=device), 1, answers)
        metrics = Metrics()
        batcher = Batcher(
            lambda features: classify(net, features.to(device), max_batch_size, answers),
            max_batch_size,
            batch_timeout,
            timeout,
            metrics,
        )
        app = create_app(facts, batcher, metrics, token, int(max_body_mb * 2**20), getattr(net, "pool", None))
        where = f"[{host}]" if ":" in host else host
        said = (
            f"{checkpoint}: {len(facts.attributes)} {NOUNS[facts.kind]} from features "
            f"{'x'.join(map(str, facts.shape))} of the encoder {facts.encoder_sha256[:12]}…\n"
            f"answers at http://{where}:{socks[0].getsockname()[1]}/classify, "
            f"{'with' if token else 'without'} a token; described at /docs; Ctrl+C ends it"
        )
        gc.freeze()  # a look through all that was imported would stop everybody for 0.2 s now and then
        try:
            Server(app, lambda: print(said, flush=True)).run(socks)
        finally:
            if not batcher.close(END_SECONDS):  # an orderly end of the process would wait for its thread
                print("error: the classifier hangs and ends with the process", file=sys.stderr, flush=True)
                os._exit(1)


def read_token(file: str | Path) -> str:
    """The token in a file.

    Raises:
        UserError: it cannot be read or does not hold one line of 16 visible ASCII characters or more.
    """
    file = Path(os.path.expanduser(file))
    try:
        token = file.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise UserError(
            f"--token_file {file} is missing: write a token into it, readable by you alone"
        ) from error
    except ValueError:
        token = ""
    if len(token) < _MIN_TOKEN or not token.isprintable() or " " in token:
        raise UserError(
            f"--token_file {file} holds no token: one line of {_MIN_TOKEN} or more letters, digits and "
            "signs, such as python -c 'import secrets; print(secrets.token_urlsafe())' prints"
        )
    if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"note: {file} can be read by others on this machine: chmod 600 {file}", flush=True)
    return token
