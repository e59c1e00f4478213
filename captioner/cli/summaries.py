"""Summaries in a few lines: of a run, an estimate, a report, scores, a check."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from captioner.core.bottleneck import CAUSES
from captioner.core.errors import LimitReachedError
from captioner.core.humanize import counted, duration, money, printable, short
from captioner.core.subprocesses import program
from captioner.settings.locations import location
from captioner.settings.remembered import not_remembered

if TYPE_CHECKING:
    from captioner.core.progress import RunReport
    from captioner.engine.estimate import Estimate
    from captioner.outputs.check import CheckReport
    from captioner.outputs.report import Report
    from captioner.outputs.scores import Scores
    from captioner.settings.settings import Settings

BYTES = ("byte", "bytes")
KEPT = (
    "record kept with its own caption",
    "records kept with their own captions",
    "(--existing skip)",
)
ORPHANS = (
    "caption belongs to a record that the input no longer has",
    "captions belong to records that the input no longer has",
)


def summarise(report: RunReport, settings: Settings) -> str:
    """Return what a run did and what to do next."""
    if report.complete and not (report.calls or report.captioned or report.failed):
        all_of_them = "the only one was" if report.resumed == 1 else f"all {report.resumed:,} were"
        what = f"{all_of_them} captioned before"
        return f"nothing to do: {what if report.resumed else 'the input has no records'}"
    rate = f", {report.captioned / report.seconds:.1f}/s" if report.captioned else ""
    lines = [f"{report.captioned:,} captioned in {duration(report.seconds)}{rate}"]
    if report.resumed:
        lines[0] += f"; {counted(report.resumed, 'was', 'were')} done before"
    lines += [*_shares(report), _spent(report)]
    lines += _counts(
        (report.shared, "record has", "records have", "the caption of an equal request (--dedup)"),
        (report.cached, "answer", "answers", "came from the cache"),
    )
    if report.held_by:
        cause = CAUSES[report.held_by]
        share = f"{report.held_share:.0%} of the time"
        lines.append(f"held back by {cause.what} ({share}); to be faster, {cause.advice}")
    if report.output is not None:
        lines.append(f"captions: {report.output}")
    changed = (
        "new content under the same id; the old caption was kept. To caption such a record again, "
        "remove its line from the output and run with --accept-changes=edits"
    )
    lines += _counts(
        (report.skipped, "record", "records", "skipped, equal to an earlier one"),
        (report.existing, *KEPT),
        (report.changed, "record has", "records have", changed),
        (report.orphans, *ORPHANS, "(kept at the end of the output)"),
    )
    if report.failed:
        lines.append(f"{report.failed:,} failed: {report.failures or 'see above'}")
        for code, count in sorted(report.codes.items(), key=lambda item: -item[1]):
            number, message = report.examples[code]
            lines.append(f"  {count:,} {code}, for example line {number}: {message}")
    if report.output is not None:
        lines += _next_steps(report, settings)
    return "\n".join(printable(line) for line in lines)


def _shares(report: RunReport) -> list[str]:
    """Return the number of records by outcome; nothing if all have the same outcome."""
    counts = {
        "captioned": report.captioned,
        "captioned before": report.resumed,
        "failed": report.failed,
        "skipped": report.skipped,
        "kept": report.existing,
        "pending": report.pending,
    }
    shares = [f"{count:,} {what}" for what, count in counts.items() if count]
    total = counted(sum(counts.values()), "record")
    total += "" if report.complete else " read"
    return [f"{total}: {', '.join(shares)}"] if len(shares) > 1 else []


def _spent(report: RunReport) -> str:
    cached = f" ({short(report.cached_tokens)} cached)" if report.cached_tokens else ""
    tokens = f"{short(report.prompt_tokens)} in{cached}, {short(report.completion_tokens)} out"
    retries = (
        f", {counted(report.retries, 'retry', 'retries')} among them" if report.retries else ""
    )
    line = f"{counted(report.calls, 'request')}{retries}; tokens: {tokens}"
    if report.cost is not None:
        line += f"; {money(report.cost)}"
    if report.total_cost is not None and report.total_cost != report.cost:
        line += f", with earlier runs {money(report.total_cost)}"
    return line


def _next_steps(report: RunReport, settings: Settings) -> list[str]:
    """Return the commands that go on from here."""
    lines = []
    if settings.cluster.engine == "ray":  # whose output remembers no options until it is finished
        advice = _again(settings, "--ray", *(["--retry", "failed"] if report.complete else []))
        return [f"with the same options: {advice}"] if report.failed or not report.complete else []
    if report.failed:
        lines.append(f"retry them: {_again(settings, '--retry', 'failed')}")
    if not report.complete and (file := settings.batch.to_batch_file) is not None:
        answered = _again(settings, "--from-batch-file", "ANSWERS")
        lines.append(f"requests: {file}; when they are answered: {answered}")
    elif not report.complete:
        again = _redone(settings)
        more = ""
        if report.stopped == LimitReachedError.__name__ and _is_spent(settings):
            again, more = [*again, "--budget", "AMOUNT"], " with a larger budget"
        lines.append(f"not finished; continue{more}: {_again(settings, *again)}")
    if lines and (missing := not_remembered(settings)):
        lines.append(f"the output does not remember {', '.join(missing)}: add the same")
    return lines


def describe_estimate(found: Estimate, settings: Settings) -> str:
    """Return what a run will take."""
    counts = ((found.records, "record"), (found.requests, "request"), (found.images, "image"))
    lines = [
        f"{', '.join(counted(*one) for one in counts)}, {short(found.upload_bytes)}B to upload"
    ]
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(found.bad.items()))
    lines += _counts(
        (found.shared, "record gets", "records get", "the caption of an equal one (--dedup)"),
        (sum(found.bad.values()), "record", "records", f"cannot be sent: {codes}"),
        (found.existing, *KEPT),
        (found.unfetched, "image was", "images were", "not fetched; the size is a guess"),
    )
    for stage in found.stages:
        cost = "no price is known" if stage.cost is None else money(stage.cost)
        tokens = f"{short(stage.prompt_tokens)} tokens in, {short(stage.completion_tokens)} out"
        about = "about " if stage.is_guess else "at most " if stage.is_bound else ""
        asked = f"{about}{counted(stage.requests, 'request')}"
        lines.append(f"stage {stage.name}: {asked}, {tokens}, {cost}")
    by = (
        "by formula"
        if found.stages
        else f"corrected by {counted(found.probed, 'request')} sent"
        if found.probed
        else "by formula; --probe 20 sends 20 records to correct it"
    )
    lines.append(
        f"tokens: {short(found.prompt_tokens)} in, {short(found.completion_tokens)} out ({by})"
    )
    if found.cost is not None and found.batch_cost is not None:
        lines.append(f"cost: {money(found.cost)}, or {money(found.batch_cost)} with --batch-api")
    elif found.cost is not None:
        lines.append(f"cost: {money(found.cost)}")
    else:
        lines.append(
            f"cost: no price is known for {settings.endpoint.model or 'the model'} (--prices)"
        )
    if found.seconds is not None:
        lines.append(f"time: about {duration(found.seconds)}, if nothing else limits the run")
    return "\n".join(printable(line) for line in lines)


def describe_report(report: Report) -> str:
    """Return the statistics of captions."""
    quality = report.quality
    failed = sum(one.total for one in report.failures.values())
    chars = quality.chars
    lines = [
        f"{report.output}: {counted(quality.captions, 'caption')}, {failed:,} failed",
        f"characters: {chars['min']:,} to {chars['max']:,}, median {chars['median']:,}",
        f"duplicates: {quality.duplicates:,}, nearly: {quality.near_duplicates:,} of a sample",
        f"read like a refusal: {quality.refusals:,}",
        f"different words: {quality.vocabulary:,}",
    ]
    if quality.openings:
        shown = "; ".join(f"{count:,} {text!r}" for text, count in quality.openings[:3])
        lines.append(f"repeated openings: {shown}")
    if quality.languages:
        shown = ", ".join(f"{count:,} {name}" for name, count in [*quality.languages.items()][:5])
        lines.append(f"languages of a sample: {shown}")
    lines += [f"{one.total:,} failed as {code}" for code, one in report.failures.items()]
    return "\n".join(printable(line) for line in lines)


def describe_scores(found: Scores) -> str:
    """Return the scores of captions against references."""
    lines = [f"{counted(found.captions, 'caption')} compared with references"]
    lines += _counts((found.unmatched, "has", "have", "no reference"))
    lines.append(f"BLEU {found.bleu:.2f}, chrF {found.chrf:.2f}, CIDEr-D {found.cider:.3f}")
    lines.append(f"BLEU signature: {found.bleu_signature}")
    return "\n".join(printable(line) for line in lines)


def describe_check(report: CheckReport) -> str:
    """Return the state of an output."""
    lines = [f"{report.output}: {report.captioned:,} captioned, {report.failed:,} failed"]
    if report.pending is None:
        lines[0] += "; pending unknown without the input (--input)"
    else:
        lines[0] += f", {report.pending:,} pending of {report.input}"
    lines += _counts(
        (report.orphans, *ORPHANS),
        (report.tail_bytes, *BYTES, "at the end: an incomplete line, which the next run cuts off"),
        (report.torn_failures, *BYTES, "of the failures file: unreadable; the records are pending"),
        (report.unsynced_bytes, *BYTES, "not yet known to be on disk"),
    )
    if report.checkpoint != "ok":
        lines.append("there is no checkpoint; the next run reads the whole output")
    if report.in_use_by:
        lines.append(f"being written by {report.in_use_by}")
    lines += [f"damaged: {violation}" for violation in report.violations]
    return "\n".join(printable(line) for line in lines)


def _counts(*counts: tuple[int | None, *tuple[str, ...]]) -> list[str]:
    """Return a line for each count that is not 0.

    A count comes with the words after 1, those after another number, and those after both.
    """
    return [" ".join([counted(n, *words[:2]), *words[2:]]) for n, *words in counts if n]


def _again(settings: Settings, *more: str) -> str:
    named = settings.upload or (location(settings.output) if settings.output is not None else None)
    output = ["-o", named] if named is not None else []
    source = [location(path) for path in (settings.input, *settings.files) if path is not None]
    kind = settings.run.output_format
    form = ["--output-format", kind] if kind is not None else []
    form += ["--batch-api"] if settings.batch.batch_api else []
    return shlex.join([*program(), *source, *output, *form, *_chosen(settings), *more])


def _is_spent(settings: Settings) -> bool:
    """Return whether a budget that was reached leaves nothing for the next run."""
    run = settings.run
    return not run.renew_budget and (run.budget is not None or run.budget_tokens is not None)


def _redone(settings: Settings) -> list[str]:
    """Return the options that caption records again, which are not remembered."""
    run = settings.run
    found = []
    if run.redo is not None:
        found.append("--redo" if run.redo == "all" else f"--redo={run.redo}")
    if run.retry_failed is not None:
        found.append(f"--retry={'failed' if run.retry_failed == 'all' else run.retry_failed}")
    if run.retry_rejected:
        found.append("--retry=rejected")
    return found


def _chosen(settings: Settings) -> list[str]:
    """Return the options that choose records, which are not remembered."""
    records = settings.records
    values = {"where": records.where, "sample": records.sample, "limit": records.limit}
    found = [f"--{name}={value}" for name, value in values.items() if value is not None]
    if records.sample is not None and records.seed:
        found.append(f"--seed={records.seed}")
    return found
