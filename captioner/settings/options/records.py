"""The options of records, and the input formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - evaluated by get_type_hints
from typing import Literal

from captioner.core.errors import SettingsError
from captioner.core.where import Where
from captioner.settings.options.definition import OptionGroup, common, option, tuning

InputFormat = Literal[
    "jsonl", "json", "csv", "tsv", "parquet", "arrow", "images", "webdataset", "img2dataset",
    "imagefolder", "llava", "coco", "hf", "ms",
]  # fmt: skip

IMAGE_FIELDS = ("image", "images", "video", "videos")
CONVERSATION_FIELDS = ("conversation", "conversations", "messages")


@dataclass(frozen=True, slots=True)
class RecordSettings(OptionGroup):
    """Records."""

    input_format: InputFormat | None = common(  # noqa: RUF009 - a Literal by another name
        "Format of INPUT. Default: by its name."
    )
    split: str | None = option(
        "Split to read: of a data set on a hub, of a folder that save_to_disk wrote, or of "
        "another folder. Default: train on a hub, else all, one after the other."
    )
    image_field: str | None = common(
        "Field of the image or images; suffix of a tar member. Default: image, images, video or "
        "videos."
    )
    conversation_field: str | None = option(
        "Field that holds the conversation. Default: conversation, conversations or messages."
    )
    prompt_field: str | None = option(
        "Field that holds a plain question, which takes precedence over a conversation. Default: "
        "prompt, in records without a conversation."
    )
    output_field: str = common("Field that receives the caption.", "caption")
    existing: Literal["error", "replace", "skip", "append", "prepend"] | None = option(
        "What to do with records that have a caption already: error (do not start), replace the "
        "caption, skip (keep the record as it is), append the new caption to it, or prepend it. "
        "With text files as output, a file that is not empty is a caption. Default: error, and "
        "skip for text files."
    )
    id_field: str | None = common("Field that identifies a record. Default: its whole content.")
    duplicates: Literal["keep", "skip", "error"] = option("See --equal-records.", "keep")
    image_root: Path | None = common(  # noqa: RUF009 - a name with Path in it, no mutable default
        "Folder of relative image paths. Images outside of it are refused. Default: the input's "
        "folder, then the working directory, without that restriction."
    )
    where: str | None = common(
        "Take only records for which this is true. It is an expression over their fields and file, "
        "folder and size of their first image, such as \"folder == 'cats' and size > 100000\"."
    )
    sample: int | None = common(
        "Take this many records, chosen at random. They come from the whole input and are the same "
        "each time. A run without it continues the output with the others."
    )
    seed: int = option("Seed of the choices of --sample and --prompt-mix.", 0, zero=True)
    limit: int | None = common("Take this many records, the first ones.")
    max_line: int = tuning("Maximum size of a record. A longer one fails.", 16 << 20, unit="bytes")
    max_images: int = tuning("Maximum images of a record. One with more fails.", 64)

    def _check(self) -> None:
        if self.split == "":
            raise SettingsError("split: must not be empty")
        if not self.output_field:
            raise SettingsError("output-field: must not be empty")
        if self.id_field == self.output_field:
            raise SettingsError("id-field: must not be the output field")
        if self.where is not None:
            Where(self.where, "where")
        if self.image_root is not None and not self.image_root.is_dir():
            raise SettingsError(f"image-root: there is no folder {self.image_root}")
