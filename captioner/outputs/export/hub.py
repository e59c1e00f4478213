"""Upload of a data set to Hugging Face's hub."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatch
from threading import Thread
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.secrets import masked, remember
from captioner.outputs.export.card import CARD, SHARDS
from captioner.readers.rows import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)


class Hub:
    """A data set on the hub. It changes as a whole, by `commit`.

    A data set that does not exist is made, and only its owner sees it.

    Args:
        name: ``USER/NAME`` or ``ORGANISATION/NAME``.
        overwrite: Replace the shards and the card of a data set that has files.

    Raises:
        SettingsError: The data set has files, the hub refuses it or cannot be reached, or
            huggingface_hub is not installed.
    """

    def __init__(self, name: str, *, overwrite: bool) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        self._name = name
        self._hub = needed("huggingface_hub")
        needed("huggingface_hub.utils").disable_progress_bars()
        remember(self._hub.get_token() or "")
        self._api = self._hub.HfApi()
        with self._errors():
            self._api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
            present = self._api.list_repo_files(name, repo_type="dataset")
        if not overwrite and set(present) - {".gitattributes"}:
            raise SettingsError(f"the data set {name} has files; replace it with --overwrite")
        self._stale = {path for path in present if fnmatch(path, SHARDS)}
        self._operations: list[Any] = []

    def send(self, path: Path, name: str) -> None:
        """Upload a file, which is no longer needed then, for the commit.

        Args:
            path: The file.
            name: Its path in the data set.

        Raises:
            SettingsError: The hub refuses it or cannot be reached.
        """
        size = path.stat().st_size
        with self._errors():
            file = self._hub.CommitOperationAdd(name, path)
            _in_thread(
                lambda: self._api.preupload_lfs_files(self._name, [file], repo_type="dataset")
            )
        if file.path_or_fileobj:  # not uploaded yet: the hub takes it with the commit
            file = self._hub.CommitOperationAdd(name, path.read_bytes())
        path.unlink()
        self._operations.append(file)
        self._stale.discard(name)
        logger.warning("uploaded: %s, %.1f MB", name, size / 1e6)

    def commit(self, card: str) -> None:
        """Make the uploaded files and a card the content of the data set.

        Raises:
            SettingsError: The hub refuses it or cannot be reached.
        """
        with self._errors():
            self._api.create_commit(
                self._name,
                [
                    *self._operations,
                    self._hub.CommitOperationAdd(CARD, card.encode()),
                    *map(self._hub.CommitOperationDelete, sorted(self._stale)),
                ],
                commit_message="Captions",
                repo_type="dataset",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the hub into sentences."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - those of its HTTP library differ by version
            status = getattr(getattr(error, "response", None), "status_code", None)
            name, reason = self._name, masked(one_line(error, 300))
            if status == 401:
                text = (
                    "the hub does not know you. Set HF_TOKEN to a token that may write, or run "
                    "hf auth login"
                )
            elif status in (403, 404):
                text = f"the token may not write to the data set {name}, or there is no such user"
            elif status is not None or isinstance(error, ValueError):
                text = f"the hub refuses the data set {name}: {reason}"
            else:
                text = (
                    "the hub cannot be reached. Check the network, or HF_ENDPOINT for a mirror, "
                    f"and export again ({reason})"
                )
            raise SettingsError(text) from None


def _in_thread(work: Callable[[], None]) -> None:
    """Do work in a thread: a signal ends the wait for it, as it would not end the work itself."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    done.result()
