"""Create the working folder of `captioner init`."""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.settings.options import GROUPS
from captioner.settings.validation import flag_name

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = "OpenDCAI/dataflow-demo-image"
"""DataFlow-MM's demo images on the Hugging Face hub."""

_EXAMPLES = Path("example_data/image_caption")
_SIZE = (320, 240)


def make_folder(folder: Path, *, download: bool = False) -> list[str]:
    """Create a working folder, without changing files that exist.

    Args:
        folder: The folder, which may exist.
        download: Also download `DEMO` into ``example_data``.

    Returns:
        Two command lines that work in the folder.

    Raises:
        SettingsError: One of the files exists already, or the download fails.
    """
    project = files("captioner.cli.init") / "project"
    texts = {
        Path("README.md"): project.joinpath("README.md").read_text("utf-8"),
        Path("captioner.toml"): options_file(),
        Path("api_pipelines/image_caption.py"): project.joinpath("image_caption.py").read_text(
            "utf-8"
        ),
        _EXAMPLES / "sample_data.json": json.dumps(_records(), indent=2) + "\n",
    }
    images = {_EXAMPLES / f"{name}.png": draw for name, draw in _IMAGES.items()}
    for path in (*texts, *images):
        if (folder / path).exists():
            raise SettingsError(f"{folder / path} is there already; choose another folder")
    if download:
        needed("huggingface_hub", "hf")
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
        for path, draw in images.items():
            image = Image.new("RGB", _SIZE, "white")
            draw(ImageDraw.Draw(image))
            image.save(folder / path)
    except OSError as error:
        raise SettingsError(f"cannot write into {folder}: {error.strerror}") from None
    if download:
        _download(folder / "example_data" / DEMO.partition("/")[2])
    options = "--config captioner.toml -o captions.json --offline"
    return [
        f"captioner {_EXAMPLES}/sample_data.json {options}",
        "python api_pipelines/image_caption.py",
    ]


def _download(target: Path) -> None:
    hub = needed("huggingface_hub", "hf")
    try:
        hub.snapshot_download(DEMO, repo_type="dataset", local_dir=target)
    except Exception as error:  # noqa: BLE001 - the library raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise SettingsError(
            f"the folder is created, but {DEMO} cannot be fetched: {reason}"
        ) from None


def options_file() -> str:
    """Return a TOML file in which every option is a comment with its meaning and a value."""
    lines = [
        "# Options of captioner. Remove the # from a line to set its option. The command line",
        "# overrides this file. Keep API keys in environment variables, not here.",
    ]
    for kind in GROUPS.values():
        lines += ["", f"# ---- {kind.__doc__.rstrip('.')} ----"]
        for option in fields(kind):
            text = option.metadata["help"]
            lines += ["", *(f"# {line}" for line in textwrap.wrap(text, 94))]
            if option.default is None:
                lines.append("# Not set by default; for example:")
            value = _EXAMPLES_OF[option.name] if option.default is None else option.default
            lines.append(f"# {flag_name(option.name)} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


_EXAMPLES_OF: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "extra_body": '{"seed": 7}',
    "max_outage": 3600.0,
    "rpm": 500.0,
    "tpm": 200_000.0,
    "max_tokens": 512,
    "temperature": 0.2,
    "detail": "low",
    "preset": "dense",
    "schema": "schema.json",
    "input_format": "jsonl",
    "image_field": "image",
    "conversation_field": "conversation",
    "prompt_field": "prompt",
    "id_field": "id",
    "image_root": ".",
    "limit": 100,
    "max_length": 2000,
    "max_side": 1024,
    "max_pixels": 1_000_000,
    "size_for": "gpt-4o",
    "budget": 10.0,
    "budget_tokens": 1_000_000,
    "prices": "prices.json",
    "cache": "cache",
    "retry_failed": "all",
    "output_format": "jsonl",
    "metrics_port": 9090,
    "batch_max_wait": 24.0,
    "to_batch_file": "requests.jsonl",
    "from_batch_file": "replies.jsonl",
    "ray_address": "auto",
    "shards": 8,
    "workers": 4,
}
"""Example values of the options that are not set by default."""


def _records() -> list[dict[str, Any]]:
    question = "Generate detailed captions based on image content."
    return [
        {
            "image": [f"./{name}.png"],
            "conversation": [{"from": "human", "value": question}],
        }
        for name in _IMAGES
    ]


def _ball(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 150, 320, 240), fill="#3c8d40")
    draw.rectangle((0, 0, 320, 150), fill="#9fd3f2")
    draw.ellipse((110, 90, 210, 190), fill="#d0342c")


def _sign(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((30, 60, 290, 180), fill="#1f3a93")
    draw.text((160, 120), "PLATFORM 9", fill="white", anchor="mm", font_size=36)


def _chart(draw: ImageDraw.ImageDraw) -> None:
    for number, height in enumerate((60, 110, 90, 160, 200)):
        left = 30 + 54 * number
        draw.rectangle((left, 220 - height, left + 40, 220), fill="#e08e0b")
    draw.line((20, 220, 300, 220), fill="black", width=3)


_IMAGES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "ball": _ball,
    "sign": _sign,
    "chart": _chart,
}
