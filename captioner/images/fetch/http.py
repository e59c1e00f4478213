"""Images from the web: bounded, tried again, and never from where a record must not send us."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from typing import IO, TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from captioner.core.errors import BadImageError, SettingsError
from captioner.core.proxies import proxy_for
from captioner.core.retry import retry_after_s, waits
from captioner.core.secrets import masked, without_secrets
from captioner.images.archives import check_size
from captioner.images.fetch.ssrf import ends_in_number, is_address, is_public

if TYPE_CHECKING:
    from typing import Self

ATTEMPTS = 4
MAX_HOPS = 5
CONNECT_S = 15.0
IN_MEMORY = 1 << 20
"""Bytes of an image that are held in memory while it comes in; what is more waits on disk."""

_HEADERS = {
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "User-Agent": "captioner (image captioning; Python aiohttp)",
}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_WHY = {401: "it asks for a login", 403: "it is forbidden"}


class RefusedAddressError(OSError):
    """A name stands for an address that a record may not send us to."""


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only; what it returns is what is connected to.

    Args:
        inner: Resolves.

    Attributes:
        exempt: Names that may be anywhere: those of proxies.
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
            raise RefusedAddressError(f"{host} is at a private address")
        return found

    async def close(self) -> None:
        """Close the inner one."""
        await self._inner.close()


class HttpFetcher:
    """Fetches images over http(s).

    Args:
        timeout_s: Seconds for one image, retries included.
        max_bytes: Largest image.
        private: Private, loopback and link-local addresses are allowed.
        resolver: Resolves names; by default the system does.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        max_bytes: int,
        private: bool,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._private = private
        self._given = resolver
        self._session: aiohttp.ClientSession | None = None
        self._resolver: AbstractResolver | None = None
        self._rests: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        """Return the fetcher itself; a session is opened when it is first needed."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str) -> IO[bytes]:
        """Return a file that holds an image, at its end; the caller closes it.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_too_large``,
                ``image_url_refused`` or ``image_fetch_failed``.
        """
        shown = without_secrets(url)[:200]
        why = "it took too long"
        try:
            async with asyncio.timeout(self._timeout_s):
                pauses = waits()
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        return await self._try(url, shown)
                    except _PassingError as error:
                        why = str(error)
                        if attempt < ATTEMPTS:
                            await asyncio.sleep(max(next(pauses), error.after_s))
                raise BadImageError(
                    "image_fetch_failed", f"cannot fetch {shown}: {why} ({ATTEMPTS} times)"
                )
        except TimeoutError:
            raise BadImageError(
                "image_fetch_failed",
                f"cannot fetch {shown} within {self._timeout_s:g} s (--fetch-timeout): {why}",
            ) from None

    async def _try(self, url: str, shown: str) -> IO[bytes]:
        """Follow one address to its image, each hop checked anew."""
        try:
            target = _url(url)
            for _ in range(MAX_HOPS + 1):
                await self._check(target, shown)
                found = await self._get(target, shown)
                if not isinstance(found, URL):
                    return found
                target = found
        except RefusedAddressError:
            raise _refused(shown, "it is at a private address (--allow-private-urls)") from None
        except ValueError:
            raise _refused(shown, "it, or where it redirects to, is no valid URL") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedAddressError):
                raise _refused(shown, "it is at a private address (--allow-private-urls)") from None
            reason = error.os_error.strerror or str(error.os_error)
            raise _PassingError(f"cannot connect: {reason}") from None
        except aiohttp.ClientError as error:
            said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
            raise _PassingError(f"the connection broke: {masked(said)[:100]}") from None
        except OSError as error:
            raise _PassingError(f"the connection broke: {error.strerror or error}") from None
        raise _refused(shown, f"it redirects more than {MAX_HOPS} times")

    async def _check(self, url: URL, shown: str) -> None:
        """Refuse what needs no connection to be refused, and wait while the host wants rest."""
        host = url.host
        if url.scheme not in ("http", "https") or not host:
            raise _refused(shown, f"it leads to a {url.scheme or 'nameless'} URL")
        if not self._private:
            if is_address(host):
                if not is_public(host):
                    raise RefusedAddressError
            elif ends_in_number(host):
                raise _refused(shown, "its host is an address in an odd notation")
        wait = self._rests.get(host, 0.0) - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _get(self, url: URL, shown: str) -> IO[bytes] | URL:
        """Return the image, or where the server says it is."""
        session = self._session or self._open()
        try:
            proxy = proxy_for(str(url))
        except SettingsError as error:
            raise _refused(shown, str(error)) from None
        if proxy is not None and not self._private:
            await self._check_behind(proxy, url)
        async with session.get(url, allow_redirects=False, proxy=proxy) as reply:
            if reply.status in _REDIRECTS:
                location = reply.headers.get("Location")
                if not location:
                    raise _refused(shown, "it redirects without saying where to")
                return url.join(_url(location))
            if reply.status in _PASSING:
                headers = {name.lower(): value for name, value in reply.headers.items()}
                after_s = retry_after_s(headers) or 0.0
                if after_s:
                    loop = asyncio.get_running_loop()
                    self._rests[url.host or ""] = loop.time() + after_s
                raise _PassingError(f"the server says HTTP {reply.status}", after_s)
            if reply.status in (404, 410):
                raise BadImageError(
                    "image_missing", f"there is nothing at {shown} (HTTP {reply.status})"
                )
            if reply.status != 200:
                why = _WHY.get(reply.status, "the server does not give it")
                raise BadImageError(
                    "image_unreadable", f"cannot fetch {shown}: {why} (HTTP {reply.status})"
                )
            return await self._read(reply, shown)

    async def _check_behind(self, proxy: str, url: URL) -> None:
        """Refuse what is private as far as this machine knows: the proxy resolves by itself."""
        if not isinstance(self._resolver, PublicResolver):
            return
        self._resolver.exempt.add(URL(proxy).host or "")
        if not is_address(url.host or ""):
            try:
                await self._resolver.resolve(url.host or "", url.port or 0, socket.AF_UNSPEC)
            except RefusedAddressError:
                raise
            except OSError:
                return  # only the proxy knows the name

    async def _read(self, reply: aiohttp.ClientResponse, shown: str) -> IO[bytes]:
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            size = reply.content_length or 0
            async for chunk in reply.content.iter_any():
                check_size(shown, max(size, file.tell() + len(chunk)), self._max_bytes)
                try:
                    file.write(chunk)
                except OSError as error:
                    raise BadImageError(
                        "image_fetch_failed",
                        f"{shown} has no room in the temporary folder: {error.strerror}",
                    ) from None
        except BaseException:
            file.close()
            raise
        return file

    def _open(self) -> aiohttp.ClientSession:
        resolver = self._given or ThreadedResolver()
        self._resolver = resolver if self._private else PublicResolver(resolver)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers=_HEADERS,
        )
        return self._session


class _PassingError(Exception):
    """It may work the next time."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


def _url(text: str) -> URL:
    """Return a URL as it is spelled, where that can be sent: a signature may depend on it."""
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _refused(shown: str, why: str) -> BadImageError:
    return BadImageError("image_url_refused", f"{shown} is not fetched: {why}")
