"""HTTP to an endpoint through aiohttp, with a low cost for each request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp
from yarl import URL

from captioner.core import descriptors
from captioner.core.errors import EndpointFaultError, EndpointRefusedError, SettingsError
from captioner.core.proxies import proxy_for
from captioner.core.regular import reading, writing
from captioner.core.secrets import (
    SHORTEST,
    in_any_escape,
    masked,
    names_secret,
    remember,
    without_keys,
    without_keys_in,
)
from captioner.core.types import Response
from captioner.endpoints.http1 import (
    CONNECT_S,
    CONNECTING,
    HEADER_LIMITS,
    Client,
    open_client,
    response_of,
)
from captioner.endpoints.shared_timer import SharedTimer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from captioner.core.types import Request


LONGEST_REASON = 300
"""Characters of an error that are shown: it may quote what a server sent."""


class _NoDescriptorError(Exception):
    """No connection can be opened because this process has too many files open."""


class AiohttpTransport:
    """Sends requests to one base URL over kept-alive connections.

    Args:
        base_url: For example ``http://localhost:8000/v1``.
        api_key: Sent as a bearer token; None sends no key.
        timeout_s: Seconds for one request from start to end, however slowly bytes arrive.
        headers: Further headers; they replace ours.
        secrets: Secrets in further fields of requests; they are masked in responses as keys are.

    Raises:
        SettingsError: There are two keys, or the proxy cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        headers: Sequence[tuple[str, str]] = (),
        secrets: Sequence[str] = (),
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        long_values = [value for _, value in headers if len(value) >= SHORTEST]
        keys = [*_keys_in(headers), *_keys_of(base_url), *([api_key] if api_key else ())]
        keys += [secret for secret in secrets if len(secret) >= SHORTEST]
        for key in keys:
            remember(key)
        self._secrets = [
            re.compile(in_any_escape(secret).encode(), re.IGNORECASE)
            for secret in (*keys, *long_values)
        ]
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
                "base-url: the address has a user name and there is a key; leave out one of them"
            )
        self._session: aiohttp.ClientSession | None = None
        self._clients: dict[str, Client] = {}
        self._timer = SharedTimer(timeout_s)
        self._proxy = proxy_for(base_url)

    async def send(self, request: Request, *, is_patient: bool = True) -> Response:
        """Return the response, whatever its status.

        Args:
            request: The request.
            is_patient: Wait while this process has no file descriptor for a connection.

        Raises:
            EndpointFaultError: ``connection``, ``disconnected``, ``timeout``
                or ``reply_too_large``.
            EndpointRefusedError: TLS does not work with this address or certificate.
        """
        deadline = self._timer.begin()
        try:
            reply = await self._sent(request)
        except asyncio.CancelledError:
            if not deadline.passed():
                raise
            raise self._timed_out() from None
        except aiohttp.ClientHttpProxyError as error:  # its response to CONNECT
            reply = Response(error.status, {}, error.message.encode())
        except aiohttp.ConnectionTimeoutError:
            raise EndpointFaultError(
                "connection",
                f"cannot connect to {urlsplit(self._base_url).hostname} within {CONNECT_S:g} s",
            ) from None
        except TimeoutError:
            raise self._timed_out() from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise EndpointRefusedError(
                f"No TLS connection to {error.host}:{error.port}: {_reason(error)}. Check that "
                "--base-url has the right scheme; for a certificate of a CA of your own, name its "
                "file in SSL_CERT_FILE."
            ) from None
        except aiohttp.ClientConnectorError as error:
            if descriptors.are_used_up(error.os_error) or descriptors.none_left():
                if not is_patient:
                    raise _NoDescriptorError from None
                deadline.end()
                return await self._send_when_possible(request)
            raise _cannot_connect(error) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._broken(error) from None
        finally:
            deadline.end()
        if reply.status >= 400:
            return self._masked(reply)
        body = without_keys_in(reply.body)
        return reply if body is reply.body else reply._replace(body=body)

    async def _send_when_possible(self, request: Request) -> Response:
        """Send a request as soon as a connection can be opened."""
        for _ in range(round(descriptors.PATIENCE_S / descriptors.PAUSE_S)):
            descriptors.warn_used_up()
            await asyncio.sleep(descriptors.PAUSE_S)
            with contextlib.suppress(_NoDescriptorError):
                return await self.send(request, is_patient=False)
        raise EndpointFaultError(
            "connection", "too many files and connections are open (ulimit -n)"
        )

    async def _sent(self, request: Request) -> Response:
        if request.method == "POST":
            client = self._clients.get(request.path)
            if client is None:
                client = open_client(
                    self._session or self._open(),
                    self._url(request.path),
                    URL(self._proxy) if self._proxy else None,
                )
                self._clients[request.path] = client
            return await client.post(request.pieces)
        async with (self._session or self._open()).request(
            request.method,
            self._url(request.path),
            allow_redirects=False,
            proxy=self._proxy,
        ) as reply:
            return await response_of(reply)

    def unsent(self) -> int:
        """Return how many requests are not sent completely yet, as far as that is known."""
        return sum(client.unsent for client in self._clients.values())

    def _url(self, path: str) -> URL:
        base, mark, query = self._base_url.partition("?")  # Azure's api-version, say
        return URL(f"{base.rstrip('/')}{path}{mark}{query}")

    def masked(self, data: bytes) -> bytes:
        """Return a response without our secrets: some endpoints repeat the key."""
        for secret in self._secrets:
            data = secret.sub(b"***", data)
        return without_keys_in(data)

    def _masked(self, reply: Response) -> Response:
        return reply._replace(body=self.masked(reply.body))

    async def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Response:
        """Upload a file as a form field, streamed, however long that takes; return the response.

        Raises:
            EndpointFaultError: As `send` does.
        """
        with reading(file) as opened:
            form = aiohttp.FormData(dict(fields))
            form.add_field("file", opened, filename=file.name, content_type="application/jsonl")
            body = form()
            async with self._whole("POST", path, body, body.headers) as reply:
                return self._masked(await response_of(reply))

    async def download(self, path: str, target: Path, max_bytes: int) -> Response:
        """Write the body of a successful response to a file; return the response without it.

        Raises:
            EndpointFaultError: As `send` does; the file is unchanged.
            EndpointRefusedError: The body has more than ``max_bytes``; the file is unchanged.
        """
        async with self._whole("GET", path) as reply:
            if reply.status >= 300:
                return self._masked(await response_of(reply))
            partial = target.with_name(target.name + ".partial")
            try:
                with writing(partial, new=True) as file:
                    async for chunk in reply.content.iter_any():
                        if file.tell() + len(chunk) > max_bytes:
                            raise EndpointRefusedError(
                                f"The endpoint sends a file of more than {max_bytes} bytes, which "
                                "is more than the results can have. Check --base-url."
                            )
                        file.write(chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            return Response(reply.status, reply.headers, b"")

    @contextlib.asynccontextmanager
    async def _whole(
        self, method: str, path: str, body: Any = None, headers: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a request with a read timeout per chunk but no total timeout (up- and downloads)."""
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
            raise self._timed_out() from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._broken(error) from None

    def _broken(self, error: BaseException) -> EndpointFaultError:
        """Return the error of a broken connection; its text may quote the server."""
        reason = self.masked(_reason(error).encode()).decode(errors="replace")
        return EndpointFaultError("disconnected", f"the connection broke: {without_keys(reason)}")

    def _timed_out(self) -> EndpointFaultError:
        return EndpointFaultError(
            "timeout", f"no complete response within {self._timeout_s:g} s (--timeout)"
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            # The limiter bounds connections and `Http1Client` keeps them. In aiohttp's own pool,
            # unexpected data on an idle connection would be taken for the next response.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            # `SharedTimer` covers the whole request; connecting has a shorter limit.
            timeout=CONNECTING,
            # Responses are too short to be worth compressing.
            skip_auto_headers=("Accept-Encoding",),
            **HEADER_LIMITS,
        )
        return self._session


def _keys_in(headers: Sequence[tuple[str, str]]) -> list[str]:
    """Return the keys in headers, without the word before them (``Bearer``)."""
    values = [value for name, value in headers if names_secret(name)]
    return [word for value in values for word in value.split() if len(word) >= SHORTEST]


def _keys_of(url: str) -> list[str]:
    """Return the password and the keys in an address, as written and as sent."""
    parts = urlsplit(url)
    keys = [value for name, value in parse_qsl(parts.query) if names_secret(name)]
    if password := unquote(parts.password or ""):
        user = unquote(parts.username or "")
        keys += [password, base64.b64encode(f"{user}:{password}".encode()).decode()]
    return [key for key in keys if len(key) >= SHORTEST]


def _cannot_connect(error: aiohttp.ClientConnectorError) -> EndpointFaultError:
    fault = EndpointFaultError(
        "connection", f"cannot connect to {error.host}:{error.port}: {_reason(error)}"
    )
    why = error.os_error
    fault.is_unknown_host = isinstance(why, socket.gaierror) and why.errno == socket.EAI_NONAME
    return fault


def _is_azure(url: str) -> bool:
    """Return whether the host is Azure OpenAI, which expects keys in the header ``api-key``."""
    host = urlsplit(url).hostname or ""
    return host.endswith((".openai.azure.com", ".cognitiveservices.azure.com"))


def _reason(error: BaseException) -> str:
    """Return the error in words, without object addresses or stack traces."""
    if isinstance(error, aiohttp.ClientConnectorError):
        why = getattr(error, "certificate_error", None) or error.os_error
        return getattr(why, "strerror", None) or " ".join(str(why).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, aiohttp.ClientResponseError):  # its text would show a proxy's password
        return " ".join(f"{error.status} {error.message}".split())
    return masked(str(error)[:LONGEST_REASON]) or type(error).__name__
