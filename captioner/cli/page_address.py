"""The address of the page holds a token, which other users of the machine must not read."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError
from captioner.core.regular import not_regular
from captioner.journal.companions import page_path
from captioner.journal.disk import Files
from captioner.settings.locations import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def address_file(url: str, output: Path) -> Iterator[Path]:
    """Write an address to a file that only its owner may read; remove the file at the end.

    It is beside the output or, where that folder cannot be written, in the temporary folder.

    Args:
        url: The address.
        output: The output that the page shows.

    Raises:
        SettingsError: A folder, a link or a device has the name of the file.
    """
    path = page_path(output).absolute()
    if Files().kind(path) not in ("missing", "file"):
        raise SettingsError(not_regular(path))
    try:
        temporary = path.with_name(f".{secrets.token_hex(8)}.page")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, url)
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
    except OSError:
        fd, name = tempfile.mkstemp(".page", "captioner-")
        _write(fd, url)
        path = Path(name)
    written = path.lstat()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(written, path.lstat()):  # another page may show the same output
                path.unlink()


def how_to_open(what: str, host: str, port: int, environ: Mapping[str, str]) -> str:
    """Return how to open the page, and who else can.

    Args:
        what: Where the address is: ``it``, or a file.
        host: The address that the page listens on.
        port: Its port.
        environ: The environment: it shows whether the user came by ssh, and to which address.
    """
    user = environ.get("USER") or environ.get("LOGNAME") or "USER"
    _, _, server, _ = (environ.get("SSH_CONNECTION") or "  HOST ").split(" ")
    target = "[::1]" if host == "::1" else "127.0.0.1"
    tunnel = f"ssh -N -L {port}:{target}:{port} {user}@{server}"
    if not is_loopback(host):
        return (
            f"open {what} in a browser; everyone who can reach this machine's port {port} and sees "
            "the address can read and review the captions, and the connection is not encrypted. "
            f"Without --host the page is for this machine only, and another one opens it through "
            f"{tunnel}. Ctrl-C ends it"
        )
    by_ssh = f", or, on the machine that you came from, after {tunnel}" if server != "HOST" else ""
    return f"open {what} in a browser on this machine{by_ssh}; Ctrl-C ends it"


def _write(fd: int, url: str) -> None:
    with open(fd, "w") as file:
        print(url, file=file)
