"""Listening: which addresses may be listened on, and a clear line for those that cannot.

Beyond loopback nothing listens without keys unless ``--insecure`` says so: a port that anybody may write to or read
from must be somebody's decision, not a default.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from telemetry.options import UsageError
from telemetry.values import split_host_port


class AddressUnavailable(UsageError):
    """The address cannot be listened on: in use, not of this machine, or beyond loopback without leave."""


def is_loopback(host: str) -> bool:
    """True if every address that ``host`` stands for is reachable from this machine only."""
    if host in ("", "*"):
        return False
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (socket.gaierror, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def may_listen(host: str, what: str, *, insecure: bool = False, keys: bool = False) -> None:
    """Raise :class:`AddressUnavailable` if ``host`` is beyond loopback with neither keys nor ``--insecure``.

    ``what`` names option and value for the message ("--http 0.0.0.0:8082").
    """
    if not (insecure or keys or is_loopback(host)):
        raise AddressUnavailable(
            f"{what} is open beyond this machine without keys: configure keys, use 127.0.0.1, or say --insecure"
        )


def listening_socket(address: str, what: str, *, insecure: bool = False, keys: bool = False) -> socket.socket:
    """A bound, listening TCP socket for ``HOST:PORT`` (port 0: a free one), or :class:`AddressUnavailable`."""
    host, port = split_host_port(address)
    may_listen(host, f"{what} {address}", insecure=insecure, keys=keys)
    try:
        family, kind, protocol, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise AddressUnavailable(f"{what} {address}: the host {host} is not known") from None
    sock = socket.socket(family, kind, protocol)
    try:
        # So that a restart does not wait for connections of the process before it to time out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(sockaddr)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise AddressUnavailable(f"{what} {address}: {bind_failure(error)}") from None
    sock.setblocking(False)
    return sock


def bind_failure(error: OSError) -> str:
    """Why an address cannot be bound and what to do, for the end of a one-line message."""
    if error.errno == errno.EADDRINUSE:
        return "the address is in use by another process; stop that one or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no network interface of this machine has that address"
    if error.errno == errno.EACCES:
        return "this user may not listen there; choose a port above 1023"
    return error.strerror or str(error)
