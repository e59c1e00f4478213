"""Images from object stores, through fsspec and each store's own library. Blocking."""

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
"""Bytes of the first request; most images need no other."""


class ObjectStores:
    """Reads objects with the credentials and settings that each store's library finds.

    Args:
        max_bytes: Largest object.
        archives: The archives of the run.
        max_video_bytes: Largest video; by default ``max_bytes``.
    """

    def __init__(
        self, max_bytes: int, archives: Archives, max_video_bytes: int | None = None
    ) -> None:
        self._most = max_bytes, max_video_bytes
        self._archives = archives
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def read(self, url: str) -> bytes:
        """Return an object, or a file of an archive that is an object.

        Raises:
            BadImageError: ``image_missing``, ``image_unreadable``, ``image_too_large``,
                ``image_needs_extra`` or ``image_fetch_failed``.
        """
        shown = without_secrets(url)[:200]
        scheme = url.partition("://")[0].lower()
        try:
            system = self._system(scheme)
            if parts := in_archive(url):
                path, member = parts
                # The number of concurrent fetches bounds the memory: nothing is reserved.
                return self._archives.read(
                    path, member, lambda: system.open(path, "rb"), lambda _: None
                )
            data: bytes = system.cat_file(url, 0, SMALL)
            check_size(shown, len(data), *self._most)
            if len(data) < SMALL:
                return data
            size = int(system.info(url)["size"])
            check_size(shown, size, *self._most)
            return data + bytes(system.cat_file(url, SMALL, size)) if size > SMALL else data
        except BadImageError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            raise BadImageError("image_missing", f"there is nothing at {shown}") from None
        except PermissionError:
            raise BadImageError(
                "image_unreadable", f"cannot fetch {shown}: it is forbidden"
            ) from None
        except ImportError:
            raise BadImageError(
                "image_needs_extra",
                f"cannot fetch {shown}: pip install 'captioner[{STORES[scheme]}]' "
                f"reads {scheme}:// addresses",
            ) from None
        except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
            reason = masked(str(error))[:200] or type(error).__name__
            raise BadImageError("image_fetch_failed", f"cannot fetch {shown}: {reason}") from None

    def _system(self, scheme: str) -> Any:
        with self._lock:
            if scheme not in self._systems:
                import fsspec

                self._systems[scheme] = fsspec.filesystem(scheme)
            return self._systems[scheme]
