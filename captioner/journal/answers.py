"""Answers of finished stages, kept beside the output so that none is asked for again.

Each line of the file has a seal of this user, a key and the answer as JSON. A line is written
before the next stage is asked, by one system call, so that killing captioner loses none. Several
processes may append to one file. What a crash of the machine took is asked for again, and so are
answers that came with a data set: its author could have written anything.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import threading
from hashlib import blake2b
from typing import TYPE_CHECKING

from captioner.core.humanize import counted
from captioner.core.keys import KEY_BYTES, KeyTable
from captioner.core.regular import open_regular
from captioner.core.seal import seal

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

LONGEST = 64 << 20
"""Bytes of a line; a longer one is none of ours."""

MOST_OTHERS = 1_000_000
"""Lines of others, among which answers are looked for."""

_SEAL = 32
_HEAD = _SEAL + 2 * KEY_BYTES
_CHUNK = 1 << 16


class KeptAnswers:
    """Answers by key. The file is opened when it is first used.

    Args:
        path: The file.
        at_once: `get` also finds answers of this run, for 30 bytes of memory each.
    """

    def __init__(self, path: Path, *, at_once: bool = False) -> None:
        self._path = path
        self._at_once = at_once
        # A user who can keep no key finds no answers of earlier runs.
        self._secret = bytes.fromhex(seal(b"answers")) or secrets.token_bytes(_SEAL)
        self._fd = -1
        self._offsets = KeyTable()
        self._lock = threading.Lock()  # answers are looked for in threads
        self._is_full = False

    def get(self, key: bytes) -> bytes:
        """Return an answer that was kept, empty if there is none. It blocks.

        Raises:
            OutputDamagedError: The path is not a regular file.
        """
        self._open()
        with self._lock:
            offset = self._offsets.find(key)
        try:
            line = b"" if offset is None else _line_at(self._fd, offset)
        except OSError:
            return b""  # asked again
        is_its = line[_SEAL:_HEAD] == key.hex().encode()  # lines may have been moved meanwhile
        return line[_HEAD:] if is_its and self._is_ours(line) else b""

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer; JSON without line breaks. `get` finds it in the next run, or at once."""
        self._open()
        if self._is_full:
            return
        body = key.hex().encode() + answer
        line = b"%b%b\n" % (self._sealed(body), body)
        try:
            if os.write(self._fd, line) < len(line):
                os.write(self._fd, b"\n")  # ends what is there of the line
            elif self._at_once:
                end = os.lseek(self._fd, 0, os.SEEK_CUR)
                with self._lock:
                    self._offsets.add(key, end - len(line))
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
        with self._lock:
            if self._fd >= 0 or self._is_full:
                return
            try:
                self._fd = open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            except OSError as error:
                self._stop_keeping(error)
                return
            self._find()

    def _find(self) -> None:
        """Find the answers in the file."""
        offset = others = 0
        torn = False
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            while line := file.readline(LONGEST):
                torn = not line.endswith(b"\n")
                if not torn and self._is_ours(line[:-1]):
                    self._offsets.add(bytes.fromhex(line[_SEAL:_HEAD].decode()), offset)
                else:
                    others += 1
                if len(line) == LONGEST or others > MOST_OTHERS:
                    break  # such as a hole of terabytes, or gigabytes of empty lines
                offset += len(line)
        if torn:
            os.write(self._fd, b"\n")
        if others:
            logger.warning(
                "%s: %s not used: cut short, or not written by this user on this machine",
                self._path.name,
                counted(others, "line is", "lines are"),
            )

    def _sealed(self, body: bytes) -> bytes:
        return blake2b(body, digest_size=_SEAL // 2, key=self._secret).hexdigest().encode()

    def _is_ours(self, line: bytes) -> bool:
        """Return whether a line without its end is as this user wrote it."""
        return hmac.compare_digest(line[:_SEAL], self._sealed(line[_SEAL:]))


def _line_at(fd: int, offset: int) -> bytes:
    """Return the line at an offset, without its end."""
    parts: list[bytes] = []
    size = 0
    while size <= LONGEST and (chunk := os.pread(fd, _CHUNK, offset + size)):
        part, end, _ = chunk.partition(b"\n")
        parts.append(part)
        if end:
            return b"".join(parts)
        size += len(chunk)
    return b""
