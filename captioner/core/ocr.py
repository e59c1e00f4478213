"""Reading the text in an image with RapidOCR and the models in its wheel."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_SIDE = 1280  # pixels; enough for a page of print, and under a second on two cores
_MIN_SIDE = 12  # pixels; narrower strips hold no letters, and RapidOCR is slow on them
_MIN_HEIGHT = 0.02  # of the image's height; smaller letters are mostly misread
_MIN_CHARACTERS = 2  # a cup, a pupil or a wheel is read as a single 0, 8 or O
_OPTIONS = {
    "Global.log_level": "critical",
    "Global.text_score": 0.8,
    "Global.use_cls": False,  # it turns some upright lines upside down
    "EngineConfig.onnxruntime.intra_op_num_threads": 2,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Det.limit_type": "max",  # enlarging small images is slow and reads worse
    "Det.limit_side_len": _SIDE,
}
_lock = threading.Lock()  # RapidOCR keeps the state of the current image in its engine


def ocr_available() -> bool:
    """Return whether the packages that read text in images are installed."""
    return all(find_spec(name) for name in ("numpy", "onnxruntime", "rapidocr"))


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
        try:
            found = engine(small)
        except Exception as error:  # noqa: BLE001 - third-party code on untrusted images
            logger.warning("The text of an image could not be read: %s", error)
            return []
    # The result is of another class, without `txts`, if there is no text.
    if getattr(found, "txts", None) is None or found.boxes is None:
        return []
    return [
        text
        for box, text in zip(found.boxes.tolist(), found.txts, strict=True)
        # The shorter side of the box, which may be rotated, is the height of the letters.
        if min(math.dist(box[0], box[1]), math.dist(box[0], box[3])) >= _MIN_HEIGHT * small.height
        and sum(map(str.isalnum, text)) >= _MIN_CHARACTERS
    ]


@functools.cache
def load_engine() -> Any:
    """Load the OCR models; return None, with a warning, if that fails."""
    try:
        importlib.import_module("onnxruntime")  # RapidOCR would import it only at the first image
        rapidocr = importlib.import_module("rapidocr")
        models = Path(rapidocr.__file__ or "").parent / "models"
        if not (list(models.glob("*det*.onnx")) and list(models.glob("*rec*.onnx"))):
            # RapidOCR would download them.
            raise FileNotFoundError("the rapidocr package contains no models")  # noqa: TRY301
        return rapidocr.RapidOCR(params=_OPTIONS)
    except Exception as error:  # noqa: BLE001 - captions do without text if OCR is broken
        logger.warning("Text in images is not read: OCR did not load (%s).", error)
        return None
