"""Reading the text in an image with RapidOCR and the models in its wheel."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.endpoints.offline import ocr_available

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_SIDE = 1280  # pixels; enough for a page of print, and under a second on two cores
_MIN_SIDE = 12  # pixels; narrower strips hold no letters, and RapidOCR is slow on them
_MIN_CONFIDENCE = 0.8
_MIN_HEIGHT = 0.02  # of the image's height; smaller letters are mostly misread
_MIN_CHARACTERS = 2  # a cup, a pupil or a wheel is read as a single 0, 8 or O
_OPTIONS = {
    "Global.log_level": "critical",
    "EngineConfig.onnxruntime.intra_op_num_threads": 2,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.use_cls": False,  # it turns some upright lines upside down
    "Det.limit_type": "max",  # enlarging small images is slow and reads worse
    "Det.limit_side_len": _SIDE,
}
_lock = threading.Lock()  # RapidOCR keeps the state of the current image in its engine


def read_text(image: Image.Image) -> list[str]:
    """Return the clear lines of text in an RGB image, in reading order.

    The list is empty if OCR is not installed or does not work.
    """
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    if min(small.size) < _MIN_SIDE or not ocr_available():
        return []
    with _lock:
        if (engine := load_engine()) is None:
            return []
        numpy = importlib.import_module("numpy")
        try:
            # RapidOCR expects blue first, as OpenCV does.
            found = engine(numpy.ascontiguousarray(numpy.asarray(small)[:, :, ::-1]))
        except Exception as error:  # noqa: BLE001 - third-party code on untrusted images
            logger.warning("The text of an image could not be read: %s", error)
            return []
    # The result is of another class, without `txts`, if there is no text.
    if getattr(found, "txts", None) is None or found.boxes is None:
        return []
    return _in_reading_order(
        (box, text)
        for box, text, score in zip(found.boxes.tolist(), found.txts, found.scores, strict=True)
        if score >= _MIN_CONFIDENCE
        and _letter_height(box) >= _MIN_HEIGHT * small.height
        and sum(map(str.isalnum, text)) >= _MIN_CHARACTERS
    )


@functools.cache
def load_engine() -> Any:
    """Load the OCR models; return None, with a warning, if that fails."""
    try:
        importlib.import_module("onnxruntime")  # RapidOCR would import it only at the first image
        rapidocr = importlib.import_module("rapidocr")
        models = Path(rapidocr.__file__ or "").parent / "models"
        if not list(models.glob("*det*.onnx")) or not list(models.glob("*rec*.onnx")):
            return _give_up("the rapidocr package contains no models")  # it would download them
        return rapidocr.RapidOCR(params=_OPTIONS)
    except Exception as error:  # noqa: BLE001 - captions do without text if OCR is broken
        return _give_up(error)


def _give_up(reason: object) -> None:
    logger.warning("Text in images is not read: OCR did not load (%s).", reason)


def _in_reading_order(lines: Any) -> list[str]:
    """Order pairs of box and text by rows from the top, and each row from the left."""
    rows: list[list[tuple[Any, str]]] = []
    for box, text in sorted(lines, key=lambda line: _middle(line[0])):
        # Lines whose middles are closer than half a letter belong to one row.
        if rows and _middle(box) - _middle(rows[-1][0][0]) < _letter_height(rows[-1][0][0]) / 2:
            rows[-1].append((box, text))
        else:
            rows.append([(box, text)])
    return [text for row in rows for _, text in sorted(row, key=lambda line: min(line[0])[0])]


def _middle(box: Any) -> float:
    heights = [y for _, y in box]
    return float(min(heights) + max(heights)) / 2


def _letter_height(box: Any) -> float:
    """Return the shorter side of a box, which may be rotated."""
    return min(math.dist(box[0], box[1]), math.dist(box[0], box[3]))
