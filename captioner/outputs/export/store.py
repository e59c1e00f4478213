"""Upload of an output to an object store, through fsspec and each store's own library."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError, UploadError
from captioner.core.extras import needed
from captioner.core.secrets import masked, without_secrets
from captioner.core.types import library_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_WITH_BUCKETS = ("s3:", "s3a:", "gs:", "gcs:", "az:", "abfs:")
"""Addresses that begin with a bucket, which has to be there."""


def open_store(url: str) -> tuple[Any, str]:
    """Return the store of an address, and the path in it.

    Raises:
        SettingsError: Its library is missing, or its settings are wrong.
    """
    core = needed("fsspec", f"fsspec {library_of(url)}").core
    try:
        system, path = core.url_to_fs(url)
    except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
        raise SettingsError(
            f"cannot write to {without_secrets(url)}: {_reason(error, url)}"
        ) from None
    return system, str(path)


def object_exists(url: str) -> bool:
    """Return whether there is an object at an address. Blocking.

    Raises:
        SettingsError: Its bucket does not exist, or the store does not tell.
    """
    system, path = open_store(url)
    try:
        system.info(path)
    except FileNotFoundError:
        bucket = path.partition("/")[0]
        if url.startswith(_WITH_BUCKETS) and _is_missing(system, bucket):
            raise SettingsError(
                f"cannot write to {without_secrets(url)}: there is no bucket {bucket}"
            ) from None
        return False
    except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
        raise SettingsError(
            f"cannot see whether {without_secrets(url)} exists: {_reason(error, url)}. If the "
            "credentials allow only writing, add --overwrite"
        ) from None
    return True


def _is_missing(system: Any, bucket: str) -> bool:
    try:
        system.info(bucket)
    except FileNotFoundError:
        return True
    except Exception:  # noqa: BLE001 - the credentials may be those of a folder
        return False
    return False


def start_upload(paths: Sequence[Path], url: str) -> Future[None]:
    """Start to upload the files of an output to the folder of an address.

    Each appears whole or not at all. The thread that uploads does not outlive the process, so
    that a signal ends the wait for it.

    Args:
        paths: The files. They keep their names.
        url: The address of the output.

    Returns:
        What has no result, or an `UploadError` with the store's reason.
    """
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            _upload(paths, url)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)
        else:
            done.set_result(None)

    Thread(target=run, daemon=True).start()
    return done


def _upload(paths: Sequence[Path], url: str) -> None:
    system, path = open_store(url)
    folder, slash, _ = path.rpartition("/")
    base = url.rpartition("/")[0]
    for local in paths:
        try:
            system.put_file(str(local), f"{folder}{slash}{local.name}")
        except Exception as error:  # noqa: BLE001 - each store's library raises its own errors
            shown = without_secrets(f"{base}/{local.name}")
            raise UploadError(f"cannot upload {shown}: {_reason(error, url)}") from None
        size = local.stat().st_size / 1e6
        logger.warning("uploaded: %s, %.1f MB", without_secrets(f"{base}/{local.name}"), size)


def _reason(error: Exception, url: str) -> str:
    if isinstance(error, ImportError):
        library = library_of(url)
        return f"{library} is missing or cannot be imported: pip install {library}"
    if isinstance(error, PermissionError):
        return "it is forbidden; check the credentials"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or folder"
    return masked(str(error), url)[:200] or type(error).__name__
