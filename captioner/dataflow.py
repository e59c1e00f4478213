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
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import orjson

from captioner.cli.session import run_watched
from captioner.core.errors import SettingsError
from captioner.core.extras import needed
from captioner.core.jsonbytes import json_array
from captioner.core.types import Caption
from captioner.engine.stream import caption_stream
from captioner.outputs.export import column_names, replacing, write_csv_rows
from captioner.outputs.reader import OutputReader
from captioner.outputs.rows import parsed
from captioner.readers.registry import open_input
from captioner.readers.rows import dumped, plain
from captioner.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CacheType = Literal["json", "jsonl", "csv", "parquet", "pickle"]

OFFLINE = "offline"
"""An ``api_url`` that selects the built-in describer: no key, no network."""

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class LLMServingABC(ABC):
    """Base class of the servings that answer questions about images."""

    @abstractmethod
    def generate_from_input(
        self, user_inputs: list[Any], system_prompt: str = "Describe the image in detail."
    ) -> list[str | None]:
        """Return an answer for each input, or None if the input failed."""

    @abstractmethod
    def cleanup(self) -> None:
        """Release resources."""


class APIVLMServing_openai(LLMServingABC):  # noqa: N801 - the name in people's scripts
    """An OpenAI-compatible endpoint.

    Args:
        api_url: Its base URL, or ``offline``.
        key_name_of_api_key: Name of the environment variable that holds the key.
        model_name: The name of the model.
        image_io: Must be None: captions are text.
        send_request_stream: Request streamed answers.
        max_workers: Maximum number of requests in flight; a run starts with 8.
        timeout: Seconds one request may take.

    Raises:
        OSError: The environment variable is not set.
    """

    def __init__(
        self,
        api_url: str = "https://api.openai.com/v1",
        key_name_of_api_key: str = "DF_API_KEY",
        model_name: str = "o4-mini",
        image_io: object = None,
        send_request_stream: bool = False,  # noqa: FBT001, FBT002 - theirs
        max_workers: int = 10,
        timeout: float = 1800,
    ) -> None:
        if image_io is not None:
            raise ValueError("image_io: captioner writes captions, not images")
        if api_url != OFFLINE and not os.environ.get(key_name_of_api_key):
            raise OSError(f"Missing environment variable '{key_name_of_api_key}'")
        self.api_url = api_url
        self.model_name = model_name
        self.max_workers = max_workers
        self.timeout = timeout
        self.options: dict[str, Any] = {
            "model": model_name,
            "stream": send_request_stream,
            "concurrency": max_workers,
            "timeout": timeout,
        }
        if api_url == OFFLINE:
            self.options["offline"] = True
        else:
            self.options |= {"base_url": (api_url,), "api_key_env": (key_name_of_api_key,)}

    def generate_from_input(
        self, user_inputs: list[Any], system_prompt: str = "Describe the image in detail."
    ) -> list[str | None]:
        """Return an answer for each image.

        Args:
            user_inputs: Paths, or pairs of a path and a question.
            system_prompt: The question for inputs without one.
        """
        return self._generate(
            {"image": one[0], "prompt": one[1]}
            if isinstance(one, tuple) and len(one) == 2
            else {"image": one, "prompt": system_prompt}
            for one in user_inputs
        )

    def generate_from_input_one_image(
        self,
        image_paths: list[str],
        text_prompts: list[str],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        """Return an answer for each pair of an image and a question.

        Raises:
            ValueError: The lists differ in length.
        """
        if len(image_paths) != len(text_prompts):
            raise ValueError("`image_paths` and `text_prompts` must have the same length")
        return self._generate(
            (
                {"image": path, "prompt": prompt}
                for path, prompt in zip(image_paths, text_prompts, strict=True)
            ),
            system_prompt,
            model,
            timeout,
        )

    def generate_from_input_multi_images(
        self,
        list_of_image_paths: list[list[str]],
        list_of_image_labels: list[list[str]],
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        """Return an answer for each set of images, each image after its label.

        Raises:
            ValueError: The lists differ in length.
        """
        if list(map(len, list_of_image_paths)) != list(map(len, list_of_image_labels)):
            raise ValueError(
                "`list_of_image_paths` and `list_of_image_labels` must have the same length"
            )
        return self._generate(
            (
                _labelled(paths, labels, system_prompt)
                for paths, labels in zip(list_of_image_paths, list_of_image_labels, strict=True)
            ),
            "",
            model,
            timeout,
        )

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
        """Return an answer for each conversation, with its images in place of ``<image>``.

        Raises:
            ValueError: There are videos or sounds, or the lists differ in length.
        """
        if video_list or audio_list:
            raise ValueError("captioner answers questions about images, not videos or sounds")
        images = [[] for _ in conversations] if image_list is None else image_list
        if len(images) != len(conversations):
            raise ValueError("`conversations` and `image_list` must have the same length")
        return self._generate(
            (
                {"image": several, "conversation": turns}
                for several, turns in zip(images, conversations, strict=True)
            ),
            system_prompt,
            model,
            timeout,
        )

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
        records: Any,
        system_prompt: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[str | None]:
        options = {**self.options, "system_prompt": system_prompt}
        options["model"] = model or self.model_name
        options["timeout"] = timeout or self.timeout
        return _run_blocking(lambda: asyncio.run(_answers(list(records), options)))


def _labelled(paths: list[str], labels: list[str], system_prompt: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = (
        [{"type": "text", "text": system_prompt}] if system_prompt else []
    )
    for path, label in zip(paths, labels, strict=True):
        content.append({"type": "text", "text": f"{label}:"})
        content.append({"type": "image_url", "image_url": {"url": path}})
    return {"conversation": [{"role": "user", "content": content}]}


async def _answers(records: list[dict[str, Any]], options: dict[str, Any]) -> list[str | None]:
    answers: list[str | None] = [None] * len(records)
    async for outcome in caption_stream(records, **options):
        number = outcome.record.number
        if isinstance(outcome, Caption):
            answers[number - 1] = outcome.text
        else:
            _LOG.warning("input %d has no answer: %s", number, outcome.message)
    return answers


def _run_blocking(call: Callable[[], _T]) -> _T:
    """Call a function that runs an event loop, in a thread if a loop is running (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


# -- storage -----------------------------------------------------------------------------------


class FileStorage:
    """A file for each step of a pipeline: the input, then ``<prefix>_step1.<type>`` and so on.

    Args:
        first_entry_file_name: The input: JSON, JSONL, CSV, Parquet, pickle, ``hf:…`` or ``ms:…``.
        cache_path: Folder of the other files.
        file_name_prefix: Beginning of their names.
        cache_type: ``json``, ``jsonl``, ``csv``, ``parquet`` or ``pickle``.
    """

    def __init__(
        self,
        first_entry_file_name: str,
        cache_path: str = "./cache",
        file_name_prefix: str = "dataflow_cache",
        cache_type: CacheType = "jsonl",
    ) -> None:
        if cache_type not in _WRITERS:
            raise ValueError(
                f"Unsupported file type: {cache_type}, output file should end with "
                f"{', '.join(_WRITERS)}"
            )
        self.first_entry_file_name = first_entry_file_name
        self.cache_path = cache_path
        self.file_name_prefix = file_name_prefix
        self.cache_type = cache_type
        self.operator_step = -1

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
            ValueError: `output_type` is neither.
        """
        if output_type not in ("dataframe", "dict"):
            raise ValueError(f"Unsupported output type: {output_type}")
        path = self.path_of(self.operator_step)
        if path.suffix in (".parquet", ".pickle", ".pkl"):
            frame = _read_frame(path)
            return frame if output_type == "dataframe" else frame.to_dict(orient="records")
        rows = _run_blocking(lambda: asyncio.run(_rows(path)))
        return needed("pandas", "dataflow").DataFrame(rows) if output_type == "dataframe" else rows

    def write(self, data: Any) -> str:
        """Write rows, a DataFrame or a list of dicts, for the next step; return the file's path.

        Raises:
            ValueError: They are neither.
        """
        if isinstance(data, list) and all(isinstance(row, dict) for row in data):
            rows = data
        elif hasattr(data, "to_dict") and hasattr(data, "columns"):
            rows = data.to_dict(orient="records")
        else:
            raise ValueError(f"Unsupported data type: {type(data)}")
        path = self.path_of(self.operator_step + 1)
        _WRITERS[self.cache_type](iter(rows), path)
        return str(path)


def _read_frame(path: Path) -> Any:
    pandas = needed("pandas", "dataflow")
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
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _write_json(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(json_array(_indented(plain(row)) for row in rows))
        file.write(b"\n")


def _indented(row: dict[str, Any]) -> bytes:
    try:
        text = orjson.dumps(row, option=orjson.OPT_INDENT_2)
    except TypeError:  # integers beyond 64 bits
        text = dumped(row)
    return b"  " + text.replace(b"\n", b"\n  ")


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(dumped(plain(row)) + b"\n" for row in rows)


def _write_frame(method: str, **options: Any) -> Callable[[Iterator[dict[str, Any]], Path], None]:
    def write(rows: Iterator[dict[str, Any]], path: Path) -> None:
        frame = needed("pandas", "dataflow").DataFrame(list(rows))
        with replacing(path) as partial:
            getattr(frame, method)(partial, **options)

    return write


def _write_csv(rows: Iterator[dict[str, Any]], path: Path) -> None:
    found = list(map(plain, rows))
    write_csv_rows(found, column_names(found), path)


_WRITERS: dict[str, Callable[[Iterator[dict[str, Any]], Path], None]] = {
    "json": _write_json,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_frame("to_parquet"),
    "pickle": _write_frame("to_pickle", compression=None),
}


# -- the operator ------------------------------------------------------------------------------


class PromptedVQAGenerator:
    """Sends the images and the question of each row to a model and adds the answer.

    Args:
        serving: The endpoint.
        system_prompt: Its instructions.
    """

    def __init__(
        self, serving: LLMServingABC, system_prompt: str = "You are a helpful assistant."
    ) -> None:
        if not isinstance(serving, APIVLMServing_openai):
            raise TypeError("serving: must be a captioner.dataflow.APIVLMServing_openai")
        self.serving = serving
        self.system_prompt = system_prompt

    def run(
        self,
        storage: FileStorage,
        input_prompt_key: str | None = None,
        input_conversation_key: str | None = None,
        input_image_key: str = "image",
        input_video_key: str = "video",
        output_answer_key: str = "answer",
    ) -> str:
        """Answer every row of the storage's current step and write the next step.

        Run again to continue. Answers are kept beside the result in ``….captions.jsonl``, and rows
        without an answer are listed in ``….captions.failed.jsonl``.

        Args:
            storage: Where rows come from and go to.
            input_prompt_key: Column of plain questions.
            input_conversation_key: Column of conversations, in either spelling.
            input_image_key: Column of images: paths, or lists of them.
            input_video_key: Ignored; rows without an image have no answer.
            output_answer_key: Column that receives the answers.

        Returns:
            The name of that column.

        Raises:
            ValueError: Not exactly one of the two input keys is given.
            KeyboardInterrupt: The run was interrupted; what was finished is saved.
            RunError: The run stopped early; what was finished is saved.
            SettingsError: The settings cannot work.
        """
        del input_video_key
        if not output_answer_key:
            raise ValueError("At least one of output_answer_key must be provided.")
        if (input_prompt_key is None) == (input_conversation_key is None):
            raise ValueError(
                "Exactly one of input_prompt_key or input_conversation_key must be provided."
            )
        source = _as_input(storage)
        target = storage.path_of(storage.operator_step + 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        journal = target.with_name(f"{target.stem}.captions.jsonl")
        settings = Settings.create(
            source,
            journal,
            **self.serving.options,
            system_prompt=self.system_prompt,
            prompt_field=input_prompt_key,
            conversation_field=input_conversation_key,
            image_field=input_image_key,
            output_field=output_answer_key,
            retry_failed="all",
        )
        report, interrupted = _run_blocking(lambda: run_watched(settings))
        if interrupted:
            raise KeyboardInterrupt
        if report.failed:
            _LOG.warning("%d rows have no answer; see %s", report.failed, report.failures)
        _run_blocking(lambda: _write_answers(storage, source, journal, target, output_answer_key))
        return output_answer_key


def _as_input(storage: FileStorage) -> Path:
    """Return a step's file in a form that the engine reads: a pickle is written out as JSONL.

    Raises:
        SettingsError: There is no such file.
    """
    path = storage.path_of(storage.operator_step)
    if path.suffix not in (".pickle", ".pkl"):
        return path
    if not path.exists():
        raise SettingsError(f"cannot read the input {path}: there is no such file")
    plain = Path(storage.cache_path) / f"{path.stem}.rows.jsonl"
    _write_jsonl(iter(_read_frame(path).to_dict(orient="records")), plain)
    return plain


def _write_answers(
    storage: FileStorage, source: Path, journal: Path, target: Path, name: str
) -> None:
    """Write all rows of the input in their order, each with its answer or without one."""
    with closing(OutputReader(journal, source=source)) as book:
        answers = _answers_in_order(book, name)
        if source.suffix != ".parquet" or storage.cache_type not in ("parquet", "pickle"):
            _WRITERS[storage.cache_type](answers, target)
            return
        frame = _read_frame(source)  # its columns keep their types
        frame[name] = [row[name] for row in answers]
    with replacing(target) as partial:
        if storage.cache_type == "parquet":
            frame.to_parquet(partial)
        else:
            frame.to_pickle(partial, compression=None)


def _answers_in_order(book: OutputReader, name: str) -> Iterator[dict[str, Any]]:
    for row, answered in book.input_rows():
        yield {**row, name: answered.get(name) if answered is not None else None}
