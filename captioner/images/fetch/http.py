"""Fetching images over HTTP: with limits and retries, and never from private addresses."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from typing import IO, TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from captioner.core.descriptors import (
    PATIENCE_S,
    PAUSE_S,
    TOO_MANY_OPEN,
    are_used_up,
    none_left,
    warn_used_up,
)
from captioner.core.errors import BadImageError, DescriptorsError, SettingsError
from captioner.core.proxies import proxy_for
from captioner.core.retry import retry_after_s, waits
from captioner.core.secrets import masked, without_secrets
from captioner.images.archives import check_size
from captioner.images.fetch.ssrf import ends_in_number, is_address, is_public

if TYPE_CHECKING:
    from typing import Self

    from captioner.settings.options import ImageSettings

ATTEMPTS = 4
MAX_HOPS = 5
CONNECT_S = 15.0
IN_MEMORY = 1 << 20
"""Bytes of an image that are kept in memory while it arrives; the rest is kept on disk."""

_HEADERS = {
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "captioner (image captioning; Python aiohttp)",
}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_REASONS = {401: "it asks for a login", 403: "it is forbidden"}


class RefusedAddressError(OSError):
    """A name has an address to which a record may not lead."""


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only. Connections go to the address that was checked.

    Args:
        inner: Resolves names.

    Attributes:
        exempt: Names that may have any address: those of proxies.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner
        self.exempt: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            RefusedAddressError: One of them is not public.
        """
        found = await self._inner.resolve(host, port, family)
        if host not in self.exempt and not all(is_public(one["host"]) for one in found):
            raise RefusedAddressError
        return found

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()


class HttpFetcher:
    """Fetches images over HTTP. An async context manager.

    Args:
        images: The limits.
        resolver: Resolves names; by default the system does.
    """

    def __init__(self, images: ImageSettings, resolver: AbstractResolver | None = None) -> None:
        self._images = images
        self._resolver = resolver or ThreadedResolver()
        self._public = None if images.allow_private_urls else PublicResolver(self._resolver)
        self._not_before: dict[str, float] = {}  # by host, on the event loop's clock

    async def __aenter__(self) -> Self:
        """Return the fetcher itself."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=self._public or self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers=_HEADERS,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self._session.close()

    async def fetch(self, url: str) -> IO[bytes]:
        """Return a file that holds an image, at its end; the caller closes it.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_too_large``,
                ``image_url_refused`` or ``image_fetch_failed``.
        """
        shown = without_secrets(url)[:200]
        reason = "it took too long"
        pauses = waits()
        attempt = 0
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        try:
            async with asyncio.timeout(self._images.fetch_timeout) as limit:
                while attempt < ATTEMPTS:
                    try:
                        return await self._try(url, shown)
                    except _TransientError as error:
                        reason = str(error)
                        if none_left():
                            if loop.time() > until:
                                raise DescriptorsError(TOO_MANY_OPEN) from None
                            warn_used_up()
                            limit.reschedule(loop.time() + self._images.fetch_timeout)
                            await asyncio.sleep(PAUSE_S)
                            continue
                        attempt += 1
                        if attempt < ATTEMPTS:
                            await asyncio.sleep(max(next(pauses), error.after_s))
        except TimeoutError:
            seconds = f"{self._images.fetch_timeout:g} s (--fetch-timeout)"
            raise BadImageError(
                "image_fetch_failed", f"cannot fetch {shown} within {seconds}: {reason}"
            ) from None
        raise BadImageError(
            "image_fetch_failed", f"cannot fetch {shown}: {reason} ({ATTEMPTS} times)"
        )

    async def _try(self, url: str, shown: str) -> IO[bytes]:
        """Follow a URL and its redirects to an image; check each of them."""
        try:
            target = _url(url)
            for _ in range(MAX_HOPS + 1):
                await self._check(target, shown)
                found = await self._get(target, shown)
                if not isinstance(found, URL):
                    return found
                target = found
        except ValueError:
            raise _refused(shown, "it, or where it redirects to, is not a valid URL") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _explained(error, shown) from None
        raise _refused(shown, f"it redirects more than {MAX_HOPS} times")

    async def _check(self, url: URL, shown: str) -> None:
        """Refuse URLs that can be refused without a connection, and respect Retry-After."""
        host = url.host
        if url.scheme not in ("http", "https") or not host:
            raise _refused(shown, f"it leads to a {url.scheme or 'nameless'} URL")
        if self._public is not None:
            if is_address(host):
                if not is_public(host):
                    raise RefusedAddressError
            elif ends_in_number(host):
                raise _refused(shown, "its host is an address in an odd notation")
        wait = self._not_before.get(host, 0.0) - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _get(self, url: URL, shown: str) -> IO[bytes] | URL:
        """Return the image, or the target of a redirect."""
        try:
            proxy = proxy_for(str(url))
        except SettingsError as error:
            raise _refused(shown, str(error)) from None
        if proxy is not None:
            await self._check_behind_proxy(proxy, url)
        async with self._session.get(url, allow_redirects=False, proxy=proxy) as reply:
            if reply.status == 200:
                return await self._read(reply, shown)
            if reply.status in _REDIRECTS:
                location = reply.headers.get("Location")
                if not location:
                    raise _refused(shown, "it redirects without saying where to")
                return url.join(_url(location))
            if reply.status in _TRANSIENT:
                headers = {name.lower(): value for name, value in reply.headers.items()}
                after_s = retry_after_s(headers) or 0.0
                if after_s:
                    now = asyncio.get_running_loop().time()
                    self._not_before[url.host or ""] = now + after_s
                raise _TransientError(f"the server says HTTP {reply.status}", after_s)
            if reply.status in (404, 410):
                raise BadImageError(
                    "image_missing", f"there is nothing at {shown} (HTTP {reply.status})"
                )
            reason = _REASONS.get(reply.status, "the server does not give it")
            raise BadImageError(
                "image_unreadable", f"cannot fetch {shown}: {reason} (HTTP {reply.status})"
            )

    async def _check_behind_proxy(self, proxy: str, url: URL) -> None:
        """Refuse names that this machine knows as private; the proxy resolves names itself."""
        if self._public is None:
            return
        self._public.exempt.add(URL(proxy).host or "")
        if not is_address(url.host or ""):
            try:
                await self._public.resolve(url.host or "", url.port or 0, socket.AF_UNSPEC)
            except RefusedAddressError:
                raise
            except OSError:
                return  # only the proxy knows the name

    async def _read(self, reply: aiohttp.ClientResponse, shown: str) -> IO[bytes]:
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            size = reply.content_length or 0
            most = self._images.max_image_bytes, self._images.max_video_bytes
            async for chunk in reply.content.iter_any():
                check_size(shown, max(size, file.tell() + len(chunk)), *most)
                try:
                    file.write(chunk)
                except OSError as error:
                    if are_used_up(error):
                        raise
                    raise BadImageError(
                        "image_fetch_failed",
                        f"{shown} has no room in the temporary folder: {error.strerror}",
                    ) from None
        except BaseException:
            file.close()
            raise
        return file


class _TransientError(Exception):
    """A retry may succeed."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


def _explained(error: aiohttp.ClientError | OSError, shown: str) -> Exception:
    """Return the error that explains a failed connection."""
    what, cause = "the connection broke", error
    if isinstance(error, aiohttp.ClientConnectorError):
        what, cause = "cannot connect", error.os_error
    if isinstance(cause, RefusedAddressError):
        return _refused(shown, "it is at a private address (--allow-private-urls)")
    # The text of a response error holds the URL, which may hold a secret.
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else ""
    text = text or getattr(cause, "strerror", None) or str(cause)
    return _TransientError(f"{what}: {masked(text)[:100]}")


def _url(text: str) -> URL:
    """Return a URL without changing its spelling, on which a signature may depend."""
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _refused(shown: str, reason: str) -> BadImageError:
    return BadImageError("image_url_refused", f"{shown} is not fetched: {reason}")
