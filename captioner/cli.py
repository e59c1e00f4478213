"""The command line: flags, environment and TOML to `Settings`, an exit code back."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tomllib
from dataclasses import field, fields, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnusedCliTokensError,
)
from cyclopts.config import Dict, Env

from captioner import __version__
from captioner.errors import SettingsError
from captioner.options import GROUPS, OutputFormat
from captioner.settings import Settings
from captioner.values import flag_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import ArgumentCollection

PREFIX = "CAPTIONER_"
NOT_OPTIONS = frozenset({"CAPTIONER_API_KEY"})
"""Variables with our prefix that hold something else than an option."""

SEVERAL = frozenset(
    f"{PREFIX}{flag_name(name).upper().replace('-', '_')}"
    for kind in GROUPS.values()
    for name, hint in get_type_hints(kind).items()
    if get_origin(hint) is tuple
)
"""Variables that may hold several values, one a line."""


def run_command(argv: Sequence[str]) -> int:
    """Run the command line and return the exit status; prints, and never raises."""
    if list(argv) == ["--version"]:
        print(f"captioner {__version__}")
        return 0
    try:
        command, bound, _ = build_app().parse_args(_spelled_out(argv))
        status = int(command(*bound.args, **bound.kwargs) or 0)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more, head say: no reason for a trace
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except CycloptsError as error:
        error.verbose = False
        return _usage_error(_explain(error, argv))
    except SettingsError as error:
        return _usage_error(str(error))
    return status


def build_app() -> App:
    """Return the application; nothing heavy is imported before a command runs."""
    app = App(
        name="captioner",
        version=f"captioner {__version__}",
        help="Caption the images of a data set through a vision-language model. "
        "Run the same command again to continue an interrupted run.",
        help_format="plaintext",
        help_on_error=False,
        config=[_Environment(PREFIX, command=False), _read_toml],
        print_error=False,
        exit_on_error=False,
        result_action="return_value",
    )
    app.default(_caption)
    app.command(_check, name="check")
    app.command(_estimate, name="estimate")
    app.command(_eval, name="eval")
    app.command(_export, name="export")
    app.command(_batches(), name="batch")
    app.command(_init, name="init")
    app.command(_report, name="report")
    app.command(_serve, name="serve")
    app.command(_view, name="view")
    return app


def _explain(error: CycloptsError, argv: Sequence[str]) -> str:
    """Return what is wrong in the words of --help."""
    missing = error.argument if isinstance(error, MissingArgumentError) else None
    if missing is not None and missing.name == "--input":
        return "which INPUT? See captioner --help"
    if isinstance(error, UnusedCliTokensError) and "--retry-failed" in argv:
        return f"{error} For one code write --retry-failed=CODE."
    return str(error)


def _usage_error(message: str) -> int:
    print(f"captioner: {message}", file=sys.stderr)
    return 2


# -- options -----------------------------------------------------------------------------------


def _whole_number(_: object, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


def _options() -> type:
    """Return a dataclass of all options, made from the settings' own definition."""
    made: list[Any] = []
    for number, kind in enumerate(GROUPS.values()):
        group = Group(kind.__doc__.rstrip("."), sort_key=number + 1)
        hints = get_type_hints(kind)
        for option in fields(kind):
            hint = hints[option.name]
            converter = _whole_number if hint is int or int in get_args(hint) else None
            parameter = Parameter(
                name=f"--{flag_name(option.name)}",
                help=option.metadata["help"],
                group=group,
                converter=converter,
                negative=f"--no-{flag_name(option.name)}" if option.default is True else (),
                show_default=None if option.default != () else False,
            )
            default = field(default=option.default, kw_only=True)
            made.append((option.name, Annotated[hint, parameter], default))
    # cyclopts takes classes of standard modules, "types" here, for values of one word.
    namespace = {"__module__": __name__}
    return Parameter(name="*")(make_dataclass("Options", made, frozen=True, namespace=namespace))


Options = _options()
Input = Annotated[
    Path,
    Parameter(
        help="The records: a JSONL, JSON, CSV, TSV, Parquet, Arrow, COCO or tar file, a folder or "
        "pattern of them or of pictures, hf:NAME or ms:NAME, or - for JSONL on standard input.",
        show_env_var=False,
    ),
]
Output = Annotated[
    Path | None,
    Parameter(
        alias="-o",
        help="The captions. Default: INPUT's name with .captions.jsonl, beside it. Other formats, "
        "by the name or by --output-format, are made of a journal beside when all is done.",
    ),
]
Config = Annotated[
    Path | None, Parameter(help="TOML file with options, named as here without the dashes.")
]
DryRun = Annotated[
    bool,
    Parameter(
        help="Say what the run would take, as captioner estimate does, and end.",
        negative=(),
        show_env_var=False,
    ),
]
AsJson = Annotated[
    bool,
    Parameter(
        name="--json",
        help="Print what was done as JSON on standard output.",
        negative=(),
        show_env_var=False,
    ),
]
PrintJson = Annotated[
    bool, Parameter(name="--json", help="Print JSON.", negative=(), show_env_var=False)
]
ImageRoot = Annotated[
    Path | None,
    Parameter(
        help="Folder that relative paths of pictures start from. Default: the input's.",
        show_env_var=False,
    ),
]
Source = Annotated[
    Path | None,
    Parameter(
        name="--input",
        help="The input. Default: the one the run was started with.",
        show_env_var=False,
    ),
]
Captions = Annotated[Path, Parameter(help="The captions of a run.", show_env_var=False)]
Debug = Annotated[
    bool, Parameter(help="Show the stack trace of an internal error.", negative=(), show=False)
]


class _Environment(Env):
    """Options from the environment. An empty variable counts as unset; INPUT is never one."""

    def __call__(self, _: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        known = set(NOT_OPTIONS)
        for argument in arguments:
            if argument.children or not argument.parameter.show_env_var:
                continue
            name = self._convert_argument(commands, argument)
            known.add(name)
            if not argument.tokens and (value := os.environ.get(name)):
                several = filter(None, value.splitlines()) if name in SEVERAL else [value]
                for one in several:
                    argument.append(Token(keyword=name, value=one, source="environment"))
        known |= {f"{PREFIX}{key.upper().replace('-', '_')}" for key in _all_keys()}
        for name in os.environ:
            if name.startswith(PREFIX) and name not in known:
                raise CycloptsError(
                    msg=f"unknown environment variable {name}.{_did_you_mean(name, known)}"
                )


def _read_toml(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that are still unset from the file that --config names."""
    config = arguments.get("--config", None)
    if config is None or not config.tokens:
        return
    path = Path(config.tokens[-1].value)
    data = _load_toml(path)
    given: dict[str, Any] = {}
    known = _all_keys()
    data.pop("endpoint", None)  # tables, read by `_endpoints`
    for key, value in data.items():
        flag = key.replace("_", "-")
        if flag not in known:
            raise CycloptsError(msg=f"{path}: unknown option {key!r}.{_did_you_mean(flag, known)}")
        if flag in given:
            raise CycloptsError(msg=f"{path}: the option {flag!r} is given twice")
        given[flag] = value
    mine = {argument.name[2:]: argument for argument in arguments if not argument.children}
    for flag in given.keys() & mine.keys():
        if flag in app and not mine[flag].tokens:  # cyclopts takes the key for the command
            mine[flag].append(Token(keyword=flag, value=str(given[flag]), source=str(path)))
    Dict(
        data={flag: value for flag, value in given.items() if flag in mine},
        source=str(path),
        use_commands_as_keys=False,
    )(app, commands, arguments)


def _load_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CycloptsError(msg=f"--config: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CycloptsError(msg=f"--config: {path} is no TOML: {error}") from None


def _endpoints(config: Path | None) -> list[dict[str, Any]]:
    """Return the ``[[endpoint]]`` tables of the file that --config names."""
    tables = _load_toml(config).get("endpoint", []) if config is not None else []
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{config}: write each endpoint as a table [[endpoint]]")
    return tables


def _all_keys() -> set[str]:
    """Return the names of all options of all commands, without dashes in front."""
    names = {"config", "output", "host", "port", "debug", "dry-run", "json"}
    names |= {flag_name(option.name) for kind in GROUPS.values() for option in fields(kind)}
    return names


def _did_you_mean(name: str, known: set[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f" Did you mean {near[0]}?" if near else ""


_SHORT = {"--retry-failed": "--retry-failed=all", "-": "--input=-"}
"""What may stand without a value, and what it then means; a lone dash is standard input."""


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """Return the words with those that are short written in full."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    return [_SHORT.get(word, word) if at < end else word for at, word in enumerate(argv)]


# -- commands ----------------------------------------------------------------------------------


def _caption(
    input: Input,  # noqa: A002 - the name in --help
    *,
    output: Output = None,
    options: Options = Options(),  # type: ignore[valid-type] # noqa: B008 - frozen
    config: Config = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Caption every image of INPUT."""
    given = {option.name: getattr(options, option.name) for option in fields(Options)}
    settings = Settings.create(input, output, **given, endpoints=_endpoints(config))
    if dry_run:
        from captioner.console import estimate_in_console

        return estimate_in_console(settings, probe=0, as_json=as_json)
    from captioner.console import run_in_console

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
    from captioner.console import check_in_console

    return check_in_console(output, source, as_json=as_json)


def _estimate(
    input: Input,  # noqa: A002 - the name in --help
    *,
    probe: Annotated[
        int,
        Parameter(
            help="Really send so many records, chosen at random, and correct the formula by what "
            "they cost.",
            converter=_whole_number,
            show_env_var=False,
        ),
    ] = 0,
    as_json: PrintJson = False,
    output: Output = None,
    options: Options = Options(),  # type: ignore[valid-type] # noqa: B008 - frozen
    config: Config = None,
) -> int:
    """Say what a run will take: requests, tokens, money, time. Writes nothing."""
    given = {option.name: getattr(options, option.name) for option in fields(Options)}
    settings = Settings.create(input, output, **given, endpoints=_endpoints(config))
    if probe < 0:
        raise SettingsError("probe: must not be negative")
    from captioner.console import estimate_in_console

    return estimate_in_console(settings, probe=probe, as_json=as_json)


def _eval(
    output: Captions,
    *,
    references: Annotated[
        Path,
        Parameter(
            help="COCO captions, or JSONL with captions, matched by id, file_name or path.",
            show_env_var=False,
        ),
    ],
    as_json: PrintJson = False,
) -> int:
    """Say how near captions are to references: BLEU, chrF, CIDEr-D."""
    from captioner.console import score_in_console

    return score_in_console(output, references, as_json=as_json)


def _export(
    output: Captions,
    *,
    to: Annotated[Path, Parameter(help="What to write.", show_env_var=False)],
    to_format: Annotated[
        OutputFormat | None,
        Parameter(
            help="What it is to be, as with --output-format. Default: what its name says.",
            show_env_var=False,
        ),
    ] = None,
    source: Source = None,
    image_root: ImageRoot = None,
    overwrite: Annotated[
        bool,
        Parameter(
            help="Replace what is there.",
            negative=(),
            show_env_var=False,
        ),
    ] = False,
    reviewed: Annotated[
        Literal["apply", "only", "ignore"],
        Parameter(
            help="What the reviews of captioner view do: apply takes edits and leaves out rejected "
            "captions, only leaves out those nobody has reviewed, too.",
            show_env_var=False,
        ),
    ] = "apply",
) -> int:
    """Write the captions of a run in another format."""
    from captioner.console import export_in_console

    return export_in_console(
        output,
        to,
        to_format,
        source=source,
        image_root=image_root,
        overwrite=overwrite,
        reviewed=reviewed,
    )


def _batches() -> App:
    """Return the commands about batches."""
    batch = App(name="batch", help="Look at the batches of a run with --batch-api, or cancel them.")
    batch.command(_batch_status, name="status")
    batch.command(_batch_cancel, name="cancel")
    return batch


def _batch_status(
    output: Captions,
) -> int:
    """Ask the provider how the batches are; changes nothing."""
    from captioner.console import batches_in_console

    return batches_in_console(output, cancel=False)


def _batch_cancel(
    output: Captions,
) -> int:
    """Cancel all batches. What is done stays done: the next run takes it."""
    from captioner.console import batches_in_console

    return batches_in_console(output, cancel=True)


def _init(
    folder: Annotated[Path, Parameter(help="Where.", show_env_var=False)] = Path(),
    *,
    download: Annotated[
        bool,
        Parameter(
            help="Fetch DataFlow-MM's example pictures from the Hugging Face hub, too.",
            negative=(),
            show_env_var=False,
        ),
    ] = False,
) -> int:
    """Make a working folder: a pipeline, a file of options, example pictures."""
    from captioner.starter.folder import make_folder

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
        Parameter(
            help="Write a page to this file, with charts and a sample with its pictures; it needs "
            "nothing else.",
            show_env_var=False,
        ),
    ] = None,
    sample: Annotated[
        int,
        Parameter(
            help="Captions to show in it, chosen at random.",
            converter=_whole_number,
            show_env_var=False,
        ),
    ] = 24,
    image_root: ImageRoot = None,
    as_json: PrintJson = False,
) -> int:
    """Say what captions are like: lengths, duplicates, openings, refusals, languages, failures."""
    if sample < 0:
        raise SettingsError("sample: must not be negative")
    from captioner.console import report_in_console

    return report_in_console(output, html, sample=sample, image_root=image_root, as_json=as_json)


def _serve(
    *,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="Port to listen on; 0 takes a free one.", converter=_whole_number)
    ] = 8080,
) -> int:
    """Serve the built-in describer as an OpenAI-compatible endpoint.

    It names sizes, colours and legible text. It is no vision-language model.
    """
    from captioner.offline.server import serve

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
        Parameter(
            help="Address to listen on. Whoever reaches it and knows the address with its token "
            "sees the captions and may review them.",
            show_env_var=False,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        Parameter(
            help="Port to listen on; 0 takes a free one.",
            converter=_whole_number,
            show_env_var=False,
        ),
    ] = 0,
) -> int:
    """Show captions in a browser, also while a run goes on: search, filter, review, charts.

    What is said of them is kept beside OUTPUT; export and --retry-rejected go by it.
    """
    if not 0 <= port <= 65_535:
        raise SettingsError(f"port: {port} is not between 0 and 65535")
    from captioner.console import view_in_console

    return view_in_console(output, host=host, port=port, image_root=image_root)
