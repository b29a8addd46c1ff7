"""Whether an address, or a name in a request, is this machine's own."""

import ipaddress
import socket
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit


def is_loopback(address: str) -> bool:
    """Tell whether an IP address is reached from this machine alone."""
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def listens_on_loopback(host: str) -> bool:
    """Tell whether all addresses of a name that is listened on are loopback; an empty one is every address."""
    if not host:
        return False
    try:
        return all(is_loopback(str(found[4][0])) for found in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def name_in(host_header: str) -> str:
    """Return the name or address of a ``Host`` header, without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host_header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_own_name(host_header: str, others: Collection[str] = ()) -> bool:
    """Tell whether a ``Host`` header names this machine by loopback, or by one of the other names.

    A page whose name was made to point here (DNS rebinding) sends its own.
    """
    name = name_in(host_header)
    return name == "localhost" or is_loopback(name) or name in {other.lower() for other in others}


def is_same_origin(origin: str, host_header: str) -> bool:
    """Tell whether a page of this ``Origin`` came from the server that it is calling; ``null`` did not."""
    try:
        return urlsplit(origin).netloc.lower() == host_header.lower() != ""
    except ValueError:
        return False


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address that a request came from, by its ASGI scope; empty where that has none."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def client_key(address: str) -> str:
    """Return what a client is counted by: an IPv6 client has a whole /64 to itself."""
    parsed = _parsed(address)
    if parsed is None:
        return address[:100]
    return str(ipaddress.ip_network((parsed, 64), strict=False) if parsed.version == 6 else parsed)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, as IPv4 also where it is mapped into IPv6, as proxies may do; None where it is none."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
