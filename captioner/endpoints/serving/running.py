"""Files of the servers that run: by them other runs find a server, and workers learn its state.

Each server has a folder that only its user can read. Locks show which are alive; the system
releases them when a process ends, however it ends::

    STATE/captioner/servers/HOST-PORT/
        server.json    what the server is, and its state
        alive          locked by the process that watches the server
        door, room     locked by requests; see `Quarantine`
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from captioner.core.errors import SettingsError
from captioner.core.seal import state_folder
from captioner.endpoints.serving.launchers import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_TRIES, _TRY_S = 50, 0.02
"""How often a lock that others hold for a moment is tried, and the seconds between."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a server is, and its state.

    Attributes:
        serve: The value of ``--serve`` that it was started for.
        model: The model's name in requests.
        base_url: Where it listens.
        state: It starts, takes requests, or was given up.
        starts: How often it was started.
        shared: Other runs may use it: it is that of ``captioner serve``.
        why: Why it was last started again, or was given up; for a person.
    """

    serve: str
    model: str
    base_url: str
    state: Literal["starting", "ready", "failed"] = "starting"
    starts: int = 0
    shared: bool = False
    why: str = ""

    def serves(self, serve: str) -> bool:
        """Return whether a run with this ``--serve`` may use it, now or once it is ready."""
        (kind, model), (own, name) = parse(serve), parse(self.serve)
        is_meant = model in (name, self.model) and (not kind or not own or kind == own)
        return self.shared and self.state != "failed" and is_meant


def servers_folder() -> Path:
    """Return the folder of the servers of this user."""
    return state_folder() / "servers"


def folder_of(port: int) -> Path:
    """Return the folder of the server on a port of this machine; the state may be on a network."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    return servers_folder() / f"{host}-{port}"


class RunningServer:
    """The folder of a server while it runs: for the process that watches it.

    Args:
        port: Its port.
        state: Its state at first.

    Raises:
        OSError: The folder cannot be written.
        SettingsError: Another process has the port.
    """

    def __init__(self, port: int, state: ServerState) -> None:
        self._folder = folder_of(port)
        self.state = state
        for _ in range(_TRIES):
            if (lock := self._locked()) is not None:
                break
            time.sleep(_TRY_S)
        else:
            raise SettingsError(f"a server of another captioner has port {port}: choose another")
        self._lock = lock
        for name in ("door", "room"):
            (self._folder / name).touch(0o600)
        self.change()

    def _locked(self) -> int | None:
        """Return the lock.

        It is None if another process has it, be it for the moment of a look, and if the folder was
        removed meanwhile, as what an old one left.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock = _open(self._folder / "alive", os.O_CREAT)
        except FileNotFoundError:
            return None
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (self._folder / "alive").stat()):
                return lock
        os.close(lock)
        return None

    def change(self, **to: Any) -> None:
        """Change the state, which other processes see at once."""
        self.state = replace(self.state, **to)
        temporary = self._folder / f".{secrets.token_hex(4)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self.state), file)
        temporary.replace(self._folder / "server.json")

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)


def read_state(folder: Path) -> ServerState | None:
    """Return the state of a server; None if the process that watched it has ended.

    Raises:
        OSError: It cannot be read, for example because too many files are open.
    """
    try:
        lock = _open(folder / "alive")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _state_in(folder)
    finally:
        os.close(lock)
    return None


def _state_in(folder: Path) -> ServerState | None:
    try:
        found = json.loads((folder / "server.json").read_text("utf-8"))
        known = {one.name for one in fields(ServerState)}
        return ServerState(**{name: value for name, value in found.items() if name in known})
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running_servers() -> Iterator[ServerState]:
    """Return the states of this user's servers on this machine; remove what ended ones left."""
    pattern = folder_of(0).name.removesuffix("0") + "*"
    for folder in sorted(servers_folder().glob(pattern)):
        if (found := read_state(folder)) is not None:
            yield found
        else:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a server unless one that starts has it."""
    with contextlib.suppress(OSError):
        lock = _open(folder / "alive")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
