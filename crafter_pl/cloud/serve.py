"""`serve`: the cloud's classifier behind HTTP."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Any

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
    for sock in _bind(
        host, port
    ):  # what is taken shows now; held, it would be inherited by LitServe's queues
        sock.close()
    try:
        from crafter_pl.cloud.api import CloudAPI
        from crafter_pl.cloud.server import CloudServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("litserve", "fastapi", "uvicorn"):
            raise
        raise UserError(f"serve needs {error.name}: pip install 'litserve<0.3'") from error
    from crafter_pl.cloud.classifier import load_classifier
    from crafter_pl.device import pick_device

    device = pick_device(device)
    _, facts = load_classifier(checkpoint)
    api = CloudAPI(checkpoint, facts, device, max_batch_size, batch_timeout)
    server = CloudServer(api, token, int(max_body_mb * 2**20), timeout)
    with server.started(), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(sock) for sock in _bind(host, port)]
        where = f"[{host}]" if ":" in host else host
        shape = "x".join(map(str, facts.shape))
        said = (
            f"{checkpoint}: {len(facts.attributes)} attributes from features {shape} of the encoder "
            f"{facts.encoder_sha256[:12]}…\nanswers at http://{where}:{socks[0].getsockname()[1]}/classify, "
            f"{'with' if token else 'without'} a token; described at /docs; Ctrl+C ends it"
        )
        server.serve(socks, lambda: print(said, flush=True))


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


def _addresses(host: str, port: int = 0) -> list[tuple[socket.AddressFamily, Any]]:
    """Family and address of all that a host's name means.

    Raises:
        UserError: it means nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError) as error:  # ValueError: a NUL in it
        raise UserError(f"--host {host} is no address of this machine: give 127.0.0.1 or another") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _loopback(host: str) -> bool:
    addresses = [str(address[0]).partition("%")[0] for _, address in _addresses(host)]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of a host's name that this machine has, on one port.

    Raises:
        UserError: one is taken, or this machine has none of them.
    """
    addresses = _addresses(host, port)
    socks: list[socket.socket] = []
    failed: list[OSError] = []
    with contextlib.ExitStack() as made:
        for family, address in addresses:
            try:
                with contextlib.ExitStack() as own:
                    sock = own.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6 and len(addresses) > 1:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.bind((address[0], socks[0].getsockname()[1] if socks else port, *address[2:]))
                    made.push(own.pop_all())
                    socks.append(sock)
            except OSError as error:
                failed.append(error)
        # "localhost" often has an IPv6 address on a machine without IPv6.
        missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if failed and not (socks and all(error.errno in missing for error in failed)):
            why = failed[0].strerror or failed[0]
            raise UserError(
                f"cannot listen on {host}, port {port} ({why}): give another --port or --host"
            ) from failed[0]
        made.pop_all()
    return socks
