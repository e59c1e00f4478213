"""The endpoint of a script."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from captioner.core.types import Caption
from captioner.dataflow.running import run_coroutine
from captioner.engine.stream import caption_stream

OFFLINE = "offline"
"""An ``api_url`` that selects the built-in describer: no key, no network."""

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
        SystemExit: The environment variable is not set. The message says what to set.
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
                raise SystemExit(
                    "key_name_of_api_key: give the name of an environment variable that holds the "
                    "key, not the key itself"
                )
            raise SystemExit(
                f"Missing environment variable '{name}' (key_name_of_api_key): set it to the key "
                "for api_url, or to any text if the server needs none"
            )

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

        run_coroutine(answer())
        return answers


def _labelled(paths: list[str], labels: list[str], system_prompt: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if system_prompt:
        content.append({"type": "text", "text": system_prompt})
    for path, label in zip(paths, labels, strict=True):
        content.append({"type": "text", "text": f"{label}:"})
        content.append({"type": "image_url", "image_url": {"url": path}})
    return {"conversation": [{"role": "user", "content": content}]}
