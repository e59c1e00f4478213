"""HTTP to an endpoint through aiohttp, tuned to cost little per request."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from captioner.core.errors import EndpointFaultError, SettingsError
from captioner.core.proxies import proxy_for
from captioner.core.secrets import masked
from captioner.core.types import Response
from captioner.endpoints.http1 import CONNECT_S, CONNECTING, Http1Client, read
from captioner.endpoints.shared_timer import SharedTimer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from captioner.core.types import Request

SECRET_LENGTH = 8
"""A header's value may be a key from so many characters on; it is masked where it comes back."""


class AiohttpTransport:
    """Sends requests to one base URL over kept-alive connections.

    Args:
        base_url: For example ``http://localhost:8000/v1``.
        api_key: Sent as a bearer token; None sends none.
        timeout_s: Seconds for one whole exchange, however slowly bytes drip.
        headers: Further headers; they go before ours.

    Raises:
        SettingsError: There are two keys, or a proxy that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        said = [value for _, value in headers if len(value) >= SECRET_LENGTH]
        self._secrets = [secret.encode() for secret in (api_key, *said) if secret]
        if api_key and _is_azure(base_url):
            self._headers["api-key"] = api_key
        elif api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        ours = {name.lower(): name for name in self._headers}
        for name, value in headers:
            self._headers.pop(ours.get(name.lower(), ""), None)
            self._headers[name] = value
        keyed = any(name.lower() == "authorization" for name in self._headers)
        if "@" in urlsplit(base_url).netloc and keyed:
            raise SettingsError(
                "base-url: there is a name in the address and a key as well; leave one of them out"
            )
        self._session: aiohttp.ClientSession | None = None
        self._exchanges: dict[str, Http1Client] = {}
        self._deadlines = SharedTimer(timeout_s)
        self._proxy = proxy_for(base_url)

    async def send(self, request: Request) -> Response:
        """Return the reply, whatever its status.

        Raises:
            EndpointFaultError: ``connection``, ``disconnected``, ``timeout``
                or ``reply_too_large``.
        """
        deadline = self._deadlines.begin()
        try:
            reply = await self._sent(request)
        except asyncio.CancelledError:
            if not deadline.passed():
                raise
            raise self._too_late() from None
        except aiohttp.ClientHttpProxyError as error:  # what it says to CONNECT is a reply, too
            reply = Response(error.status, {}, error.message.encode())
        except aiohttp.ConnectionTimeoutError:
            raise EndpointFaultError(
                "connection",
                f"cannot connect to {urlsplit(self._base_url).hostname} within {CONNECT_S:g} s",
            ) from None
        except TimeoutError:
            raise self._too_late() from None
        except aiohttp.ClientConnectorError as error:
            raise EndpointFaultError(
                "connection", f"cannot connect to {error.host}:{error.port}: {_reason(error)}"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._broken(error) from None
        finally:
            deadline.end()
        return reply if reply.status < 400 else reply._replace(body=self.masked(reply.body))

    async def _sent(self, request: Request) -> Response:
        if request.method == "POST":
            exchange = self._exchanges.get(request.path)
            if exchange is None:
                exchange = Http1Client(
                    self._session or self._open(),
                    self._url(request.path),
                    URL(self._proxy) if self._proxy else None,
                )
                self._exchanges[request.path] = exchange
            return await exchange.post(request.pieces)
        async with (self._session or self._open()).request(
            request.method,
            self._url(request.path),
            allow_redirects=False,
            proxy=self._proxy,
        ) as reply:
            return Response(reply.status, reply.headers, await read(reply.headers, reply.content))

    def _url(self, path: str) -> URL:
        base, mark, query = self._base_url.partition("?")  # Azure's api-version, say
        return URL(f"{base.rstrip('/')}{path}{mark}{query}")

    def masked(self, data: bytes) -> bytes:
        """Return a reply without our key: some endpoints repeat it, and it is for nobody's eyes."""
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        return data

    async def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Response:
        """Send a file as a form's, streamed, however long that takes; return the reply.

        Raises:
            EndpointFaultError: As `send` does.
        """
        with file.open("rb") as opened:
            form = aiohttp.FormData(dict(fields))
            form.add_field("file", opened, filename=file.name, content_type="application/jsonl")
            body = form()
            async with self._whole("POST", path, body, body.headers) as reply:
                return Response(
                    reply.status,
                    reply.headers,
                    self.masked(await read(reply.headers, reply.content)),
                )

    async def download(self, path: str, target: Path) -> Response:
        """Write a reply's body to a file if it is a good one; return the reply without it.

        Raises:
            EndpointFaultError: As `send` does; the file is as it was.
        """
        async with self._whole("GET", path) as reply:
            if reply.status >= 300:
                return Response(
                    reply.status,
                    reply.headers,
                    self.masked(await read(reply.headers, reply.content)),
                )
            partial = target.with_name(target.name + ".partial")
            with partial.open("wb") as file:
                async for chunk in reply.content.iter_any():
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
            return Response(reply.status, reply.headers, b"")

    @contextlib.asynccontextmanager
    async def _whole(
        self, method: str, path: str, body: Any = None, headers: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Exchange what may take long as a whole, but not between two bytes."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s
        )
        session = self._session or self._open()
        try:
            async with session.request(
                method,
                self._url(path),
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                timeout=timeout,
            ) as reply:
                yield reply
        except TimeoutError:
            raise self._too_late() from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._broken(error) from None

    def _broken(self, error: BaseException) -> EndpointFaultError:
        """Return what a broken connection means; its words may quote what the server said."""
        told = self.masked(_reason(error).encode()).decode(errors="replace")
        return EndpointFaultError("disconnected", f"the connection broke: {told}")

    def _too_late(self) -> EndpointFaultError:
        return EndpointFaultError(
            "timeout", f"no whole reply within {self._timeout_s:g} s (--timeout)"
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for exchange in self._exchanges.values():
            exchange.close()
        self._exchanges.clear()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            # Permits bound how many there are, and exchanges keep them: what comes unasked on one
            # in aiohttp's pool would be taken for the next reply.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            # The deadline of an exchange covers it all; connecting has a shorter one of its own.
            timeout=CONNECTING,
            # Whatever is accepted might come compressed; replies are too short for that.
            skip_auto_headers=("Accept-Encoding",),
        )
        return self._session


def _is_azure(url: str) -> bool:
    """Tell whether keys go into a header of their own there; Bearer is for its tokens."""
    host = urlsplit(url).hostname or ""
    return host.endswith((".openai.azure.com", ".cognitiveservices.azure.com"))


def _reason(error: BaseException) -> str:
    """Return what went wrong in words, without addresses of objects or stack traces."""
    if isinstance(error, aiohttp.ClientConnectorError):
        why = getattr(error, "certificate_error", None) or error.os_error
        return getattr(why, "strerror", None) or " ".join(str(why).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, aiohttp.ClientResponseError):  # as text it names a proxy's password
        return f"{error.status} {error.message}"
    return masked(str(error)) or type(error).__name__
