"""A seal by which a user's own file is known from one that a stranger has made.

The seal is made with a random key that only this user of this machine can read. The
author of a data set does not know it, and so cannot seal a file in it.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from captioner.core.errors import OutputDamagedError
from captioner.core.regular import open_regular

_KEY_BYTES = 32


def state_folder() -> Path:
    """Return the folder in which captioner keeps what belongs to this user, not to an output."""
    state = os.environ.get("XDG_STATE_HOME", "")
    root = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return root / "captioner"


def seal(data: bytes) -> str:
    """Return the seal of some bytes in hexadecimal digits; empty if this user can keep no key."""
    key = _key()
    return hmac.digest(key, data, "sha256").hex() if key else ""


def is_sealed(data: bytes, by: str) -> bool:
    """Return whether this user sealed the bytes, on this machine."""
    return bool(by) and hmac.compare_digest(seal(data).encode(), by.encode())


def _key() -> bytes:
    """Return the key of this user, made if there is none; empty if it can be neither."""
    with suppress(OSError, RuntimeError, OutputDamagedError):  # as of a user without a home
        path = state_folder() / "key"
        if not path.exists():
            _make(path)
        fd = open_regular(path)
        try:
            found = os.read(fd, _KEY_BYTES + 1)
            if len(found) == _KEY_BYTES and os.fstat(fd).st_uid == os.geteuid():
                return found
        finally:
            os.close(fd)
    return b""


def _make(path: Path) -> None:
    """Write a new key; one that another process writes at the same time stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"key.{secrets.token_hex(8)}")
    fd = open_regular(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, secrets.token_bytes(_KEY_BYTES))
        os.fsync(fd)
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        os.close(fd)
        draft.unlink()
