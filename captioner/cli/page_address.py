"""The address of the page holds a token, which other users of the machine must not read."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = ".page"
"""What the name of the file with the address has after the output's name."""


@contextlib.contextmanager
def address_file(url: str, output: Path) -> Iterator[Path]:
    """Write an address to a file that only its owner may read; remove the file at the end.

    It is beside the output or, where that folder cannot be written, in the temporary folder.

    Args:
        url: The address.
        output: The output that the page shows.
    """
    path = output.with_name(output.name + ENDING).absolute()
    try:
        temporary = path.with_name(f".{secrets.token_hex(8)}{ENDING}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _write(fd, url)
        temporary.replace(path)
    except OSError:
        fd, name = tempfile.mkstemp(ENDING, "captioner-")
        _write(fd, url)
        path = Path(name)
    written = path.lstat()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(written, path.lstat()):  # another page may show the same output
                path.unlink()


def _write(fd: int, url: str) -> None:
    with open(fd, "w") as file:
        print(url, file=file)
