"""One file to send to someone: what a run's captions are like, a sample with images, failures."""

from __future__ import annotations

import base64
import html
import io
import random
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from captioner.core.errors import DecoderError, RecordError, SettingsError
from captioner.core.types import ImageOverrides
from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import FitOptions
from captioner.journal.disk import Files
from captioner.journal.failures import failures_path, read_failures
from captioner.journal.journal import find_journal
from captioner.outputs.export.atomic import replacing
from captioner.outputs.reader import OutputReader
from captioner.outputs.statistics import Quality, look_at
from captioner.settings.options import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

THUMBNAIL = 256
"""Longer side in pixels."""

EXAMPLES = 3
"""Failures shown of each kind."""

_REDRAW = ImageOverrides(1.0, redraw=True)


class Failed(NamedTuple):
    """Failures of one kind: how many, and some of them as ``(line, message)``."""

    total: int
    examples: list[tuple[int, str]]


class Report(NamedTuple):
    """What a report says.

    Attributes:
        output: The captions.
        model: That made them.
        quality: What they are like.
        failures: By code.
        sample: Some rows at random: caption, prompt, and a thumbnail as a data URI or nothing.
    """

    output: str
    model: str
    quality: Quality
    failures: dict[str, Failed]
    sample: list[tuple[str, str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dictionary, without the sample's images."""
        return {
            "output": self.output,
            "model": self.model,
            "quality": self.quality.as_dict(),
            "failures": {code: failed._asdict() for code, failed in self.failures.items()},
        }


def make_report(
    output: Path,
    *,
    sample: int = 24,
    image_root: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Report:
    """Look at the captions of a run, finished or not.

    Args:
        output: The captions.
        sample: Rows to show, chosen at random, the same ones each time.
        image_root: Where relative paths of images start from.
        warn: Called with a sentence when something is worth knowing but no error.

    Raises:
        SettingsError: There is no such output.
        OutputDamagedError: It is not what we wrote.
    """
    journal = find_journal(output, Files())
    with closing(OutputReader.open(journal, image_root=image_root, warn=warn)) as book:
        quality = look_at(_texts(book))
        return Report(
            str(output),
            str(book.settings.get("model") or ""),
            quality,
            _failures(failures_path(output), failures_path(journal)),
            _sample(book, sample) if sample else [],
        )


def _texts(book: OutputReader) -> Iterator[str]:
    for row in book.rows():
        for field in book.fields:
            yield from book.texts(row, field)


def _failures(*places: Path) -> dict[str, Failed]:
    files = Files()
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[int, str]]] = {}
    for path in dict.fromkeys(places):
        if files.kind(path) != "file":
            continue
        fd = files.open_to_read(path)
        try:
            for _, _, code, line in read_failures(files, fd):
                counts[code] += 1
                if len(shown := examples.setdefault(code, [])) < EXAMPLES:
                    failure = orjson.loads(line)
                    shown.append((int(failure.get("line") or 0), str(failure.get("message", ""))))
        finally:
            files.close(fd)
    return {code: Failed(count, examples[code]) for code, count in counts.most_common()}


def _sample(book: OutputReader, size: int) -> list[tuple[str, str, str]]:
    count = sum(1 for _ in book.lines())
    chosen = random.Random(0).sample(range(count), min(size, count))  # noqa: S311 - of rows
    wanted = set(chosen)
    found = []
    images = ImageSettings(max_side=THUMBNAIL, min_side=1)
    with DecoderPool(FitOptions(images), 1) as decoders:
        for number, (row, held) in enumerate(book.rows_with_images()):
            if number in wanted:
                shown_images = book.images(row)
                data = book.image_bytes(shown_images[0], held) if shown_images else None
                turns = book.turns(row)
                asked = [part for part in turns[-1].parts if isinstance(part, str)] if turns else []
                thumbnail = _thumbnail(data, decoders) if data else ""
                found.append((book.texts(row)[0], " ".join(asked), thumbnail))
    return found


def _thumbnail(data: bytes, decoders: DecoderPool) -> str:
    """Return a small image as a data URI; nothing where it cannot be drawn."""
    try:
        drawn = decoders.render(data, _REDRAW)[0]
    except (RecordError, DecoderError):
        return ""
    return f"data:{drawn.media_type};base64,{base64.b64encode(drawn.data).decode()}"


# -- the page ------------------------------------------------------------------------------------

_BEGIN = "<!doctype html>"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #2f6fb3; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid var(--line); } td.n { text-align: right; }
h1, p, td:last-child { overflow-wrap: anywhere; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: .4rem; overflow: hidden; }
figure img { width: 100%; height: 11rem; object-fit: contain; background: var(--soft);
display: block; } figcaption { padding: .6rem .8rem; overflow-wrap: anywhere; }
.none { height: 11rem; display: grid; place-items: center; background: var(--soft); }
.asked { font-size: .85rem; opacity: .8; margin: .4rem 0 0; }
svg { width: 100%; height: 12rem; } svg rect { fill: var(--bar); }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
"""


def write_page(report: Report, target: Path) -> None:
    """Write a report as one HTML file that needs nothing else, and runs no scripts.

    Raises:
        DiskError: The disk refused; the file is as it was.
        SettingsError: Something else is there.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder: name a file for the page")
    if target.exists():
        with target.open("rb") as file:
            if file.read(len(_BEGIN)) != _BEGIN.encode():
                raise SettingsError(f"{target} is there already, and is no page; choose another")
    with replacing(target) as partial:
        partial.write_text(page(report), "utf-8")


def page(report: Report) -> str:
    """Return the page; whatever captions and records hold is text in it."""
    quality = report.quality
    out = io.StringIO()
    write = out.write
    title = f"Captions of {html.escape(report.model or 'a run')}"
    write(f'{_BEGIN}<html lang="en"><head><meta charset="utf-8">')
    write('<meta name="viewport" content="width=device-width, initial-scale=1">')
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    write(f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
    write(f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>")
    failed = sum(one.total for one in report.failures.values())
    write(f"<p>{html.escape(report.output)}: {quality.captions:,} captions, {failed:,} failed.</p>")
    write("<h2>What they are like</h2>")
    _table(write, _facts(quality))
    if quality.histogram:
        write("<h2>Length in characters</h2>")
        _chart(write, quality.histogram)
    for heading, pairs in (
        ("Repeated openings", quality.openings),
        ("Frequent words", quality.top_words),
        ("Languages of a sample", list(quality.languages.items())[:12]),
    ):
        if pairs:
            shown = " · ".join(f"{html.escape(name)}&nbsp;{count:,}" for name, count in pairs)
            write(f"<h2>{heading}</h2><p>{shown}</p>")
    if report.failures:
        write("<h2>Failures</h2><table><thead><tr><th>code</th><th>how many</th>")
        write("<th>for example</th></tr></thead><tbody>")
        for code, one in report.failures.items():
            shown = "<br>".join(
                f"line {line:,}: {html.escape(message)}" for line, message in one.examples
            )
            write(f"<tr><td>{html.escape(code)}</td><td class=n>{one.total:,}</td>")
            write(f"<td>{shown}</td></tr>")
        write("</tbody></table>")
    if report.sample:
        write(f"<h2>{len(report.sample)} at random</h2><div class=cards>")
        for number, (text, asked, thumbnail) in enumerate(report.sample, 1):
            write("<figure>")
            if thumbnail:
                write(f'<img alt="image {number} of the sample" src="{thumbnail}">')
            else:
                write("<div class=none>the image is not at hand</div>")
            write(f"<figcaption>{html.escape(text)}")
            if asked:
                write(f"<p class=asked>{html.escape(asked)}</p>")
            write("</figcaption></figure>")
        write("</div>")
    write("</main></body></html>\n")
    return out.getvalue()


def _facts(quality: Quality) -> list[tuple[str, str]]:
    def spread(found: dict[str, float]) -> str:
        return (
            f"{found['min']:,} to {found['max']:,}, median {found['median']:,}, mean "
            f"{found['mean']:,}, 95 of 100 up to {found['p95']:,}"
        )

    return [
        ("characters", spread(quality.chars)),
        ("words", spread(quality.words)),
        ("word-for-word duplicates", f"{quality.duplicates:,}"),
        ("near-duplicates", f"{quality.near_duplicates:,} of a sample of {quality.sample:,}"),
        ("read like a refusal", f"{quality.refusals:,}"),
        ("different words", f"{quality.vocabulary:,}"),
    ]


def _table(write: Callable[[str], Any], rows: list[tuple[str, str]]) -> None:
    write("<table><tbody>")
    for name, value in rows:
        write(f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>")
    write("</tbody></table>")


def _chart(write: Callable[[str], Any], classes: list[tuple[int, int]]) -> None:
    """Draw bars, the tallest as high as the chart."""
    most = max(count for _, count in classes) or 1
    width = 720 / len(classes)
    label = f"Captions by length, {classes[0][0]} characters a bar, {most:,} in the highest"
    write(f'<svg viewBox="0 0 720 190" role="img" aria-label="{label}" preserveAspectRatio="none">')
    for number, (bound, count) in enumerate(classes):
        height = 160 * count / most
        write(f'<rect x="{number * width + 1:.1f}" y="{165 - height:.1f}" ')
        write(f'width="{width - 2:.1f}" height="{height:.1f}"/>')
        if number % 4 == 3:
            write(
                f'<text x="{(number + 1) * width:.1f}" y="182" text-anchor="end">{bound:,}</text>'
            )
    write("</svg>")
