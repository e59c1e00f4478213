"""Answers of finished stages, kept beside the output so that none is asked for again.

Each line of the file has a CRC-32 in hexadecimal, a key and the answer as JSON. A line is written
before the next stage is asked, by one system call, so that killing captioner loses none. Several
processes may append to one file. What a crash of the machine took is asked for again.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from typing import TYPE_CHECKING

from captioner.core.keys import KEY_BYTES, KeyTable
from captioner.core.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

LONGEST = 64 << 20
"""Bytes of a line; a longer one is none of ours."""

_CRC = 8
_HEAD = _CRC + 2 * KEY_BYTES
_CHUNK = 1 << 16


class KeptAnswers:
    """Answers by key. The file is opened when it is first used.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._offsets = KeyTable()
        self._opening = threading.Lock()
        self._is_full = False

    def get(self, key: bytes) -> bytes:
        """Return the answer that an earlier run kept, empty if there is none. It blocks.

        Raises:
            OutputDamagedError: The path is not a regular file.
        """
        self._open()
        offset = self._offsets.find(key)
        try:
            return b"" if offset is None else _line_at(self._fd, offset)[_HEAD:]
        except OSError:
            return b""  # asked again

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer; JSON without line breaks. `get` finds it in the next run."""
        self._open()
        if self._is_full:
            return
        body = key.hex().encode() + answer
        line = b"%08x%b\n" % (zlib.crc32(body), body)
        try:
            if os.write(self._fd, line) < len(line):
                os.write(self._fd, b"\n")  # so that the next answer starts a line
        except OSError as error:
            self._stop_keeping(error)

    def _stop_keeping(self, error: OSError) -> None:
        self._is_full = True
        logger.warning(
            "%s: %s: from now on a run that is stopped asks finished stages again",
            self._path,
            error.strerror,
        )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._is_full = True

    def _open(self) -> None:
        with self._opening:
            if self._fd >= 0 or self._is_full:
                return
            try:
                self._fd = open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            except OSError as error:
                self._stop_keeping(error)
                return
            with os.fdopen(os.dup(self._fd), "rb") as file:
                file.seek(0)
                offset, line = 0, b""
                while line := file.readline(LONGEST):
                    if _is_whole(line):
                        self._offsets.add(bytes.fromhex(line[_CRC:_HEAD].decode()), offset)
                    offset += len(line)
                    torn = not line.endswith(b"\n")
            if offset and torn:
                os.write(self._fd, b"\n")


def _is_whole(line: bytes) -> bool:
    """Return whether a line is as it was written."""
    try:
        return line[-1:] == b"\n" and int(line[:_CRC], 16) == zlib.crc32(line[_CRC:-1])
    except ValueError:
        return False


def _line_at(fd: int, offset: int) -> bytes:
    """Return the line at an offset, without its end."""
    found = b""
    while not (end := found.find(b"\n")) + 1:
        chunk = os.pread(fd, _CHUNK, offset + len(found))
        if not chunk or len(found) > LONGEST:
            return b""
        found += chunk
    return found[:end]
