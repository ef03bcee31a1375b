"""`serve`: the cloud's classifier behind HTTP."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path

from crafter_pl.errors import UserError

_MIN_TOKEN = 16  # characters


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
    """Answer protected features with their faces' attributes, over HTTP, until Ctrl+C.

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
    if token is None and not open_to_all and not _loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines: give --token_file FILE, or, if everybody who "
            "reaches it may ask, --open_to_all true"
        )
    _bind(
        host, port
    ).close()  # a port that is taken shows now; held, it would be inherited by LitServe's queues
    try:
        from crafter_pl.cloud.api import CloudAPI
        from crafter_pl.cloud.server import CloudServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("litserve", "fastapi", "uvicorn"):
            raise
        raise UserError(f"serve needs {error.name}: pip install 'litserve<0.3'") from error
    from crafter_pl.audit.team import Team
    from crafter_pl.cloud.classifier import load_classifier

    device = Team(device).device
    _, facts = load_classifier(checkpoint)
    api = CloudAPI(checkpoint, facts, device, max_batch_size, batch_timeout)
    server = CloudServer(api, token, int(max_body_mb * 2**20), timeout)
    with server.started(), _bind(host, port) as sock:
        sock.listen(2048)
        where = f"[{host}]" if ":" in host else host
        shape = "x".join(map(str, facts.shape))
        print(
            f"{checkpoint}: {len(facts.attributes)} attributes from features {shape} of the encoder "
            f"{facts.encoder_sha256[:12]}…\nanswers at http://{where}:{sock.getsockname()[1]}/classify, "
            f"{'with' if token else 'without'} a token; described at /docs; Ctrl+C ends it",
            flush=True,
        )
        server.serve(sock)


def read_token(file: str | Path) -> str:
    """The token in a file.

    Raises:
        UserError: it cannot be read or does not hold one line of 16 visible ASCII characters or more.
    """
    file = Path(os.path.expanduser(file))
    try:
        token = file.read_text(encoding="ascii").strip()
        mode = file.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(
            f"--token_file {file} is missing: write a token into it, readable by you alone"
        ) from error
    except ValueError as error:
        token, mode = "", 0
        del error
    if len(token) < _MIN_TOKEN or not token.isprintable() or " " in token:
        raise UserError(
            f"--token_file {file} holds no token: one line of {_MIN_TOKEN} or more letters, digits and "
            "signs, such as python -c 'import secrets; print(secrets.token_urlsafe())' prints"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"note: {file} can be read by others on this machine: chmod 600 {file}", flush=True)
    return token


def _addresses(host: str, port: int = 0) -> list[tuple[int, tuple[str, int]]]:
    """Family and address of a host's name."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine: give 127.0.0.1 or another") from error
    return [(int(family), (str(address[0]), port)) for family, _, _, _, address in found]


def _loopback(host: str) -> bool:
    return all(
        ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, (address, _) in _addresses(host)
    )


def _bind(host: str, port: int) -> socket.socket:
    """A socket on the address.

    Raises:
        UserError: it is taken or not this machine's.
    """
    family, address = _addresses(host, port)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another --port or --host"
        ) from error
    return sock
