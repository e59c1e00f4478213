"""Proxies from the environment."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from captioner.core.errors import SettingsError
from captioner.core.secrets import without_secrets


def proxy_for(url: str) -> str | None:
    """Return the proxy for a URL; None for a direct connection.

    Raises:
        SettingsError: It is not an HTTP proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:  # as curl accepts it
        proxy = f"http://{proxy}"
    if proxy and not _usable(proxy):
        shown = without_secrets(proxy.rpartition("@")[2])
        raise SettingsError(
            f"{parts.scheme}_proxy: {shown!r} is not the address of an HTTP proxy. Other kinds are "
            "not supported; exempt the host with no_proxy"
        )
    return proxy


def _usable(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, as with a slash in the password
        return False
