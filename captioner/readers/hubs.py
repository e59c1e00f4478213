"""Records from the data sets of a hub: ``hf:name[:config][:split]`` and ``ms:name[:split]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.readers.bytestreams import from_thread
from captioner.readers.rows import Batching, fault_line, line_of
from captioner.readers.tables import IMAGE_COLUMNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from captioner.core.types import InputRecord


class HubSource:
    """The rows of a data set, streamed.

    Args:
        address: ``hf:name``, ``hf:name:split``, ``hf:name:config:split`` for Hugging Face,
            ``ms:name`` or ``ms:name:split`` for ModelScope; the split is ``train`` if left out.
        image_field: The column that holds images, if an option names one.
    """

    size = 0

    def __init__(self, address: str, image_field: str | None = None) -> None:
        self._hub, self._name, *parts = address.split(":")
        if not self._name or len(parts) > (2 if self._hub == "hf" else 1):
            raise SettingsError(f"{address!r} is not {self._hub}:name[:config][:split]")
        self._split = parts.pop() if parts else "train"
        self._config = parts.pop() if parts else None
        self._images = frozenset({image_field}) if image_field else IMAGE_COLUMNS
        needed("datasets", "hf") if self._hub == "hf" else needed("modelscope", "ms")

    def batches(self) -> AsyncIterator[list[InputRecord]]:
        """Yield the rows in order."""
        return from_thread(self._rows)

    def _rows(self) -> Iterator[list[InputRecord]]:
        batching = Batching()
        number = 0
        rows = iter(self._open())
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - networks and files break in many ways
                number += 1
                what = {"dataset": self._name, "after": number - 1}
                message = f"the data set breaks off: {' '.join(str(error).split())[:200]}"
                yield [*batching.rest(), fault_line(number, what, 0, "bad_table", message)]
                return
            number += 1
            if found := batching.add(line_of(number, row, 0, self._images)):
                yield found
        if found := batching.rest():
            yield found

    def _open(self) -> Iterable[dict[str, Any]]:
        """Return the rows, their images not decoded.

        Raises:
            SettingsError: There is no such data set, or it cannot be reached.
        """
        try:
            if self._hub == "ms":
                hub = needed("modelscope.msdatasets", "ms").MsDataset
                data = hub.load(self._name, split=self._split, use_streaming=True)
                data = getattr(data, "ds_instance", data)  # one of Hugging Face's, in a wrapper
                rows: Iterable[dict[str, Any]] = _undecoded(data, needed("datasets", "ms"))
            else:
                datasets = needed("datasets", "hf")
                data = datasets.load_dataset(
                    self._name, self._config, split=self._split, streaming=True
                )
                rows = _undecoded(data, datasets)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            reason = " ".join(str(error).split())[:300]
            raise SettingsError(f"cannot open {self._hub}:{self._name}: {reason}") from None
        return rows


def _undecoded(data: Any, datasets: Any) -> Any:
    """Return a data set whose images are left as they are: bytes and a path."""
    for name, feature in (getattr(data, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(name, type(feature)(datasets.Image(decode=False)))
    return data
