"""Create the working folder of `captioner init`."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.settings.flags import all_options

DEMO = "OpenDCAI/dataflow-demo-image"
"""DataFlow-MM's demo images on the Hugging Face hub."""

_PROJECT = Path(__file__).with_name("project")


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
    contents = {
        path.relative_to(_PROJECT): path.read_bytes()
        for path in sorted(_PROJECT.rglob("*.*"))
        if path.suffix != ".pyc"
    }
    contents[Path("captioner.toml")] = options_file().encode()
    for path in contents:
        for place in (path, *path.parents[:-1]):
            if (folder / place).is_symlink():  # it may lead to files of others
                raise SettingsError(f"{folder / place} is a link; choose another folder")
        if (folder / path).exists():
            raise SettingsError(f"{folder / path} is there already; choose another folder")
    if download:
        needed("huggingface_hub")
    try:
        for path, data in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("xb") as file:  # never through a link
                file.write(data)
    except OSError as error:
        raise SettingsError(f"cannot write into {folder}: {error.strerror}") from None
    if download:
        _download(folder / "example_data" / DEMO.partition("/")[2])
    options = "--config captioner.toml -o captions.json --offline"
    return [
        f"captioner example_data/image_caption/sample_data.json {options}",
        "python api_pipelines/image_caption.py",
    ]


def _download(target: Path) -> None:
    hub = needed("huggingface_hub")
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
        "## Options of captioner. Remove the # from a line to set its option. The command line",
        "## overrides this file. Keep API keys in environment variables, not here.",
    ]
    shown = [option for option in all_options().values() if not option.hidden]
    for group, options in groupby(shown, lambda option: option.group):
        lines += ["", f"## ---- {group} ----"]
        for option in options:
            lines += ["", *(f"## {line}" for line in textwrap.wrap(option.help, 93))]
            if option.default is None:
                lines.append("## Not set by default; for example:")
            value = _EXAMPLES_OF[option.name] if option.default is None else option.default
            lines.append(f"# {option.key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


_EXAMPLES_OF: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "extra_body": '{"seed": 7}',
    "serve": "qwen3-vl-8b",
    "replicas": 1,
    "max_outage": 3600.0,
    "stop_after": 25,
    "rpm": 500.0,
    "tpm": 200_000.0,
    "max_tokens": 512,
    "temperature": 0.2,
    "detail": "low",
    "preset": "dense",
    "pick": "best",
    "stages": "detailed",
    "schema": "schema.json",
    "input_format": "jsonl",
    "split": "train",
    "image_field": "image",
    "conversation_field": "conversation",
    "prompt_field": "prompt",
    "id_field": "id",
    "image_root": ".",
    "prompt_file_in_folder": "prompt.txt",
    "existing": "skip",
    "caption_template": "ohwx man, {{ caption }}",
    "prefix": "ohwx man, ",
    "suffix": ", photograph",
    "max_clip_tokens": 75,
    "max_t5_tokens": 255,
    "t5_tokenizer": "t5/tokenizer.json",
    "tags": "given",
    "limit": 100,
    "where": "size > 10000",
    "sample": 20,
    "redo": "length < 20",
    "max_length": 2000,
    "resize": 1024,
    "max_pixels": 1_000_000,
    "frames": 8,
    "budget": "10usd",
    "budget_per_run": "10usd",
    "prices": "prices.toml",
    "cache": "cache",
    "output_format": "jsonl",
    "log_file": "run.log",
    "metrics_port": 9090,
    "batch_max_wait": 24.0,
    "to_batch_file": "requests.jsonl",
    "from_batch_file": "replies.jsonl",
    "shards": 8,
    "workers": 4,
}
"""Example values of the options that are not set by default."""
