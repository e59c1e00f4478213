"""Reading the text in an image with RapidOCR, whose models ship in its wheel."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

_log = logging.getLogger(__name__)

_SIDE = 1280  # pixels; enough for a page of print, and under a second on two cores
_MIN_SIDE = 12  # pixels; thinner strips hold no letters, and RapidOCR takes seconds to say so
_THREADS = 2  # the engine beside it needs the other cores
_MIN_CONFIDENCE = 0.8
_MIN_HEIGHT = 0.02  # of the image's height
_MIN_CHARACTERS = 2  # round things (cups, pupils, wheels) are read as a single 0, 8 or O


class TextReader:
    """Reads the legible text of images, or none where the ``offline`` extra is not installed.

    Safe to use from several threads. The models are loaded when the first image is read.
    """

    def __init__(self) -> None:
        names = ("numpy", "onnxruntime", "rapidocr")
        self._available = all(importlib.util.find_spec(name) is not None for name in names)
        self._engine: Any = None
        # RapidOCR keeps state of the current image in itself, so one image is read at a time. It
        # uses two threads for that, so a second engine would cost memory and gain little.
        self._lock = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether OCR is installed and has not failed to load."""
        return self._available

    def read(self, image: Image.Image) -> list[str]:
        """Read the text in an image.

        Args:
            image: An RGB image, which is left as it is.

        Returns:
            The lines that are large and clear enough to be trusted, in reading order.
        """
        if not self._available:
            return []
        small = image.copy()
        small.thumbnail((_SIDE, _SIDE))
        if min(small.size) < _MIN_SIDE:
            return []
        with self._lock:
            if self._engine is None and not self._load():
                return []
            result = self._recognise(small)
        # Where nothing was found the result may be of another class, without texts.
        if getattr(result, "txts", None) is None or result.boxes is None:
            return []
        lines = [
            (box, text)
            for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True)
            if score >= _MIN_CONFIDENCE
            and _letter_height(box) >= _MIN_HEIGHT * small.height
            and sum(character.isalnum() for character in text) >= _MIN_CHARACTERS
        ]
        return in_reading_order(lines)

    def _recognise(self, image: Image.Image) -> Any:
        """Run OCR on an image, or return None where it fails: the rest of a caption stands."""
        numpy = importlib.import_module("numpy")
        # RapidOCR takes blue first, as OpenCV does.
        pixels = numpy.ascontiguousarray(numpy.asarray(image)[:, :, ::-1])
        try:
            return self._engine(pixels)
        except Exception as error:  # noqa: BLE001 - a third party's, on any image there is
            _log.warning("The text of an image could not be read: %s", error)
            return None

    def _load(self) -> bool:
        """Load the OCR models, giving up on text for good where that fails."""
        try:
            # RapidOCR imports this only at the first image, and it is the one likely to be broken.
            importlib.import_module("onnxruntime")
            rapidocr = importlib.import_module("rapidocr")
            _require_models(rapidocr)
            self._engine = rapidocr.RapidOCR(
                params={
                    "Global.log_level": "critical",
                    "EngineConfig.onnxruntime.intra_op_num_threads": _THREADS,
                    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                    # Telling upright from upside-down lines turns some good ones over.
                    "Global.use_cls": False,
                    # Enlarging small images takes twice the time and reads worse.
                    "Det.limit_type": "max",
                    "Det.limit_side_len": _SIDE,
                }
            )
        except Exception as error:  # noqa: BLE001 - a broken extra must not break the describer
            self._available = False
            _log.warning("Captions will not mention text: OCR did not load (%s).", error)
        return self._available


def _require_models(rapidocr: Any) -> None:
    """Make sure of the models in the wheel: RapidOCR would download them, offline or not."""
    models = Path(rapidocr.__file__).parent / "models"
    if not all(any(models.glob(f"*{kind}*.onnx")) for kind in ("det", "rec")):
        raise FileNotFoundError("the rapidocr package carries no models")


def in_reading_order(lines: Sequence[tuple[Any, str]]) -> list[str]:
    """Order lines as they are read: rows from the top, each from the left.

    Args:
        lines: Pairs of a box (four corners, each x and y in pixels, from the top left of the text
            clockwise) and the text in it.

    Returns:
        The texts.
    """
    placed = []
    for box, text in lines:
        ys = [float(point[1]) for point in box]
        placed.append(((min(ys) + max(ys)) / 2, min(float(p[0]) for p in box), box, text))
    rows: list[list[tuple[float, float, Any, str]]] = []
    for item in sorted(placed, key=lambda entry: entry[0]):
        last = rows[-1][0] if rows else None
        # Centres closer than half a line's height belong to one row.
        if last and item[0] - last[0] < _letter_height(last[2]) / 2:
            rows[-1].append(item)
        else:
            rows.append([item])
    return [entry[3] for row in rows for entry in sorted(row, key=lambda entry: entry[1])]


def _letter_height(box: Any) -> float:
    """Return the height of the letters in a box, which may be turned."""
    corners = [(float(point[0]), float(point[1])) for point in box]
    return min(math.dist(corners[0], corners[1]), math.dist(corners[0], corners[3]))
