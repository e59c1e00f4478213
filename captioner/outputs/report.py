"""Report on an output: statistics, failures, and an HTML page with a sample of images."""

from __future__ import annotations

import base64
import random
from collections import Counter
from contextlib import closing, suppress
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import DecoderError, RecordError, SettingsError
from captioner.core.humanize import counted
from captioner.core.regular import writing
from captioner.journal.companions import failures_path, find_journal
from captioner.journal.disk import Files, replacing
from captioner.journal.failures import read_failures
from captioner.outputs.reader import OutputReader
from captioner.outputs.statistics import Quality, caption_statistics
from captioner.outputs.stored import local_copy
from captioner.settings.locations import location

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.images.decoder_pool import DecoderPool

THUMBNAIL = 256
"""Longer side in pixels."""

EXAMPLES = 3
"""Failures shown for each code."""

_BEGIN = "<!doctype html>"


class Failed(NamedTuple):
    """The number of failures with one code, and examples as ``(line, message)``."""

    total: int
    examples: list[tuple[int, str]]


class Report(NamedTuple):
    """The content of a report.

    Attributes:
        failures: Failures by code.
        sample: Random rows: caption, prompt, and a thumbnail as a data URI or an empty string.
    """

    output: str
    model: str
    quality: Quality
    failures: dict[str, Failed]
    sample: list[tuple[str, str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dictionary, without the sample."""
        return {
            "output": self.output,
            "model": self.model,
            "quality": self.quality._asdict(),
            "failures": {code: failed._asdict() for code, failed in self.failures.items()},
        }


def make_report(output: Path, *, sample: int = 24, image_root: Path | None = None) -> Report:
    """Return a report on an output, finished or not.

    Args:
        output: The output. One in an object store is copied for the time.
        sample: The number of random rows to show; the choice is the same each time.
        image_root: Where relative image paths start.

    Raises:
        SettingsError: There is no such output.
        OutputDamagedError: The output does not match its checkpoint.
    """
    with local_copy(output) as copy:
        journal = find_journal(copy, Files())
        with closing(OutputReader(journal, image_root=image_root)) as reader:
            return Report(
                location(output),
                str(reader.settings.get("model") or ""),
                caption_statistics(reader.captions()),
                failures_by_code(failures_path(copy), failures_path(journal)),
                _sample(reader, sample) if sample else [],
            )


def failures_by_code(*paths: Path) -> dict[str, Failed]:
    """Return the failures in files that need not exist, the most frequent code first."""
    disk = Files()
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[int, str]]] = {}
    for path in dict.fromkeys(paths):
        if disk.kind(path) != "file":
            continue
        fd = disk.open_to_read(path)
        try:
            for _, _, code, line, _ in read_failures(disk, fd):
                counts[code] += 1
                if len(shown := examples.setdefault(code, [])) < EXAMPLES:
                    failure = orjson.loads(line)
                    shown.append((int(failure.get("line") or 0), str(failure.get("message", ""))))
        finally:
            disk.close(fd)
    return {code: Failed(count, examples[code]) for code, count in counts.most_common()}


def _sample(reader: OutputReader, size: int) -> list[tuple[str, str, str]]:
    from captioner.outputs.viewer.thumbnails import thumbnail_decoders  # loads slowly

    count = sum(1 for _ in reader.lines())
    chosen = set(random.Random(0).sample(range(count), min(size, count)))  # noqa: S311 - of rows
    found = []
    contents = reader.contents
    with thumbnail_decoders(THUMBNAIL, 1) as decoders:
        for number, (row, embedded) in enumerate(reader.rows_with_images()):
            if number in chosen:
                data = contents.first_image(row, embedded)
                uri = _data_uri(data, decoders) if data else ""
                found.append((reader.first_caption(row), " ".join(contents.prompt(row)), uri))
    return found


def _data_uri(data: bytes, decoders: DecoderPool) -> str:
    """Return a thumbnail as a data URI; an empty string if the image cannot be decoded."""
    from captioner.outputs.viewer.thumbnails import thumbnail

    with suppress(RecordError, DecoderError):
        small = thumbnail(decoders, data)
        return f"data:{small.media_type};base64,{base64.b64encode(small.data).decode()}"
    return ""


# -- the page ------------------------------------------------------------------------------------


def write_page(report: Report, target: Path) -> None:
    """Write a report as one self-contained HTML file without scripts.

    Raises:
        DiskError: The disk refused; the target is unchanged.
        SettingsError: The target is a folder, or a file other than an HTML page.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; name a file for the page")
    if target.exists():
        begin = b""
        if target.is_file():
            with target.open("rb") as old:
                begin = old.read(len(_BEGIN))
        if begin != _BEGIN.encode():
            raise SettingsError(f"{target} exists and is not an HTML page; choose another name")
    with replacing(target) as partial, writing(partial) as file:
        file.write(page(report).encode())


def page(report: Report) -> str:
    """Return the HTML page. Captions and records appear as text only."""
    quality = report.quality
    failed = sum(one.total for one in report.failures.values())
    captions = counted(quality.captions, "caption")
    parts = [
        f"<p>{escape(report.output)}: {captions}, {failed:,} failed.</p>",
        "<h2>Statistics</h2><table><tbody>",
    ]
    for name, value in _statistics(quality):
        parts.append(f"<tr><th scope=row>{name}</th><td>{value}</td></tr>")
    parts.append("</tbody></table>")
    if quality.histogram:
        parts += ["<h2>Length in characters</h2>", _chart(quality.histogram)]
    for heading, pairs in (
        ("Repeated openings", quality.openings),
        ("Frequent words", quality.top_words),
        ("Languages of a sample", list(quality.languages.items())[:12]),
    ):
        if pairs:
            shown = " · ".join(f"{escape(name)}&nbsp;{count:,}" for name, count in pairs)
            parts.append(f"<h2>{heading}</h2><p>{shown}</p>")
    if report.failures:
        parts.append("<h2>Failures</h2><table><thead><tr><th>code</th><th>count</th>")
        parts.append("<th>examples</th></tr></thead><tbody>")
        for code, one in report.failures.items():
            shown = "<br>".join(f"line {line}: {escape(text)}" for line, text in one.examples)
            count = f"<td class=n>{one.total:,}</td>"
            parts.append(f"<tr><td>{escape(code)}</td>{count}<td>{shown}</td></tr>")
        parts.append("</tbody></table>")
    if report.sample:
        parts.append(f"<h2>Sample of {len(report.sample)}</h2><div class=cards>")
        for number, (text, prompt, thumbnail) in enumerate(report.sample, 1):
            image = f'<img alt="image {number} of the sample" src="{thumbnail}">'
            image = image if thumbnail else "<div class=none>the image is not available</div>"
            shown = f"<p class=prompt>{escape(prompt)}</p>" if prompt else ""
            parts.append(f"<figure>{image}<figcaption>{escape(text)}")
            parts.append(f"{shown}</figcaption></figure>")
        parts.append("</div>")
    template = Template(files("captioner.outputs").joinpath("report.html").read_text("utf-8"))
    title = f"Captions of {escape(report.model or 'a run')}"
    return template.substitute(title=title, body="\n".join(parts))


def _statistics(quality: Quality) -> list[tuple[str, str]]:
    def spread(found: dict[str, float]) -> str:
        return (
            f"{found['min']:,} to {found['max']:,}, median {found['median']:,}, mean "
            f"{found['mean']:,}, 95th percentile {found['p95']:,}"
        )

    return [
        ("characters", spread(quality.chars)),
        ("words", spread(quality.words)),
        ("exact duplicates", f"{quality.duplicates:,}"),
        ("near-duplicates", f"{quality.near_duplicates:,} of a sample of {quality.sample:,}"),
        ("refusals", f"{quality.refusals:,}"),
        ("distinct words", f"{quality.vocabulary:,}"),
    ]


def _chart(classes: list[tuple[float, int]]) -> str:
    """Return a bar chart as SVG."""
    most = max(count for _, count in classes) or 1
    width = 720 / len(classes)
    label = f"Captions by length, {classes[0][0]} characters per bar, at most {most:,} in a bar"
    view = 'viewBox="0 0 720 190" preserveAspectRatio="none"'
    parts = [f'<svg {view} role="img" aria-label="{label}">']
    for number, (bound, count) in enumerate(classes):
        height = 160 * count / most
        left, top = number * width + 1, 165 - height
        size = f'width="{width - 2:.1f}" height="{height:.1f}"'
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size}/>')
        if number % 4 == 3:
            right = f'x="{(number + 1) * width:.1f}" y="182" text-anchor="end"'
            parts.append(f"<text {right}>{bound:,}</text>")
    return "".join([*parts, "</svg>"])
