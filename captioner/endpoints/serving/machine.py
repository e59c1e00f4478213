"""What this machine has for a model: GPUs, memory, installed servers; and which models fit it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from captioner.core.errors import SettingsError
from captioner.endpoints.serving.launchers import LAUNCHERS
from captioner.settings.validation import did_you_mean

ANSWER_S = 10
"""Seconds in which nvidia-smi must answer."""

HUB_SERVERS = ("vllm", "sglang", "transformers")
"""Servers that load the weights of a hub's repository, best first."""

SMALL_SERVERS = ("llamacpp", "ollama")
"""Servers that load weights of four bits, which need a third of the memory, best first."""


class Gpu(NamedTuple):
    """A GPU of NVIDIA; ``memory`` in GB."""

    number: str
    name: str
    memory: float


class Machine(NamedTuple):
    """This machine.

    Attributes:
        gpus: Its GPUs of NVIDIA that may be used.
        apple: Its processor is Apple's, whose memory the GPU shares.
        memory: Memory in GB.
        installed: Names of the servers that are installed, best first.
    """

    gpus: tuple[Gpu, ...]
    apple: bool
    memory: float
    installed: tuple[str, ...]

    @property
    def for_model(self) -> float:
        """GB that a model may take: of one GPU, or of the memory that is not the system's."""
        if self.gpus:
            return min(gpu.memory for gpu in self.gpus)
        return self.memory * (0.7 if self.apple else 0.5)

    def __str__(self) -> str:
        """Describe the machine."""
        if self.gpus:
            first = self.gpus[0]
            many = f"{len(self.gpus)} times " if len(self.gpus) > 1 else ""
            return f"{many}{first.name} with {first.memory:.0f} GB"
        kind = "Apple silicon" if self.apple else "no GPU of NVIDIA or Apple"
        return f"{kind}, {self.memory:.0f} GB of memory"


class Model(NamedTuple):
    """A vision-language model that is known to caption well.

    Attributes:
        name: Its name for ``--serve``.
        size: small, middle or large.
        memory: GB that it needs with weights of 16 bits.
        memory_4bit: GB that it needs with weights of 4 bits.
        licence: Its licence.
        hub: Its name on Hugging Face.
        gguf: The name of its weights for llama.cpp there; empty if there are none.
        ollama: Its name in Ollama's library; empty if it has none.
    """

    name: str
    size: str
    memory: float
    memory_4bit: float
    licence: str
    hub: str
    gguf: str = ""
    ollama: str = ""

    def name_for(self, server: str) -> str:
        """Return its name for a server; empty if that server has none."""
        return {"llamacpp": self.gguf, "ollama": self.ollama}.get(server, self.hub)

    def needs(self, server: str) -> float:
        """Return the GB that it needs with a server."""
        return self.memory_4bit if server in SMALL_SERVERS else self.memory


@cache
def known_models() -> tuple[Model, ...]:
    """Return the known models, smallest first."""
    text = (files("captioner.endpoints.serving") / "models.json").read_text("utf-8")
    return tuple(Model(**one) for one in json.loads(text))


def look() -> Machine:
    """Return what this machine has."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    installed = tuple(name for name, one in LAUNCHERS.items() if one.found())
    return Machine(_gpus(), apple, memory, installed)


def _gpus() -> tuple[Gpu, ...]:
    query = ("--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")
    try:
        found = subprocess.run(  # noqa: S603 - a fixed command
            ("nvidia-smi", *query),  # noqa: S607 - it is where the driver put it
            capture_output=True, text=True, timeout=ANSWER_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = [[field.strip() for field in line.split(",")] for line in found.stdout.splitlines()]
    gpus = [
        Gpu(line[0], line[1], float(line[2]) * 2**20 / 1e9)
        for line in lines
        if len(line) == 3 and line[2].isdecimal()
    ]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        wanted = [word.strip() for word in allowed.split(",")]
        gpus = [gpu for gpu in gpus if gpu.number in wanted]
    return tuple(gpus)


def servers_for(machine: Machine) -> tuple[str, ...]:
    """Return the servers that suit a machine, best first, whether they are installed or not."""
    return (*HUB_SERVERS, *SMALL_SERVERS) if machine.gpus else (*SMALL_SERVERS, "transformers")


def fitting(model: Model, machine: Machine) -> list[str]:
    """Return the servers with which a model fits a machine, best first."""
    return [
        server
        for server in servers_for(machine)
        if model.name_for(server) and model.needs(server) <= machine.for_model
    ]


def choose(model: str, machine: Machine) -> tuple[str, str]:
    """Return the server for a model that is given without one, and the model's name for it.

    Raises:
        SettingsError: No server that can load it is installed, or its server is misspelt.
    """
    kind, colon, rest = model.partition(":")
    if (
        colon
        and ("/" in rest or rest.endswith(".gguf"))
        and (hint := did_you_mean(kind, LAUNCHERS))
    ):
        raise SettingsError(f"serve: there is no server {kind}.{hint}")
    known = next((one for one in known_models() if one.name == model.lower()), None)
    if known is not None:
        suitable = fitting(known, machine) or list(servers_for(machine))
        suitable = [server for server in suitable if known.name_for(server)]
    elif model.endswith(".gguf") or "gguf" in model.lower():
        suitable = ["llamacpp"]
    elif "/" in model or Path(model).is_dir():
        suitable = [server for server in servers_for(machine) if server in HUB_SERVERS]
    elif ":" in model:
        suitable = ["ollama"]
    else:
        names = [one.name for one in known_models()]
        raise SettingsError(
            f"serve: {model!r} is neither a known model, a folder nor the name of a model on a "
            f"hub.{did_you_mean(model, names)} captioner models lists the known ones."
        )
    for server in suitable:
        if server in machine.installed:
            return server, known.name_for(server) if known is not None else model
    ways = ", or ".join(f"{LAUNCHERS[server].install}" for server in suitable[:2])
    raise SettingsError(f"serve: no server for {model} is installed: {ways}")


class Proposal(NamedTuple):
    """What would work on a machine.

    Attributes:
        serve: A value of ``--serve``.
        install: What to install before; empty if it is installed.
    """

    serve: str
    install: str


def propose(machine: Machine) -> Proposal:
    """Return what to caption with on a machine, with a server that is installed if one suits.

    It is a middle model at most, because a large one is slow, and without a GPU the smallest.
    """
    found = [
        (server, model)
        for model in known_models()
        for server in fitting(model, machine) or ["llamacpp"]
        if model.size != "large" and model.licence == "Apache 2.0"
    ]
    found = [one for one in found if one[0] in machine.installed] or found
    if machine.gpus or machine.apple:
        server, model = max(found, key=lambda one: one[1].memory)
    else:
        server, model = found[0]
    install = "" if server in machine.installed else LAUNCHERS[server].install
    return Proposal(f"{server}:{model.name}", install)
