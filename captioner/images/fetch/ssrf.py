"""Which network addresses a URL in a record may lead to.

URLs in records are untrusted. They must not reach what only this machine can reach, such as a
cloud's metadata service. The address that is connected to is checked, never a name.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host
        "192.0.0.0/24",  # IETF protocols, Oracle Cloud's metadata
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",
        "2001::/23",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


def is_public(address: str) -> bool:
    """Return whether an address is public; an IPv4 address inside IPv6 counts as IPv4.

    Raises:
        ValueError: It is not an IP address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and (inner := _embedded(ip)) is not None:
        ip = inner
    return (
        ip.is_global
        and not (ip.is_multicast or ip.is_reserved or ip.is_private)
        and not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
    )


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address contains, if any."""
    if ip in _NAT64 or ip in _COMPATIBLE:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def ends_in_number(host: str) -> bool:
    """Return whether a host is an IPv4 address in some notation (WHATWG URL, 3.5).

    Some libraries read such a host as an address and call no resolver.
    """
    name = unicodedata.normalize("NFKC", host).lower().rstrip(".")
    return _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, for which no resolver is called."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
