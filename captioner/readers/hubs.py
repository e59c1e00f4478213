"""Records from data sets on a hub: ``hf:name[:config][:split]`` and ``ms:name[:split]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.rows import RecordSource, broken_input, one_line, record_of
from captioner.readers.tables import IMAGE_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Generator

    from captioner.core.types import InputRecord

MODELSCOPE = "'modelscope[datasets]' 'fsspec<=2026.2.0'"
"""What to install for ModelScope; with a later fsspec its import fails."""


class HubSource(RecordSource):
    """The rows of a data set, streamed.

    Args:
        address: ``hf:name``, ``hf:name:split`` or ``hf:name:config:split`` for Hugging Face;
            ``ms:name`` or ``ms:name:split`` for ModelScope.
        image_field: Column that holds images; by default one of `IMAGE_COLUMNS`.
        split: The split if the address names none; by default ``train``.

    Raises:
        SettingsError: The address is not valid, or a package is not installed.
    """

    def __init__(
        self, address: str, image_field: str | None = None, split: str | None = None
    ) -> None:
        self._hub, _, rest = address.partition(":")
        self._name, *parts = rest.split(":")
        if not self._name or len(parts) > (2 if self._hub == "hf" else 1):
            raise SettingsError(f"{address!r} is not {self._hub}:name[:config][:split]")
        if parts and split not in (None, parts[-1]):
            raise SettingsError(f"split: {address} names the split {parts[-1]} already")
        self._split = parts.pop() if parts else split or "train"
        self._config = parts.pop() if parts else None
        self._image_columns = frozenset({image_field}) if image_field else IMAGE_COLUMNS
        needed("datasets") if self._hub == "hf" else needed("modelscope", MODELSCOPE)

    def _records(self) -> Generator[InputRecord, None, None]:
        number = 0
        data = self._open()
        try:
            for number, row in enumerate(data, 1):
                yield record_of(number, row, 0, self._image_columns)
        except Exception as error:  # noqa: BLE001 - networks and files raise errors of many types
            place = {"dataset": self._name}
            message = f"the data set breaks off: {one_line(error)}"
            yield broken_input(number + 1, place, 0, "bad_table", message)

    def _open(self) -> Any:
        """Return the data set; its images are not decoded.

        Raises:
            SettingsError: The data set does not exist or cannot be reached.
        """
        try:
            datasets = needed("datasets")
            if self._hub == "ms":
                hub = needed("modelscope.msdatasets", MODELSCOPE).MsDataset
                data = hub.load(self._name, split=self._split, use_streaming=True)
                data = getattr(data, "ds_instance", data)  # the wrapped Hugging Face data set
            else:
                data = datasets.load_dataset(
                    self._name, self._config, split=self._split, streaming=True
                )
            return _without_decoding(data, datasets)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            reason = one_line(error, 300)
            raise SettingsError(f"cannot open {self._hub}:{self._name}: {reason}") from None


def _without_decoding(data: Any, datasets: Any) -> Any:
    """Return a data set whose images and videos are bytes and a path."""
    kinds = tuple(getattr(datasets, n) for n in ("Image", "Video") if hasattr(datasets, n))
    for name, feature in (getattr(data, "features", None) or {}).items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, kinds):
            data = data.cast_column(name, type(feature)(decode=False))
        elif isinstance(inner, kinds):
            data = data.cast_column(name, type(feature)(type(inner)(decode=False)))
    return data
