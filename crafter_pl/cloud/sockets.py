"""The addresses that the server listens on."""

import errno
import ipaddress
import os
import socket
from typing import Any

from crafter_pl.errors import UserError


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


def is_loopback(host: str) -> bool:
    """Whether a host's name means addresses of this machine alone.

    Raises:
        UserError: it means nothing.
    """
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for _, address in _addresses(host)
    )


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of a host's name that this machine has, on one port.

    Raises:
        UserError: one is taken, or this machine has none of them.
    """
    addresses = _addresses(host, port)
    socks: list[socket.socket] = []
    failed: list[OSError] = []
    for family, address in addresses:
        both = family == socket.AF_INET6 and len(addresses) == 1 and socket.has_dualstack_ipv6()
        place = (address[0], socks[0].getsockname()[1] if socks else port, *address[2:])
        try:
            socks.append(socket.create_server(place, family=family, dualstack_ipv6=both))
            # Connections inherit it. Without it an answer in two parts waits 40 ms for the client's
            # acknowledgement of the first; asyncio sets it on sockets of another make alone.
            socks[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            failed.append(error)
    # "localhost" often has an IPv6 address on a machine without IPv6.
    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    if failed and not (socks and all(error.errno in missing for error in failed)):
        for sock in socks:
            sock.close()
        why = os.strerror(failed[0].errno or 0)
        raise UserError(
            f"cannot listen on {host}, port {port} ({why}): give another --port or --host"
        ) from failed[0]
    return socks
