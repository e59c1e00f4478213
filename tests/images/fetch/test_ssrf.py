from __future__ import annotations

import pytest

from captioner.images.fetch.ssrf import ends_in_number, is_address, is_public


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address):
    """Public addresses may be fetched from."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "192.88.99.1",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "::7f00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:db8::1", "100::1", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_not_public(address):
    """Private, reserved and cloud metadata addresses are not public."""
    assert not is_public(address)


def test_addresses_are_told_from_names():
    """What the system would resolve, odd numbers included, is a name: its result is checked."""
    assert is_address("127.0.0.1")
    assert is_address("::1")
    for name in ("localhost", "2130706433", "0x7f000001", "017700000001", "127.1", "127.0.0.1."):
        assert not is_address(name)


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "017700000001", "127.1", "0", "127.000.000.001", "127.0.0.1.",
     "\u00b2130706433", "\uff11\uff12\uff17.1", "0x7f.1", "a.0x10"],
)  # fmt: skip
def test_hosts_that_some_libraries_take_for_addresses(host):
    """Decimal, octal, hexadecimal and short forms, also in other digits."""
    assert ends_in_number(host)


@pytest.mark.parametrize(
    "host", ["example.org", "1.example", "0x10.org", "host1", "xn--e1afmkfd.org"]
)
def test_hosts_that_are_names(host):
    """A number within a name is nothing odd."""
    assert not ends_in_number(host)
