"""The command line: commands, what each takes, an exit code back."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence  # noqa: TC003 - in a table that is made when imported
from pathlib import Path
from typing import Annotated, Any, Literal

from captioner import __version__
from captioner.cli.params import HELP, Flag
from captioner.cli.parser import Reader, is_on
from captioner.core.errors import SettingsError
from captioner.settings.options import OutputFormat  # noqa: TC001 - read when it is made into a flag
from captioner.settings.settings import Settings
from captioner.settings.validation import did_you_mean


def run_command(argv: Sequence[str]) -> int:
    """Run the command line and return the exit status; prints, and raises only to debug."""
    words = list(argv)
    debug = "--debug" in words or is_on(os.environ.get("CAPTIONER_DEBUG", ""))
    try:
        if "--version" in (words[: words.index("--")] if "--" in words else words):
            print(f"captioner {__version__}")
            return 0
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more, head say: no reason for a trace
        _print_no_more()
        return 128 + signal.SIGPIPE
    except SettingsError as error:
        print(f"captioner: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _print_no_more()
        if debug:
            raise
        print(f"captioner: {_told(error)}", file=sys.stderr)
        return 1
    return status


def _print_no_more() -> None:
    """Have Python not try again at its end what could not be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> str:
    """Return in words what went wrong that nobody foresaw."""
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write'}: {error.strerror or error}"
    return (
        f"internal error ({type(error).__name__}: {error}). Please report it; CAPTIONER_DEBUG=1 "
        "shows where it happened."
    )


def _run(words: list[str]) -> int:
    """Call the command that is meant with what it is given."""
    program, function = "captioner", _caption
    if words and words[0] in COMMANDS:
        program += f" {words[0]}"
        several = COMMANDS[words.pop(0)]
        if len(several) > 1:
            name = words.pop(0) if words else None
            if name is None or name not in several:
                return _several(program, several, name)
            program, function = f"{program} {name}", several[name]
        else:
            function = several[""]
    elif words and words[0].isalpha() and not Path(words[0]).exists():
        hint = did_you_mean(words[0], [*COMMANDS, *HELP])
        if hint:
            raise SettingsError(f"there is no command or file {words[0]}.{hint}")
    reader = Reader(program, function, COMMANDS)
    given = reader.read(words)
    if given is None:
        from captioner.cli.help import help_of

        print(help_of(program, function, _commands() if function is _caption else ""), end="")
        return 0
    return function(**given)


def _commands() -> str:
    from captioner.cli.help import listed, summary

    about = {word: ABOUT.get(word) or summary(several[""]) for word, several in COMMANDS.items()}
    return f"{listed('Commands', about)}\n\nEach has a --help of its own."


def _several(program: str, commands: dict[str, Callable[..., int]], name: str | None) -> int:
    """Say what may follow a word that is several commands."""
    from captioner.cli.help import listed, summary

    if name is not None and name not in HELP:
        hint = did_you_mean(name, commands)
        raise SettingsError(f"{program} has no command {name!r}.{hint}")
    about = {word: summary(command) for word, command in commands.items()}
    said = ABOUT[program.rsplit(maxsplit=1)[-1]]
    print(f"usage: {program} COMMAND\n\n{said}\n\n{listed('Commands', about)}")
    return 0


Input = Annotated[
    Path,
    Flag(
        "The records: a JSONL, JSON, CSV, TSV, Parquet, Arrow, COCO or tar file, a folder or "
        "pattern of them or of images, hf:NAME or ms:NAME, or - for JSONL on standard input."
    ),
]
Output = Annotated[
    Path | None,
    Flag(
        "The captions. Default: INPUT's name with .captions.jsonl, beside it. Other formats, by "
        "the name or by --output-format, are made of a journal beside when all is done.",
        short="-o",
        variable=True,
    ),
]
DryRun = Annotated[
    bool, Flag("Say what the run would take, as captioner estimate does, and end.", variable=True)
]
AsJson = Annotated[
    bool, Flag("Print what was done as JSON on standard output.", name="json", variable=True)
]
PrintJson = Annotated[bool, Flag("Print JSON.", name="json", variable=True)]
Debug = Annotated[
    bool, Flag("Show the stack trace of an internal error.", variable=True, hidden=True)
]
Captions = Annotated[Path, Flag("The captions of a run.")]
ImageRoot = Annotated[
    Path | None,
    Flag("Folder that relative paths of images start from. Default: the input's."),
]
Source = Annotated[
    Path | None,
    Flag("The input. Default: the one the run was started with.", name="input"),
]


# -- commands ----------------------------------------------------------------------------------


def _caption(
    input: Input,  # noqa: A002 - the name in --help
    *,
    output: Output = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
    **options: Any,
) -> int:
    """Caption the images of a data set through a vision-language model.

    Run the same command again to continue an interrupted run.
    """
    settings = Settings.create(input, output, **options)
    if dry_run:
        from captioner.cli.session import estimate_in_console

        return estimate_in_console(settings, probe=0, as_json=as_json)
    from captioner.cli.session import run_in_console

    return run_in_console(settings, debug=debug, as_json=as_json)


def _check(
    output: Captions,
    *,
    source: Source = None,
    as_json: PrintJson = False,
) -> int:
    """Say how an output stands, changing nothing: done, failed, pending, damage.

    Exits with 0 if all is well and 5 if the output is damaged.
    """
    from captioner.cli.session import check_in_console

    return check_in_console(output, source, as_json=as_json)


def _estimate(
    input: Input,  # noqa: A002 - the name in --help
    *,
    probe: Annotated[
        int,
        Flag(
            "Really send so many records, chosen at random, and correct the formula by what "
            "they cost.",
        ),
    ] = 0,
    as_json: PrintJson = False,
    output: Output = None,
    **options: Any,
) -> int:
    """Say what a run will take: requests, tokens, money, time. Writes nothing."""
    settings = Settings.create(input, output, **options)
    if probe < 0:
        raise SettingsError("probe: must not be negative")
    from captioner.cli.session import estimate_in_console

    return estimate_in_console(settings, probe=probe, as_json=as_json)


def _eval(
    output: Captions,
    *,
    references: Annotated[
        Path,
        Flag("COCO captions, or JSONL with captions, matched by id, file_name or path."),
    ],
    as_json: PrintJson = False,
) -> int:
    """Say how near captions are to references: BLEU, chrF, CIDEr-D."""
    from captioner.cli.session import score_in_console

    return score_in_console(output, references, as_json=as_json)


def _export(
    output: Captions,
    *,
    to: Annotated[Path, Flag("What to write.")],
    to_format: Annotated[
        OutputFormat | None,
        Flag("What it is to be, as with --output-format. Default: what its name says."),
    ] = None,
    source: Source = None,
    image_root: ImageRoot = None,
    overwrite: Annotated[
        bool,
        Flag("Replace what is there."),
    ] = False,
    reviewed: Annotated[
        Literal["apply", "only", "ignore"],
        Flag(
            "What the reviews of captioner view do: apply takes edits and leaves out rejected "
            "captions, only leaves out those nobody has reviewed, too.",
        ),
    ] = "apply",
) -> int:
    """Write the captions of a run in another format."""
    from captioner.cli.session import export_in_console

    return export_in_console(
        output,
        to,
        to_format,
        source=source,
        image_root=image_root,
        overwrite=overwrite,
        reviewed=reviewed,
    )


def _batch_status(
    output: Captions,
) -> int:
    """Ask the provider how the batches are; changes nothing."""
    from captioner.cli.session import batches_in_console

    return batches_in_console(output, cancel=False)


def _batch_cancel(
    output: Captions,
) -> int:
    """Cancel all batches. What is done stays done: the next run takes it."""
    from captioner.cli.session import batches_in_console

    return batches_in_console(output, cancel=True)


def _init(
    folder: Annotated[Path, Flag("Where.")] = Path(),
    *,
    download: Annotated[
        bool,
        Flag("Fetch DataFlow-MM's example images from the Hugging Face hub, too."),
    ] = False,
) -> int:
    """Make a working folder: a pipeline, a file of options, example images."""
    from captioner.cli.init.folder import make_folder

    lines = make_folder(folder, download=download)
    if folder != Path():
        lines.insert(0, f"cd {shlex.quote(str(folder))}")
    print("\n".join(lines))
    return 0


def _report(
    output: Captions,
    *,
    html: Annotated[
        Path | None,
        Flag(
            "Write a page to this file, with charts and a sample with its images; it needs "
            "nothing else.",
        ),
    ] = None,
    sample: Annotated[
        int,
        Flag("Captions to show in it, chosen at random."),
    ] = 24,
    image_root: ImageRoot = None,
    as_json: PrintJson = False,
) -> int:
    """Say what captions are like: lengths, duplicates, openings, refusals, languages, failures."""
    if sample < 0:
        raise SettingsError("sample: must not be negative")
    from captioner.cli.session import report_in_console

    return report_in_console(output, html, sample=sample, image_root=image_root, as_json=as_json)


def _serve(
    *,
    host: Annotated[str, Flag("Address to listen on.", variable=True)] = "127.0.0.1",
    port: Annotated[int, Flag("Port to listen on; 0 takes a free one.", variable=True)] = 8080,
) -> int:
    """Serve the built-in describer as an OpenAI-compatible endpoint.

    It names sizes, colours and legible text. It is no vision-language model.
    """
    from captioner.endpoints.offline.server import serve

    if not 0 <= port <= 65_535:
        raise SettingsError(f"port: {port} is not between 0 and 65535")
    try:
        serve(host, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return 0


def _view(
    output: Captions,
    *,
    image_root: ImageRoot = None,
    host: Annotated[
        str,
        Flag(
            "Address to listen on. Whoever reaches it and knows the address with its token "
            "sees the captions and may review them.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        Flag("Port to listen on; 0 takes a free one."),
    ] = 0,
) -> int:
    """Show captions in a browser, also while a run goes on: search, filter, review, charts.

    What is said of them is kept beside OUTPUT; export and --retry-rejected go by it.
    """
    if not 0 <= port <= 65_535:
        raise SettingsError(f"port: {port} is not between 0 and 65535")
    from captioner.cli.session import view_in_console

    return view_in_console(output, host=host, port=port, image_root=image_root)


COMMANDS: dict[str, dict[str, Callable[..., int]]] = {
    "batch": {"cancel": _batch_cancel, "status": _batch_status},
    "check": {"": _check},
    "estimate": {"": _estimate},
    "eval": {"": _eval},
    "export": {"": _export},
    "init": {"": _init},
    "report": {"": _report},
    "serve": {"": _serve},
    "view": {"": _view},
}
"""What each first word calls, by the second one where there are several."""

ABOUT = {"batch": "Look at the batches of a run with --batch-api, or cancel them."}
"""What is said of a word that is several commands."""
