"""Which network addresses a record may send us to. Pure, no I/O.

A record is a stranger's: a URL in it must not reach what only this machine can reach, such as a
cloud's metadata service. What is checked is the address that is connected to, never a name.
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


def is_public(address: str) -> bool:
    """Tell whether an address is anybody's to reach; IPv4 inside IPv6 counts as IPv4.

    Raises:
        ValueError: It is no address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and (inner := _inner(ip)) is not None:
        return is_public(str(inner))
    return (
        ip.is_global
        and not (ip.is_multicast or ip.is_reserved or ip.is_private)
        and not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
    )


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for, None if it is none of those."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if ip in _NAT64 or ip in _COMPATIBLE:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


def ends_in_number(host: str) -> bool:
    """Tell whether a host is an IPv4 address to somebody, in whatever notation (WHATWG URL, 3.5).

    Some libraries take such a host for an address and ask no resolver.
    """
    name = unicodedata.normalize("NFKC", host).lower().rstrip(".")
    return _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


def is_address(host: str) -> bool:
    """Tell whether a host is an address already, so that no resolver will be asked."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
