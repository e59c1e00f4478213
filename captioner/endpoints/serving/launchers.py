"""The model servers that captioner can start: their commands, and what their logs mean.

To add a server, add a `Launcher` to `LAUNCHERS`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from captioner.core.errors import SettingsError
from captioner.core.secrets import SECRET_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEAST_CONTEXT = 4_096
"""Tokens of context below which it is not lowered: a large image alone has more than half."""

SHOWN = 2_000
"""Characters of a line of a server's log that are kept."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may take at once; less of it needs less memory.

    Attributes:
        parallel: Requests that it works on at once.
        context: Tokens of one request, its images included.
        images: Images of one request.
        spared: Part of the GPU's memory that the server leaves free, beyond its default.
    """

    parallel: int
    context: int
    images: int
    spared: float = 0.0

    def lowered(self, *, cache: bool) -> Self | None:
        """Return lower limits; None if these cannot be lowered.

        Args:
            cache: The memory for contexts is too small; if False, all memory is used up.
        """
        context = max(min(self.context, LEAST_CONTEXT), self.context // 2)
        parallel = max(1, self.parallel // 2)
        if cache:
            return replace(self, context=context) if context < self.context else None
        if parallel == self.parallel and context == self.context:
            return None
        spared = min(0.2, round(self.spared + 0.05, 2))
        return replace(self, parallel=parallel, context=context, spared=spared)

    def __str__(self) -> str:
        """Return the limits in words."""
        return f"{self.parallel} requests at once, {self.context} tokens each"


class Start(NamedTuple):
    """What a command is made of.

    Attributes:
        program: The path of the server's program.
        model: The model as the server knows it: a name of its hub, a folder or a file.
        name: The model's name in requests.
        host: The address to listen on.
        port: The port to listen on.
        limits: What the server may take at once.
    """

    program: str
    model: str
    name: str
    host: str
    port: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Launcher:
    """A kind of server.

    Attributes:
        name: The prefix of ``--serve``.
        program: The name of its program.
        install: How to install it.
        arguments: Makes the arguments that follow the program.
        variables: Makes variables of its environment.
        health: The path that answers 200 when the server works.
        running: Metric of the requests that it works on; empty if it has none.
        progress: Metrics that grow while it works.
        per_gpu: A server uses one GPU, so that there is one for each.
        parallel: Requests at once that suit it, at most.
        context: Tokens of a request that suit it.
        named: Requests give the model by a name that captioner sets, and not by its own.
    """

    name: str
    program: str
    install: str
    arguments: Callable[[Start], list[str]]
    variables: Callable[[Start], dict[str, str]] = lambda _: {}
    health: str = "/health"
    running: str = ""
    progress: tuple[str, ...] = ()
    per_gpu: bool = True
    named: bool = True
    parallel: int = 256
    context: int = 16_384

    def found(self) -> str | None:
        """Return the path of the program; None if it is not installed.

        Programs beside this Python are found even if its environment is not activated.
        """
        beside = os.fspath(Path(sys.executable).parent)
        return shutil.which(self.program) or shutil.which(self.program, path=beside)

    def command(self, start: Start, more: Sequence[str]) -> list[str]:
        """Return the command; ``more`` are arguments of the user, which come last and win."""
        return [start.program, *self.arguments(start), *more]

    def environment(self, start: Start, gpus: Sequence[str]) -> dict[str, str]:
        """Return the environment: that of captioner without keys, and what the server needs.

        Args:
            start: What the command is made of.
            gpus: The GPUs that it may use; empty for all.
        """
        found = {
            name: value
            for name, value in os.environ.items()
            if name in _HUB_TOKENS or not (name.startswith(_OURS) or SECRET_NAME.search(name))
        }
        found |= {"PYTHONUNBUFFERED": "1", **self.variables(start)}
        if gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return found


_OURS = "CAPTIONER_"
"""Options: those of requests, such as CAPTIONER_HEADER, may hold a secret."""

_HUB_TOKENS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "TOKENIZERS_PARALLELISM")


def _vllm(start: Start) -> list[str]:
    limits = start.limits
    images = json.dumps({"image": limits.images, "video": 0})
    return [
        *("serve", start.model, "--served-model-name", start.name),
        *("--host", start.host, "--port", str(start.port)),
        *("--max-model-len", str(limits.context), "--max-num-seqs", str(limits.parallel)),
        *("--gpu-memory-utilization", f"{0.9 - limits.spared:.2f}"),
        *("--limit-mm-per-prompt", images),
        *("--enable-prefix-caching", "--disable-uvicorn-access-log"),
    ]


def _sglang(start: Start) -> list[str]:
    limits = start.limits
    memory = ("--mem-fraction-static", f"{0.85 - limits.spared:.2f}") if limits.spared else ()
    return [
        *("serve", "--model-path", start.model, "--served-model-name", start.name),
        *("--host", start.host, "--port", str(start.port), "--enable-metrics"),
        *("--context-length", str(limits.context)),
        *("--max-running-requests", str(limits.parallel), *memory),
        *("--log-level-http", "warning"),
    ]


def _llamacpp(start: Start) -> list[str]:
    limits = start.limits
    model = ["-m", start.model] if start.model.endswith(".gguf") else ["-hf", start.model]
    if start.model.endswith(".gguf") and (projector := projector_of(Path(start.model))):
        model += ["--mmproj", str(projector)]
    return [
        *model,
        *("--alias", start.name, "--host", start.host, "--port", str(start.port)),
        *("--parallel", str(limits.parallel)),
        *("--ctx-size", str(limits.parallel * limits.context), "--metrics"),
    ]


def projector_of(model: Path) -> Path | None:
    """Return the projector of images beside a GGUF model: ``mmproj*.gguf``; None without one."""
    found = sorted(model.parent.glob("*mmproj*.gguf"))
    return found[0] if found else None


def _transformers(start: Start) -> list[str]:
    return [
        *("serve", start.model, "--host", start.host, "--port", str(start.port)),
        *("--log-level", "warning"),
    ]


def _ollama(start: Start) -> dict[str, str]:
    return {
        "OLLAMA_HOST": f"{start.host}:{start.port}",
        "OLLAMA_NUM_PARALLEL": str(start.limits.parallel),
        "OLLAMA_CONTEXT_LENGTH": str(start.limits.context),
        "OLLAMA_KEEP_ALIVE": "-1",
    }


LAUNCHERS = {
    one.name: one
    for one in (
        Launcher(
            "vllm",
            "vllm",
            "pip install vllm",
            _vllm,
            running="vllm:num_requests_running",
            progress=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        ),
        Launcher(
            "sglang",
            "sglang",
            "pip install sglang",
            _sglang,
            running="sglang:num_running_reqs",
            progress=(
                "sglang:realtime_tokens_total",  # the others grow when a request is finished
                "sglang:prompt_tokens_total",
                "sglang:generation_tokens_total",
            ),
        ),
        Launcher(
            "llamacpp",
            "llama-server",
            "brew install llama.cpp, or see https://github.com/ggml-org/llama.cpp",
            _llamacpp,
            # When it aborts it starts a debugger, which may hang, and hides why it aborted.
            lambda _: {"GGML_NO_BACKTRACE": "1"},
            running="llamacpp:requests_processing",
            progress=(
                "llamacpp:n_decode_total",  # the other grows when a request is finished
                "llamacpp:prompt_tokens_total",
            ),
            parallel=8,
            context=8_192,
        ),
        Launcher(
            "ollama",
            "ollama",
            "get it from https://ollama.com/download",
            lambda _: ["serve"],
            _ollama,
            health="/",
            per_gpu=False,
            named=False,
            parallel=4,
            context=8_192,
        ),
        Launcher(
            "transformers",
            "transformers",
            "pip install 'transformers[serving]' torch torchvision pillow",
            _transformers,
            named=False,
        ),
    )
}


_CACHE_TOO_SMALL = re.compile(
    r"KV cache is needed, which is larger than the available|"
    r"larger than the maximum number of tokens that can be stored in KV cache|"
    r"No available memory for the cache blocks|Not enough memory to allocate KV cache|"
    r"Not enough memory\. Please try to increase --mem-fraction-static"
)
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|HIP out of memory|OutOfMemoryError|cudaMalloc failed|"
    r"ErrorOutOfDeviceMemory|"
    r"CUDA error: out of memory|failed to allocate buffer for kv cache|Insufficient Memory|"
    r"kIOGPUCommandBufferCallbackErrorOutOfMemory|not enough memory: you tried to allocate|"
    r"is less than desired GPU memory utilization|"
    r"std::bad_alloc|Cannot allocate memory|GGML_ASSERT\(ctx->mem_buffer != NULL\)",
    re.IGNORECASE,
)


def lacks_memory(lines: Sequence[str]) -> str:
    """Return what the lines of a log say of memory: ``cache``, ``memory``, or nothing."""
    for line in lines:
        if _CACHE_TOO_SMALL.search(line):
            return "cache"
    return "memory" if any(map(_OUT_OF_MEMORY.search, lines)) else ""


_NO_NETWORK = re.compile(
    r"couldn't connect to 'https?://huggingface\.co|LocalEntryNotFoundError|OfflineModeIsEnabled|"
    r"Max retries exceeded with url.*(?:huggingface|hf-mirror|modelscope)|"
    r"Failed to resolve '(?:huggingface|hf-mirror|cdn-lfs)|could not resolve host|"
    r"(?:common_download|curl).*(?:failed|error)|registry\.ollama\.ai.*(?:no such host|refused)",
    re.IGNORECASE,
)


def lacks_network(lines: Sequence[str]) -> bool:
    """Return whether a log says that the model cannot be downloaded."""
    return any(map(_NO_NETWORK.search, lines))


def parse(serve: str) -> tuple[str, str]:
    """Return the server and the model of ``--serve``; no server if none is named."""
    kind, colon, model = serve.partition(":")
    if colon and kind in LAUNCHERS:
        if not model:
            raise SettingsError(f"serve: name a model after {kind}:")
        return kind, model
    return "", serve
