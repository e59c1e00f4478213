"""The kind of a location, by its name alone."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from captioner.core.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

HUBS = ("hf:", "ms:")
COMPRESSED = (".gz", ".zst")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of the table of Hugging Face's imagefolder."""

FOLDER_FORMATS = ("txt", "caption", "xmp", "images", "dataset")
"""Output formats of several files in a folder."""

_PATTERN = re.compile(r"[*?\[]|\{\d+\.\.\d+\}")
STORAGE = re.compile(r"(s3a?|gs|gcs|hf|az|abfs|memory|file):/+(.+)")
"""URLs of object stores as paths, which have one slash instead of two."""


def storage_url(path: Path) -> str | None:
    """Return the URL of an object in a store; None if the path is local."""
    found = STORAGE.fullmatch(str(path))
    if found is None:
        return None
    slash = "/" if found[1] == "file" else ""
    return f"{found[1]}://{slash}{found[2]}"


def check_stored(url: str, kind: str | None, *, name: str) -> None:
    """Refuse an address in an object store that cannot be that of an output.

    Args:
        url: The address.
        kind: The output format that was given.
        name: What it was given by, for the message.

    Raises:
        SettingsError: It names no object, or the format is written into a folder.
    """
    scheme, _, path = url.partition("://")
    last = path.rpartition("/")[2]
    if scheme == "file":
        raise SettingsError(f"{name}: {url} is a local file; write its path without file:")
    if last in ("", ".", "..", "-") or (scheme != "memory" and "/" not in path):
        raise SettingsError(
            f"{name}: {url} names no object; name one, such as {scheme}://BUCKET/captions.jsonl"
        )
    if kind in FOLDER_FORMATS:
        raise SettingsError(
            f"{name}: {kind} is written into a folder of this machine, not to an object store "
            f"({url})"
        )


def location(path: Path) -> str:
    """Return a path as users write it: an object in a store by its URL."""
    return storage_url(path) or str(path)


def hub_name(path: Path) -> str | None:
    """Return the name of a data set on Hugging Face's hub, of ``hf:USER/NAME``; else None."""
    text = str(path)
    return text[3:] if text.startswith("hf:") and storage_url(path) is None else None


def check_folder(output: str | Path, kind: str | None, *, name: str, flag: str) -> None:
    """Refuse an output that is written as a folder, with a slash at its end, but is a file.

    Args:
        output: The output, as it was given.
        kind: The output format that was given.
        name: What it was given by, for the message.
        flag: The flag of output formats.

    Raises:
        SettingsError: The format is written into one file.
    """
    if str(output).endswith("/") and kind not in FOLDER_FORMATS:
        several = f". Or name a format of several files with {flag}: {', '.join(FOLDER_FORMATS)}"
        raise SettingsError(
            f"{name}: {output} is a folder. Name a file in it, such as {output}captions.jsonl; "
            "other endings are .json, .csv, .tsv, .parquet, .tar and .sqlite"
            f"{'' if STORAGE.fullmatch(str(output)) else several}"
        )


def is_pattern(path: Path) -> bool:
    """Return whether a path is a pattern: ``*.jpg``, ``shard-{000..099}.tar``."""
    return _PATTERN.search(str(path)) is not None and not path.exists()


def is_elsewhere(path: Path) -> bool:
    """Return whether an input is not a local file or folder: a hub, standard input, a pattern."""
    text = str(path)
    return text == "-" or text.startswith(HUBS) or is_pattern(path) or storage_url(path) is not None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
