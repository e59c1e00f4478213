"""DataFlow-MM's image captioning on captioner's engine: change only the imports of a script.

::

    from captioner.dataflow import (
        APIVLMServing_openai, FileStorage, LLMServingABC, PromptedVQAGenerator,
    )

The names, arguments and file names are those of DataFlow-MM
(https://github.com/OpenDCAI/DataFlow-MM). The differences: a second run continues the first.
A record that cannot be captioned has no answer, never the text of an error, and is listed in a
failures file beside the result. No record is sent without its image.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

import orjson

from captioner.cli.session import run_watched
from captioner.core.errors import CaptionerError, SettingsError
from captioner.core.extras import needed
from captioner.core.humanize import counted, printable_lines
from captioner.core.jsonbytes import json_array
from captioner.core.log import forward_warnings
from captioner.core.regular import writing
from captioner.core.types import Caption
from captioner.engine.stream import caption_stream
from captioner.outputs.export import column_names, replacing, write_csv_rows
from captioner.outputs.reader import OutputReader
from captioner.outputs.rows import parsed
from captioner.readers.registry import open_input
from captioner.readers.rows import dumped, plain
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CacheType = Literal["json", "jsonl", "csv", "parquet", "pickle"]

OFFLINE = "offline"
"""An ``api_url`` that selects the built-in describer: no key, no network."""

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class LLMServingABC:
    """Base class of the servings, for annotations."""


@dataclass(eq=False, repr=False)  # the address may hold a password
class APIVLMServing_openai(LLMServingABC):  # noqa: N801 - the name in people's scripts
    """An OpenAI-compatible endpoint.

    Args:
        api_url: Its base URL, with or without ``/chat/completions``, or ``offline``.
        key_name_of_api_key: Name of the environment variable that holds the key.
        model_name: The name of the model.
        image_io: Must be None: captions are text.
        send_request_stream: Request streamed answers.
        max_workers: Maximum number of requests in flight; a run starts with 8.
        timeout: Seconds one request may take.

    Raises:
        OSError: The environment variable is not set.
    """

    api_url: str = "https://api.openai.com/v1"
    key_name_of_api_key: str = "DF_API_KEY"
    model_name: str = "o4-mini"
    image_io: object = None
    send_request_stream: bool = False
    max_workers: int = 10
    timeout: float = 1800

    def __post_init__(self) -> None:
        """Check the values."""
        if self.image_io is not None:
            raise ValueError("image_io: captioner writes captions, not images")
        name = self.key_name_of_api_key
        if self.api_url != OFFLINE and not os.environ.get(name):
            if not name.isidentifier():
                raise OSError("key_name_of_api_key: name an environment variable that has the key")
            raise OSError(f"Missing environment variable '{name}'")

    @property
    def options(self) -> dict[str, Any]:
        """The options of captioner that these values stand for."""
        options: dict[str, Any] = {
            "model": self.model_name,
            "stream": self.send_request_stream,
            "concurrency": self.max_workers,
            "timeout": self.timeout,
        }
        if self.api_url == OFFLINE:
            return {**options, "offline": True}
        url = self.api_url.rstrip("/").removesuffix("/chat/completions")
        return {**options, "base_url": (url,), "api_key_env": (self.key_name_of_api_key,)}

    def generate_from_input(
        self, user_inputs: list[Any], system_prompt: str = "Describe the image in detail."
    ) -> list[str | None]:
        """Return an answer for each path, or pair of a path and a question.

        Paths get `system_prompt` as their question. An input that failed has None.
        """
        return self._generate(
            [
                {"image": one[0], "prompt": one[1]}
                if isinstance(one, tuple) and len(one) == 2
                else {"image": one, "prompt": system_prompt}
                for one in user_inputs
            ]
        )

    def generate_from_input_one_image(
        self,
        image_paths: list[str],
        text_prompts: list[str],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        """Return an answer for each pair of an image and a question."""
        if len(image_paths) != len(text_prompts):
            raise ValueError("`image_paths` and `text_prompts` must have the same length")
        pairs = zip(image_paths, text_prompts, strict=True)
        records = [{"image": path, "prompt": prompt} for path, prompt in pairs]
        return self._generate(records, system_prompt, model, timeout)

    def generate_from_input_multi_images(
        self,
        list_of_image_paths: list[list[str]],
        list_of_image_labels: list[list[str]],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        """Return an answer for each set of images, each image after its label."""
        if list(map(len, list_of_image_paths)) != list(map(len, list_of_image_labels)):
            names = "`list_of_image_paths` and `list_of_image_labels`"
            raise ValueError(f"{names} must have the same length")
        sets = zip(list_of_image_paths, list_of_image_labels, strict=True)
        records = [_labelled(paths, labels, system_prompt) for paths, labels in sets]
        return self._generate(records, "", model, timeout)

    def generate_from_input_messages(
        self,
        conversations: list[list[dict[str, Any]]],
        image_list: list[list[str]] | None = None,
        video_list: object = None,
        audio_list: object = None,
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        """Return an answer for each conversation, with its images in place of ``<image>``."""
        if video_list or audio_list:
            raise ValueError("captioner answers questions about images, not videos or sounds")
        images = [[] for _ in conversations] if image_list is None else image_list
        if len(images) != len(conversations):
            raise ValueError("`conversations` and `image_list` must have the same length")
        records = [
            {"image": several, "conversation": turns}
            for several, turns in zip(images, conversations, strict=True)
        ]
        return self._generate(records, system_prompt, model, timeout)

    def chat_with_one_image(
        self,
        image_path: str | list[str],
        text_prompt: str,
        model: str | None = None,
        timeout: float | None = None,
    ) -> str | None:
        """Return the answer about one image, or about several together."""
        return self._generate([{"image": image_path, "prompt": text_prompt}], "", model, timeout)[0]

    def analyze_images_with_gpt(
        self,
        image_paths: list[str],
        image_labels: list[str],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> str | None:
        """Return the answer about several images, each after its label."""
        return self.generate_from_input_multi_images(
            [image_paths], [image_labels], system_prompt, model, timeout
        )[0]

    def cleanup(self) -> None:
        """Do nothing: no connection outlives a call."""

    def _generate(
        self,
        records: list[dict[str, Any]],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        options = {**self.options, "system_prompt": system_prompt}
        options["model"] = model or self.model_name
        options["timeout"] = timeout or self.timeout
        answers: list[str | None] = [None] * len(records)

        async def answer() -> None:
            async for outcome in caption_stream(records, **options):
                number = outcome.record.number
                if isinstance(outcome, Caption):
                    answers[number - 1] = outcome.text
                else:
                    _LOG.warning("input %d has no answer: %s", number, outcome.message)

        _run_coroutine(answer())
        return answers


def _labelled(paths: list[str], labels: list[str], system_prompt: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if system_prompt:
        content.append({"type": "text", "text": system_prompt})
    for path, label in zip(paths, labels, strict=True):
        content.append({"type": "text", "text": f"{label}:"})
        content.append({"type": "image_url", "image_url": {"url": path}})
    return {"conversation": [{"role": "user", "content": content}]}


def _run_coroutine(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine, and print its warnings unless the script configured logging."""
    with forward_warnings(None if logging.root.handlers else _print):
        return _run_blocking(lambda: asyncio.run(work))


def _print(text: str) -> None:
    print(printable_lines(text), file=sys.stderr)  # noqa: T201 - scripts without logging see it


def _run_blocking(call: Callable[[], _T]) -> _T:
    """Call a function that runs an event loop, in a thread if a loop is running (notebooks).

    Raises:
        SystemExit: It failed. Python prints the message and no traceback.
    """
    try:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call()
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()
    except CaptionerError as error:
        raise SystemExit(_in_script_words(str(error))) from None


_SCRIPT_WORDS = (
    (r"no endpoint\.[\s\S]*", "api_url: must not be empty"),
    (r"If [^.]*--accept-changes=edits\. If not, restore", "Restore"),
    (
        r", choose another output with -o, or [^,.;]*--[a-z][^,.;]*",
        ", or choose another cache_path",
    ),
    (r"hoose another( output| place)? with -o", "hoose another cache_path"),
    ("un the same command again", "un the script again"),
    (r"(--|\b)base-url\b", "api_url"),
    (r"(--|\b)api-key-env\b", "key_name_of_api_key"),
    (r"--model\b|\bmodel(?=:| was )", "model_name"),
    (r"--concurrency\b|\bconcurrency(?=:)", "max_workers"),
    (r"\b(image|prompt|conversation)-field\b", r"input_\1_key"),
    (r"\boutput-field\b", "output_answer_key"),
    (r"[,.;] [^,.;]*--[a-z][^,.;]*", ""),  # advice to use a flag that scripts do not have
)


def _in_script_words(message: str) -> str:
    """Return an error message with the script's arguments in place of the command's flags."""
    for pattern, words in _SCRIPT_WORDS:
        message = re.sub(pattern, words, message)
    return message


# -- storage -----------------------------------------------------------------------------------


@dataclass(eq=False)
class FileStorage:
    """A file for each step of a pipeline: the input, then ``<prefix>_step1.<type>`` and so on.

    Args:
        first_entry_file_name: The input: JSON, JSONL, CSV, Parquet, pickle, ``hf:…`` or ``ms:…``.
        cache_path: Folder of the other files.
        file_name_prefix: Beginning of their names.
        cache_type: ``json``, ``jsonl``, ``csv``, ``parquet`` or ``pickle``.
        allow_pickle: Read pickle files, which runs the code in them: only for files of your own.
            The environment variable ``DF_ALLOW_PICKLE=1`` does the same.
    """

    first_entry_file_name: str
    cache_path: str = "./cache"
    file_name_prefix: str = "dataflow_cache"
    cache_type: CacheType = "jsonl"
    allow_pickle: bool = field(default=False, kw_only=True)
    operator_step: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        """Check the type."""
        known = get_args(CacheType)
        if self.cache_type not in known:
            raise ValueError(
                f"Unsupported file type: {self.cache_type}, output file should end with "
                f"{', '.join(known)}"
            )

    def step(self) -> Self:
        """Move to the next step."""
        self.operator_step += 1
        return self

    def reset(self) -> Self:
        """Return to the state before the first step."""
        self.operator_step = -1
        return self

    def path_of(self, step: int) -> Path:
        """Return the file that a step reads; it writes the file of the next step."""
        if step <= 0:
            return Path(self.first_entry_file_name)
        return Path(self.cache_path) / f"{self.file_name_prefix}_step{step}.{self.cache_type}"

    def read(self, output_type: Literal["dataframe", "dict"] = "dataframe") -> Any:
        """Return the rows of the current step, with the values of the file.

        Args:
            output_type: ``dataframe`` for a pandas DataFrame, ``dict`` for a list of dicts.

        Raises:
            SettingsError: It is a pickle file, and reading these is not allowed.
            ValueError: `output_type` is neither.
        """
        if output_type not in ("dataframe", "dict"):
            raise ValueError(f"Unsupported output type: {output_type}")
        path = self.path_of(self.operator_step)
        if path.suffix in _FRAMES:
            frame = _read_frame(path, self)
            return frame if output_type == "dataframe" else frame.to_dict(orient="records")
        rows = _run_coroutine(_rows(path))
        return needed("pandas", "dataflow").DataFrame(rows) if output_type == "dataframe" else rows

    def write(self, data: Any) -> str:
        """Write rows, a DataFrame or a list of dicts, for the next step; return the file's path.

        Raises:
            ValueError: They are neither.
        """
        if hasattr(data, "to_dict") and hasattr(data, "columns"):
            data = data.to_dict(orient="records")
        if not (isinstance(data, list) and all(isinstance(row, dict) for row in data)):
            raise ValueError(f"Unsupported data type: {type(data)}")
        path = self.path_of(self.operator_step + 1)
        _write(data, path)
        return str(path)


_FRAMES = (".parquet", ".pickle", ".pkl")


def _read_frame(path: Path, storage: FileStorage) -> Any:
    pandas = needed("pandas", "dataflow")
    allowed = storage.allow_pickle or os.environ.get("DF_ALLOW_PICKLE") == "1"
    if path.suffix != ".parquet" and not allowed:
        raise SettingsError(
            f"{path} is a pickle, and reading it runs the code in it: if the file is yours, "
            "create FileStorage with allow_pickle=True or set DF_ALLOW_PICKLE=1"
        )
    return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_pickle(path)


async def _rows(path: Path) -> list[dict[str, Any]]:
    found = []
    async for batch in open_input(path).source.batches():
        for line in batch:
            try:
                row = parsed(line.raw) if line.fault is None else None
            except ValueError:
                row = None
            if row is None:
                _LOG.warning("row %d of %s is not a JSON object and is left out", line.number, path)
            else:
                found.append({name: _from_cell(value) for name, value in row.items()})
    return found


def _from_cell(value: Any) -> Any:
    """Parse a list or an object in a text, as in a CSV cell."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(value)
    return value


def _write(data: Any, path: Path) -> None:
    """Write rows, or a DataFrame for Parquet and pickle, as a file of the type of its name."""
    if path.suffix in _FRAMES:
        frame = data if hasattr(data, "columns") else needed("pandas", "dataflow").DataFrame(data)
        with replacing(path) as partial, writing(partial) as file:
            if path.suffix == ".parquet":
                frame.to_parquet(file)
            else:
                frame.to_pickle(file, compression=None)
        return
    rows = map(plain, data)
    if path.suffix == ".csv":
        listed = list(rows)
        write_csv_rows(listed, column_names(listed), path)
        return
    with replacing(path) as partial, writing(partial) as file:
        if path.suffix == ".json":
            file.writelines(json_array(map(dumped, rows)))
            file.write(b"\n")
        else:
            file.writelines(dumped(row) + b"\n" for row in rows)


# -- the operator ------------------------------------------------------------------------------


@dataclass(eq=False)
class PromptedVQAGenerator:
    """Sends the images and the question of each row to a model and adds the answer.

    Args:
        serving: The endpoint.
        system_prompt: Its instructions.
    """

    serving: APIVLMServing_openai
    system_prompt: str = "You are a helpful assistant."

    def __post_init__(self) -> None:
        """Check its class."""
        if not isinstance(self.serving, APIVLMServing_openai):
            raise TypeError("serving: must be a captioner.dataflow.APIVLMServing_openai")

    def run(
        self,
        storage: FileStorage,
        input_prompt_key: str | None = None,
        input_conversation_key: str | None = None,
        input_image_key: str = "image",
        input_video_key: str = "video",
        output_answer_key: str = "answer",
    ) -> str:
        """Answer every row of the current step and write the next; return `output_answer_key`.

        Run again to continue. Answers are kept beside the result in ``….captions.jsonl``, and rows
        without an answer are listed in ``….captions.failed.jsonl``.

        Args:
            storage: Where rows come from and go to.
            input_prompt_key: Column of plain questions.
            input_conversation_key: Column of conversations, in either spelling.
            input_image_key: Column of images: paths, or lists of them.
            input_video_key: Ignored; rows without an image have no answer.
            output_answer_key: Column that receives the answers.

        Raises:
            ValueError: Not exactly one of the two input keys is given.
            KeyboardInterrupt: The run was interrupted; what was finished is saved.
            SystemExit: The settings cannot work, or the run stopped early; what was finished is
                saved. The message says why.
        """
        del input_video_key
        if not output_answer_key:
            raise ValueError("At least one of output_answer_key must be provided.")
        if (input_prompt_key is None) == (input_conversation_key is None):
            names = "input_prompt_key or input_conversation_key"
            raise ValueError(f"Exactly one of {names} must be provided.")
        options = {
            **self.serving.options,
            "system_prompt": self.system_prompt,
            "prompt_field": input_prompt_key,
            "conversation_field": input_conversation_key,
            "image_field": input_image_key,
            "output_field": output_answer_key,
            "existing": "replace",
            "retry_failed": "all",
        }
        _run_blocking(lambda: _answer_rows(storage, options))
        return output_answer_key


def _answer_rows(storage: FileStorage, options: dict[str, Any]) -> None:
    source = _as_input(storage)
    target = storage.path_of(storage.operator_step + 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    journal = target.with_name(f"{target.stem}.captions.jsonl")
    report, signal = run_watched(Settings.create(source, journal, **options), summary=False)
    if signal:
        raise KeyboardInterrupt
    text = counted(report.captioned + report.resumed, "row has an answer", "rows have an answer")
    if report.failed:
        text += f", {counted(report.failed, 'has', 'have')} none: see {report.failures}"
    _print(text)
    with closing(OutputReader(journal, source=source)) as reader:
        name = options["output_field"]
        rows = ({**row, name: (found or {}).get(name)} for row, found in reader.input_rows())
        if source.suffix == ".parquet" and target.suffix in _FRAMES:
            frame = _read_frame(source, storage)  # its columns keep their types
            frame[name] = [row[name] for row in rows]
            _write(frame, target)
        else:
            _write(rows, target)


def _as_input(storage: FileStorage) -> Path:
    """Return a step's file in a form that the engine reads: a pickle is written out as JSONL."""
    path = storage.path_of(storage.operator_step)
    if path.suffix not in (".pickle", ".pkl"):
        return path
    if not path.exists():
        raise SettingsError(f"cannot read the input {path}: there is no such file")
    rows = Path(storage.cache_path) / f"{path.stem}.rows.jsonl"
    _write(_read_frame(path, storage).to_dict(orient="records"), rows)
    return rows
