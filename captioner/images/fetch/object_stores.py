"""Images from object stores, through fsspec and the library made for each store. Blocking."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from captioner.core.errors import BadImageError
from captioner.core.secrets import masked, without_secrets
from captioner.core.types import STORES
from captioner.images.archives import check_size, in_archive

if TYPE_CHECKING:
    from captioner.images.archives import Archives

SMALL = 1 << 20
"""Bytes that are read at once, in the hope that it is all: most images take one request."""


class Stores:
    """Reads objects, with the credentials and settings that each store's own library finds.

    Args:
        max_bytes: Largest object.
        archives: Archives that have been opened.
    """

    def __init__(self, *, max_bytes: int, archives: Archives) -> None:
        self._max_bytes = max_bytes
        self._archives = archives
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def read(self, url: str) -> bytes:
        """Return an object, or a member of an archive that is one.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_too_large``,
                ``image_needs_extra`` or ``image_fetch_failed``.
        """
        shown = without_secrets(url)[:200]
        system = self._system(url.partition("://")[0].lower())
        try:
            if parts := in_archive(url):
                path, member = parts
                return self._archives.read(path, member, lambda: system.open(path, "rb"), _nothing)
            data: bytes = system.cat_file(url, 0, SMALL)
            check_size(shown, len(data), self._max_bytes)
            if len(data) < SMALL:
                return data
            size = int(system.info(url)["size"])
            check_size(shown, size, self._max_bytes)
            return data + bytes(system.cat_file(url, SMALL, size)) if size > SMALL else data
        except BadImageError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            raise BadImageError("image_missing", f"there is nothing at {shown}") from None
        except PermissionError:
            raise BadImageError(
                "image_unreadable", f"cannot fetch {shown}: it is forbidden"
            ) from None
        except Exception as error:  # noqa: BLE001 - each store's library raises what it likes
            reason = masked(str(error))[:200] or type(error).__name__
            raise BadImageError("image_fetch_failed", f"cannot fetch {shown}: {reason}") from None

    def _system(self, scheme: str) -> Any:
        with self._lock:
            if scheme not in self._systems:
                try:
                    import fsspec

                    self._systems[scheme] = fsspec.filesystem(scheme)
                except ImportError:
                    extra = STORES[scheme]
                    raise BadImageError(
                        "image_needs_extra",
                        f"pip install 'captioner[{extra}]' reads {scheme}:// addresses",
                    ) from None
                except Exception as error:  # noqa: BLE001 - no credentials, a broken profile
                    reason = masked(str(error))[:200] or type(error).__name__
                    raise BadImageError(
                        "image_fetch_failed", f"{scheme}:// cannot be read: {reason}"
                    ) from None
            return self._systems[scheme]


def _nothing(_: int) -> None:
    """Reserve nothing: the bytes of all fetches are bounded by their number."""
