"""The card of a data set: what made the captions, how many there are, and how good they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from captioner.core.humanize import counted, printable, printable_lines
from captioner.journal.companions import failures_path, output_of
from captioner.outputs.report import failures_by_code
from captioner.outputs.rows import Row
from captioner.outputs.statistics import caption_statistics
from captioner.settings.options import DEFAULT_PROMPT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from captioner.outputs.reader import OutputReader

CARD = "README.md"
SHARDS = "data/train-*.parquet"
MARK = "\n- captioner\n"
"""The tag of each card."""

_SIZES = {"n<1K": 1_000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": 1_000_000}


@dataclass
class Counts:
    """Counts of a data set's rows.

    Attributes:
        rows: Rows in it.
        left_out: Captions that are not in it.
        earlier: Rows that earlier settings made, by the identity of these settings.
    """

    rows: int = 0
    left_out: int = 0
    earlier: Counter[int] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Count a row."""
        self.rows += 1
        if isinstance(row, Row):
            self.earlier[id(row.made)] += 1


def card(reader: OutputReader, counts: Counts, name: str) -> str:
    """Return the card of a data set as Markdown, with its metadata as YAML.

    Args:
        reader: The captions.
        counts: The rows that were written.
        name: Its name on the hub, or that of its folder.
    """
    made = [(reader.settings, counts.rows - counts.earlier.total())]
    made += [(one, counts.earlier[id(one)]) for one in reader.made.settings]
    parts = [_metadata(counts, name), f"# {_plain(name.rpartition('/')[2])}"]
    rows = counted(counts.rows, "captioned image")
    parts.append(f"{rows}. The captions were written by a model with captioner; they may be wrong.")
    parts.append("\n".join(_numbers(reader, counts)))
    for settings, count in made:
        if count:
            model = f"`{_plain(str(settings.get('model') or 'unknown'))}`"
            parts.append(f"## {counted(count, 'caption')} by {model}\n\n{_asked(settings)}")
    parts.append(
        "## Load\n\n```python\nfrom datasets import load_dataset\n\n"
        f'data = load_dataset({json.dumps(name)}, split="train")\n```\n'
    )
    return "\n\n".join(parts)


def _metadata(counts: Counts, name: str) -> str:
    size = next((size for size, most in _SIZES.items() if counts.rows < most), "n>1M")
    return (
        f"---\npretty_name: {json.dumps(name.rpartition('/')[2])}\n"
        "task_categories:\n- image-to-text\ntags:\n- image-captioning"
        f"{MARK}size_categories:\n- {size}\n"
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n"
        f"    path: {SHARDS}\n---"
    )


def _numbers(reader: OutputReader, counts: Counts) -> Iterator[str]:
    """Yield the rows of a table of what was counted and measured."""
    quality = caption_statistics(reader.captions())
    output = output_of(reader.journal)
    failures = failures_by_code(failures_path(output), failures_path(reader.journal))
    failed = ", ".join(f"{one.total:,} {_plain(code)}" for code, one in failures.items())
    found = {
        "images": f"{counts.rows:,}",
        "captions without an image on the machine, left out": counts.left_out,
        "records that could not be captioned": failed,
        "characters of a caption": _spread(quality.chars),
        "words of a caption": _spread(quality.words),
        "captions that repeat another": f"{quality.duplicates:,}",
        "captions that nearly repeat another": (
            f"{quality.near_duplicates:,} of a sample of {quality.sample:,}"
        ),
        "captions that read like a refusal": f"{quality.refusals:,}",
        "languages of a sample": ", ".join(
            f"{count:,} {name}" for name, count in quality.languages.items()
        ),
    }
    if reader.reviews is not None:
        verdicts = reader.verdicts()
        reviewed = [f"{verdicts[one]:,} {one}" for one in ("accepted", "edited", "rejected")]
        found["reviewed by a person"] = f"{', '.join(reviewed)}, {verdicts['none']:,} not"
    yield "| | |\n| --- | --- |"
    for name, value in found.items():
        if value:
            yield f"| {name} | {value} |"


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['min']:,} to {found['max']:,}, median {found['median']:,}"


def _asked(settings: Mapping[str, Any]) -> str:
    """Return what was asked, as Markdown."""
    if stages := settings.get("stages"):
        return "\n\n".join(map(_stage, stages))
    questions = [str(one).partition("=")[2] for one in settings.get("ask") or ()]
    mix = [str(one) for one in settings.get("prompt_mix") or ()]
    own = settings.get("prompt")
    if file := settings.get("prompt_file_in_folder"):
        questions.insert(0, f"(the text of {file} in each folder)")
    parts = [_block(str(text)) for text in (*([own] if own else questions), *mix)]
    if system := settings.get("system_prompt"):
        parts.insert(0, f"System prompt:\n\n{_block(str(system))}")
    if own or questions or mix:
        return "\n\n".join(parts)
    return "\n\n".join(
        [*parts, "The question of each record, or without one:", _block(DEFAULT_PROMPT)]
    )


def _stage(stage: Mapping[str, Any]) -> str:
    """Return what a stage asked, as Markdown."""
    own = stage["given"]
    models = [own.get("model"), *(own.get("fallback") or ())]
    by = ", then ".join(f"`{_plain(str(model))}`" for model in models if model)
    asked = own.get("prompt")
    parts = [f"Stage {_plain(stage['name'])}{f' by {by}' if by else ''}:"]
    parts += [_block(str(own["system_prompt"]))] if own.get("system_prompt") else []
    return "\n\n".join([*parts, _block(str(asked)) if asked else "The question of each record."])


def _plain(text: str) -> str:
    """Return a name without what Markdown or HTML would give a meaning."""
    return re.sub(r"[^\w ./:@+-]", "", printable(text))


def _block(text: str) -> str:
    """Return a text as a block that shows it as it is."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable_lines(text.strip())}\n{fence}"
