"""Images from object stores, through fsspec and each store's own library. Blocking."""

from __future__ import annotations

import threading
from typing import IO, TYPE_CHECKING, Any, cast

from captioner.core.errors import BadImageError, SettingsError
from captioner.core.secrets import masked, without_secrets
from captioner.core.types import library_of
from captioner.images.archives import check_size, in_archive

if TYPE_CHECKING:
    from captioner.images.archives import Archives

SMALL = 1 << 20
"""Bytes of the first request; most images need no other."""


class StoreFaultError(BadImageError):
    """An object could not be read, and the store may be at fault rather than the object.

    Args:
        code: Code of the failure if the record is to blame.
        message: One sentence with the address.
        kind: Name of the error: errors of one kind are alike.
    """

    def __init__(self, code: str, message: str, *, kind: str) -> None:
        super().__init__(code, message)
        self.kind = kind


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
            StoreFaultError: ``image_unreadable`` or ``image_fetch_failed``.
            BadImageError: ``image_missing`` or ``image_too_large``.
            SettingsError: The library that reads the store is not installed.
        """
        shown = without_secrets(url)[:200]
        scheme = url.partition("://")[0].lower()
        try:
            system = self._system(scheme)
            if parts := in_archive(url):
                path, member = parts
                # The number of concurrent fetches bounds the memory: nothing is reserved.
                return self._archives.read(
                    path, member, lambda: _opened(system, path), lambda _: None
                )
            # By keyword: the second parameter of s3fs is the version of the object.
            data: bytes = system.cat_file(url, start=0, end=SMALL)
            check_size(shown, len(data), *self._most)
            if len(data) < SMALL:
                return data
            size = int(system.info(url)["size"])
            check_size(shown, size, *self._most)
            return (
                data + bytes(system.cat_file(url, start=SMALL, end=size)) if size > SMALL else data
            )
        except BadImageError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            raise BadImageError("image_missing", f"there is nothing at {shown}") from None
        except ImportError as error:
            library = library_of(scheme)
            reason = " ".join(str(error.__cause__ or error).split())[:200] or "it is missing"
            raise SettingsError(
                f"{scheme}:// addresses need {library}, which cannot be imported ({reason}): "
                f"pip install {library}"
            ) from None
        except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
            raise _fault(shown, error) from None

    def _system(self, scheme: str) -> Any:
        with self._lock:
            if scheme not in self._systems:
                import fsspec

                self._systems[scheme] = fsspec.filesystem(scheme)
            return self._systems[scheme]


def _opened(system: Any, path: str) -> IO[bytes]:
    """Open an object.

    Raises:
        BadImageError: It cannot be opened.
    """
    shown = without_secrets(path)[:200]
    try:
        return cast("IO[bytes]", system.open(path, "rb"))
    except FileNotFoundError:
        raise BadImageError("image_missing", f"there is nothing at {shown}") from None
    except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
        raise _fault(shown, error) from None


def _fault(shown: str, error: Exception) -> StoreFaultError:
    kind = type(error).__name__
    if isinstance(error, PermissionError):
        return StoreFaultError(
            "image_unreadable", f"cannot fetch {shown}: it is forbidden", kind=kind
        )
    reason = masked(str(error))[:200] or kind
    return StoreFaultError("image_fetch_failed", f"cannot fetch {shown}: {reason}", kind=kind)
