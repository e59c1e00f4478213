"""The operator that answers a question about the images of each row."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.cli.session import run_watched
from captioner.core.errors import SettingsError
from captioner.core.humanize import counted
from captioner.dataflow.running import print_line, run_blocking
from captioner.dataflow.serving import APIVLMServing_openai
from captioner.dataflow.storage import FRAMES, FileStorage, read_frame, write_file
from captioner.journal.checkpoint import read_checkpoint
from captioner.journal.disk import Files
from captioner.outputs.reader import OutputReader
from captioner.settings.settings import Settings


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
        without an answer are listed in ``….captions.failed.jsonl``. Another model answers all rows
        again; its answers are kept in a file with its name, and the result has the last ones.

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
        run_blocking(lambda: _answer_rows(storage, options))
        return output_answer_key


def _answer_rows(storage: FileStorage, options: dict[str, Any]) -> None:
    source = _as_input(storage)
    target = storage.path_of(storage.operator_step + 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    journal = _journal_of(target, options["model"])
    report, signal = run_watched(Settings.create(source, journal, **options), summary=False)
    if signal:
        raise KeyboardInterrupt
    text = counted(report.captioned + report.resumed, "row has an answer", "rows have an answer")
    if report.failed:
        text += f", {counted(report.failed, 'has', 'have')} none: see {report.failures}"
    print_line(text)
    with closing(OutputReader(journal, source=source)) as reader:
        name = options["output_field"]
        rows = ({**row, name: (found or {}).get(name)} for row, found in reader.input_rows())
        if source.suffix == ".parquet" and target.suffix in FRAMES:
            frame = read_frame(source, storage)  # its columns keep their types
            frame[name] = [row[name] for row in rows]
            write_file(frame, target)
        else:
            write_file(rows, target)


def _journal_of(target: Path, model: str) -> Path:
    """Return where the answers of a model for a step are kept."""
    journal = target.with_name(f"{target.stem}.captions.jsonl")
    found = read_checkpoint(Files(), journal)
    if found is None or found.settings.get("model") in (None, model):
        return journal
    name = re.sub(r"[^\w.-]+", "_", model)
    return target.with_name(f"{target.stem}.{name}.captions.jsonl")


def _as_input(storage: FileStorage) -> Path:
    """Return a step's file in a form that the engine reads: a pickle is written out as JSONL."""
    path = storage.path_of(storage.operator_step)
    if path.suffix not in (".pickle", ".pkl"):
        return path
    if not path.exists():
        raise SettingsError(f"cannot read the input {path}: there is no such file")
    rows = Path(storage.cache_path) / f"{path.stem}.rows.jsonl"
    write_file(read_frame(path, storage).to_dict(orient="records"), rows)
    return rows
