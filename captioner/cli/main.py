"""The command line: the commands, their parameters and their exit status."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from captioner import __version__
from captioner.cli.params import Flag, Word, as_bool, run_flags
from captioner.cli.parser import Command, Group, given_options, read_config
from captioner.core.descriptors import raise_limit
from captioner.core.errors import RunError, SettingsError
from captioner.core.humanize import printable_lines
from captioner.core.shortage import shortage
from captioner.settings.options import CSV_SAFE, OutputFormat
from captioner.settings.validation import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
_COMPLETE = "_CAPTIONER_COMPLETE"


def run_command(argv: Sequence[str]) -> int:
    """Run the command line, print errors, and return the exit status.

    Internal errors are raised only with ``--debug`` or ``CAPTIONER_DEBUG``.
    """
    raise_limit()
    words = list(argv)
    debug = "--debug" in words or as_bool(os.environ.get("CAPTIONER_DEBUG", ""))
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # as in captioner report | head
        _discard_output()
        return 128 + signal.SIGPIPE
    except (SettingsError, RunError) as error:
        print(printable_lines(f"captioner: {error}"), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        print(printable_lines(f"captioner: {error.format_message()}"), file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _discard_output()
        if debug:
            raise
        print(printable_lines(f"captioner: {_describe(error)}"), file=sys.stderr)
        return 1
    return status


def _run(words: list[str]) -> int:
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(ROOT, {}, "captioner", _COMPLETE, instruction)
    if "--version" in (words[: words.index("--")] if "--" in words else words):
        print(f"captioner {__version__}")
        return 0
    try:
        with ROOT.make_context("captioner", words) as context:
            return int(context.command.invoke(context) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code


def _discard_output() -> None:
    """Keep Python from printing the rest of the output when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe(error: Exception) -> str:
    if said := shortage(error):
        return said
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write'}: {error.strerror or error}"
    return (
        f"internal error ({type(error).__name__}: {error}). Please report it; CAPTIONER_DEBUG=1 "
        "shows where it happened."
    )


class _Root(Group):
    """The command without a name captions; a first word that names a command runs that."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Return the context of the command that is meant."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, *more, **extra)
        if args and re.fullmatch(r"[A-Za-z][\w-]*", args[0], re.ASCII):
            hint = self._hint(args[0])
            if hint and not Path(args[0]).exists():
                raise SettingsError(f"there is no command or file {args[0]}.{hint}")
        return CAPTION.make_context(info_name, args, *more, **extra)

    def _hint(self, word: str) -> str:
        """Return what to write in place of a word near a command's name; empty if none is near."""
        if word == "help":
            return " Did you mean --help?"
        if word in _RUNS or did_you_mean(word, _RUNS):
            return " A run needs no command: captioner INPUT"
        return did_you_mean(word, self.commands)


_RUNS = ("caption", "run")
"""Words that people write before the input of a run."""

ROOT = _Root("captioner")
_BATCH = Group("batch", help="Show or cancel the batches of --batch-api.")


# -- parameters --------------------------------------------------------------------------------


def _flag(names: str, text: str, hint: Any = str, **kwargs: Any) -> Flag:
    return Flag(names.split(), hint=hint, help=text, **kwargs)


def _switch(names: str, text: str, **kwargs: Any) -> Flag:
    return _flag(names, text, bool, default=False, **kwargs)


def _number(name: str, text: str, default: int, **kwargs: Any) -> Flag:
    return _flag(name, text, int, default=default, callback=_check_range, **kwargs)


def _check_range(_: click.Context, param: click.Parameter, value: int) -> int:
    if param.name == "port" and not 0 <= value <= 65_535:
        raise SettingsError(f"port: {value} is not between 0 and 65535")
    if value < 0:
        raise SettingsError(f"{param.name}: must not be negative")
    return value


def _check_replicas(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise SettingsError("replicas: must be more than 0")
    return value


INPUT = Word(
    ["input"],
    hint=Path,
    about="a JSONL, JSON, CSV, TSV, Parquet, Arrow, COCO or tar file, a folder or "
    "pattern of these or of images, images, hf:NAME or ms:NAME, or - for JSONL on stdin.",
)
CAPTIONS = Word(["output"], hint=Path, about="the captions of a run.")
OUTPUT = _flag(
    "-o --output",
    "File, folder or s3://… for the captions; default: INPUT's name with .captions.jsonl. The name "
    "or --output-format selects another format, written when the run is complete. With - rows "
    "are printed, and nothing is written.",
    str | Path,
    metavar="PATH",
    envvar="CAPTIONER_OUTPUT",
)
CONFIG = _flag(
    "--config",
    "TOML file with options: names of flags without --.",
    Path,
    envvar="CAPTIONER_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=read_config,
)
JSON = _switch("--json as_json", "Print JSON.")
IMAGE_ROOT = _flag(
    "--image-root", "Folder of relative image paths. Default: the input's folder.", Path
)
SOURCE = _flag("--input source", "The input. Default: the one that the run began with.", Path)
PORT = "Port to listen on. With 0, a free one is chosen."
OPTIONS = run_flags()


# -- commands ----------------------------------------------------------------------------------


_MODULES = {"docs": "docs", "serve": "serve", "models": "serve"}
"""The modules of commands that are not in `commands`."""


def _add(name: str, text: str, *params: click.Parameter, **fixed: Any) -> None:
    """Add a command that calls the function named after its first word with its parameters.

    The function returns the exit status; None is 0.
    """
    words = name.split()
    module = _MODULES.get(name, "commands")

    def run(**given: Any) -> Any:
        home = import_module(f"captioner.cli.{module}")
        return getattr(home, f"{words[0]}_in_console")(**given, **fixed)

    group = ROOT if len(words) == 1 else _BATCH
    group.add_command(Command(words[-1], params=list(params), help=text, callback=run))


@click.pass_context
def _caption(
    context: click.Context,
    /,
    input: Path,  # noqa: A002 - the name in --help
    output: str | None,
    *,
    as_json: bool,
    dry_run: bool = True,
    probe_records: int = 0,
    debug: bool = False,
    **options: Any,
) -> int:
    """Run or, with ``dry_run``, estimate."""
    from captioner.cli.printing import writes_nothing
    from captioner.settings.remembered import recalled
    from captioner.settings.settings import Settings

    source = [input, *map(Path, context.args)] if context.args else input
    given = given_options(context, options)
    settings = Settings.create(source, output, **given)
    from captioner.cli import commands, session

    if not writes_nothing(settings) and (kept := session.options_to_recall(settings)):
        settings = Settings.create(source, output, **recalled(kept, given))
    if dry_run:
        commands.estimate_in_console(settings, probe=probe_records, as_json=as_json)
        return 0
    return session.run_in_console(settings, debug=debug, as_json=as_json)


CAPTION = Command(
    "captioner",
    callback=_caption,
    help="Caption the images of a data set with a vision-language model.\n\n"
    "Run the same command again to continue an interrupted run.",
    params=[
        INPUT,
        OUTPUT,
        CONFIG,
        _switch(
            "--dry-run",
            "Estimate the run, as captioner estimate does, and exit.",
            envvar="CAPTIONER_DRY_RUN",
        ),
        _switch(
            "--json as_json",
            "Print the report as JSON on standard output.",
            envvar="CAPTIONER_JSON",
        ),
        _switch(
            "--debug",
            "Show the stack trace of an internal error.",
            envvar="CAPTIONER_DEBUG",
            hidden=True,
        ),
        *OPTIONS,
    ],
)
CAPTION.takes_files = True
CAPTION.other_commands = ROOT.commands

_add(
    "view",
    "Show captions in a browser: search, filter, review, charts.\n\nIt also works during a run. "
    "Reviews are kept beside OUTPUT; captioner export and --retry rejected use them. With VERSUS "
    "the page asks for each image which caption is better; votes are kept beside OUTPUT.",
    CAPTIONS,
    Word(["versus"], hint=Path, required=False, about="another output to compare it with."),
    IMAGE_ROOT,
    _flag(
        "--host",
        "Address to listen on. Everyone who can reach it and knows the URL with its token "
        "can read and review the captions, and nothing is encrypted. An ssh tunnel is safer.",
        default="127.0.0.1",
    ),
    _number("--port", PORT, 0),
)
_add(
    "report",
    "Describe captions: lengths, duplicates, refusals, languages.",
    CAPTIONS,
    _flag(
        "--html",
        "Write a self-contained page to this file, with charts and a sample with its images.",
        Path,
    ),
    _number("--sample", "Captions on the page, chosen at random.", 24),
    IMAGE_ROOT,
    JSON,
)
_add(
    "export",
    "Write the captions of a run in another format.",
    CAPTIONS,
    _flag(
        "--to",
        "File or folder to write, an object such as s3://BUCKET/NAME, or hf:USER/NAME for a data "
        "set on Hugging Face's hub.",
        str | Path,
        required=True,
    ),
    _flag(
        "--to-format",
        "Its format, as for --output-format. Default: by its name.",
        OutputFormat,
    ),
    SOURCE,
    IMAGE_ROOT,
    _switch("--overwrite", "Replace an existing file or folder."),
    _switch("--csv-safe", CSV_SAFE),
    _flag(
        "--reviewed",
        "Use of the reviews in captioner view: apply takes edits and leaves out rejected "
        "captions; only also leaves out captions without a review or to caption again; ignore "
        "uses none.",
        Literal["apply", "only", "ignore"],
        default="apply",
    ),
)
_add(
    "check",
    "Show the state of an output: done, failed, pending, damage.\n\nThe output stays unchanged. "
    "Exits with 0 if all is well and 5 if the output is damaged.",
    CAPTIONS,
    SOURCE,
    JSON,
)
_add(
    "remove",
    "Remove an output and the files beside it that belong to it.",
    CAPTIONS,
    _switch("--yes", "Do not ask."),
)
ROOT.add_command(
    Command(
        "estimate",
        callback=_caption,
        help="Estimate what a run will take: tokens, money, time.",
        params=[
            INPUT,
            _number(
                "--probe probe_records",
                "Send this many records, chosen at random, and correct the estimate by their cost.",
                0,
            ),
            OUTPUT,
            CONFIG,
            JSON,
            *(option for option in OPTIONS if option.name != "probe"),
        ],
    )
)
_add(
    "eval",
    "Compare captions with references: BLEU, chrF, CIDEr-D.",
    CAPTIONS,
    _flag(
        "--references",
        "COCO captions, or JSONL with captions, matched by id, file_name or path.",
        Path,
        required=True,
    ),
    JSON,
)


@ROOT.command("init", cls=Command, params=[
    Word(["folder"], hint=Path, default=Path(), about="the folder. Default: the current one."),
    _switch("--download", "Also download DataFlow-MM's example images from Hugging Face."),
])  # fmt: skip
def _init(folder: Path, *, download: bool) -> None:
    """Make a working folder with options, a pipeline and images."""
    import shlex

    from captioner.cli.init.folder import make_folder

    lines = make_folder(folder, download=download)
    if folder != Path():
        lines.insert(0, f"cd {shlex.quote(str(folder))}")
    print("\n".join(lines))


_add(
    "serve",
    "Serve a model of your own, or the built-in describer.\n\nOther runs on this machine use the "
    "model by --serve MODEL. Without MODEL it is the describer, which names sizes, colours and "
    "legible text and is not a vision-language model.",
    Word(
        ["model"],
        hint=str,
        default="",
        about="the model, as for --serve. Default: the built-in describer.",
    ),
    _flag("--host", "Address to listen on.", default="127.0.0.1", envvar="CAPTIONER_HOST"),
    _number("--port", PORT, 8080, envvar="CAPTIONER_PORT"),
    _flag(
        "--serve-args",
        "Arguments for the server, as one text: --serve-args='--max-model-len 8192'.",
        default="",
        envvar="CAPTIONER_SERVE_ARGS",
    ),
    _flag(
        "--replicas",
        "Servers to start, on ports that follow each other. Default: one for each GPU.",
        int,
        envvar="CAPTIONER_REPLICAS",
        callback=_check_replicas,
    ),
)
_add(
    "models",
    "Show models that caption well, and which fit this machine.",
    JSON,
)
_add(
    "docs",
    "Show a page of the documentation.",
    Word(["topic"], hint=str, default="", about="the page. Default: a list of the pages."),
)
_add(
    "batch status",
    "Show the state of the batches at the provider; changes nothing.",
    CAPTIONS,
    cancel=False,
)
_add(
    "batch cancel",
    "Cancel all batches. The next run takes the responses that are complete.",
    CAPTIONS,
    cancel=True,
)
ROOT.add_command(_BATCH)
