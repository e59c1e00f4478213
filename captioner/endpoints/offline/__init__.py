"""The endpoint behind ``--offline`` and ``captioner serve``: a demo, not a vision-language model.

It speaks the OpenAI chat completions protocol and describes an image by its size, colours, light,
sharpness and legible text. It recognises no objects and does not read the prompt.
"""

from importlib.util import find_spec


def ocr_available() -> bool:
    """Return whether the packages that read text in images are installed."""
    return all(find_spec(name) for name in ("numpy", "onnxruntime", "rapidocr"))
