"""A callable for ``map_batches`` in pipelines on Ray Data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from captioner.core.errors import CaptionerError
from captioner.engine.stream import Captioner, CaptionError
from captioner.readers.rows import plain

if TYPE_CHECKING:
    from collections.abc import Mapping


class CaptionBatch:
    """Adds ``caption`` and ``caption_error`` to batches of rows.

    Rows are like records of an input; bytes in them are images. It never raises, because Ray would
    repeat whole blocks: a row without a caption has None and the reason. Blocks that Ray repeats,
    for example after the loss of a node, are paid for again. ``captioner INPUT --ray``
    keeps a journal and repeats only what was in flight.

    Args:
        **options: As in `Settings.create`.

    Example:
        ::

            rows.map_batches(
                CaptionBatch, fn_constructor_kwargs={"base_url": url, "model": "m"},
                compute=ray.data.ActorPoolStrategy(size=2), batch_size=64,
            )
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._captioner: Captioner | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with the two columns."""
        columns = {name: list(values) for name, values in batch.items()}
        count = len(next(iter(columns.values()), []))
        rows = [
            plain({name: values[number] for name, values in columns.items()}, is_image=True)
            for number in range(count)
        ]
        found = await asyncio.gather(*map(self._caption, rows))
        return {
            **batch,
            "caption": [caption for caption, _ in found],
            "caption_error": [error for _, error in found],
        }

    async def _caption(self, row: dict[str, Any]) -> tuple[str | None, str | None]:
        try:
            async with self._opening:
                if self._captioner is None:
                    self._captioner = await Captioner(**self._options).__aenter__()
            text = await self._captioner.caption(row)
        except CaptionError as error:
            return None, f"{error.code}: {error.message}"
        except CaptionerError as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - one row must not fail a block
            return None, f"internal error: {type(error).__name__}: {error}"
        return text if isinstance(text, str) else str(text), None
