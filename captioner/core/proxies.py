"""The proxies that the environment names."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from captioner.core.errors import SettingsError
from captioner.core.secrets import without_secrets


def proxy_for(url: str) -> str | None:
    """Return the proxy for a URL, None where it is reached directly.

    Raises:
        SettingsError: It is of a kind that we do not speak.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:  # as curl takes it
        proxy = f"http://{proxy}"
    if proxy and not _usable(proxy):
        shown = without_secrets(proxy.rpartition("@")[2])
        raise SettingsError(
            f"{parts.scheme}_proxy: {shown!r} is no HTTP proxy's address, and others are not "
            "spoken to. Exempt the host with no_proxy"
        )
    return proxy


def _usable(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no number for a port: a slash in the password, say
        return False
