"""Downloads the weights of a model for llama.cpp from Hugging Face.

Run as a module with the name of a repository, and after a colon that of a quantization, it prints
its progress and, as the last line, the path of the model. It is a separate process, because a
download in a thread cannot be stopped.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from captioner.core.errors import SettingsError
from captioner.core.subprocesses import environment, python
from captioner.endpoints.serving.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captioner.core.cancellation import CancelToken

USUAL = "Q4_K_M"
"""The quantization if none is named: four bits."""


async def downloaded(name: str, cancel: CancelToken, tell: Callable[[str], None]) -> str:
    """Return the path of a model for llama.cpp, downloaded if it is not on this machine.

    Without huggingface_hub it is the name itself, and llama.cpp downloads the model.

    Args:
        name: The repository, and after a colon the quantization.
        cancel: Ends the download.
        tell: Called with its progress, from a thread.

    Raises:
        SettingsError: It cannot be downloaded.
        StoppedError: The run was cancelled first.
    """
    if name.endswith(".gguf") or find_spec("huggingface_hub") is None:
        return name
    process = ServerProcess(
        python("captioner.endpoints.serving.weights", name),
        environment(fetching=True),
        lambda line: tell(f"{name} is downloaded: {line}"),
    )
    try:
        await cancel.race(process.ended.wait())
    finally:
        await process.stop()
    if process.status:
        raise SettingsError(f"serve: {name} cannot be downloaded: {process.last_line}")
    return process.lines[-1]


def choose(names: Sequence[str], quantization: str) -> tuple[list[str], str | None]:
    """Return the files of a model in a repository, and its projector of images.

    Args:
        names: All files of the repository.
        quantization: The wanted one, such as Q8_0; empty for the usual one.

    Raises:
        ValueError: There is no such model.
    """
    found = sorted(name for name in names if name.lower().endswith(".gguf"))
    projectors = [name for name in found if "mmproj" in name.lower()]
    models = [name for name in found if name not in projectors]
    wanted = (quantization or USUAL).lower()
    chosen = [name for name in models if wanted in name.lower()]
    if not models or (quantization and not chosen):
        kinds = ", ".join(Path(name).name for name in models) or "no GGUF files"
        raise ValueError(f"the repository has {kinds}")
    halves = [name for name in projectors if "f16" in name.lower() and "bf16" not in name.lower()]
    projector = next(iter(halves or projectors), None)
    if chosen and "-of-" in chosen[0]:  # parts of one model, of which the server takes the first
        return chosen, projector
    return (chosen or models)[:1], projector


def main(name: str) -> None:
    """Download a model, print its progress and its path."""
    import huggingface_hub as hub
    from huggingface_hub import errors
    from tqdm.std import tqdm

    class Told(tqdm):  # type: ignore[misc]  # it has no types
        """Prints its progress as lines."""

        def __init__(self, *args: Any, **more: Any) -> None:
            more.pop("name", None)
            super().__init__(*args, **{**more, "disable": False, "mininterval": 1.0})

        def display(self, *_: Any, **__: Any) -> None:
            if self.total:
                _print(f"{self.n / self.total:.0%} of {self.total / 1e9:.2f} GB")

    repository, _, quantization = name.partition(":")
    try:
        try:
            found = hub.HfApi().model_info(repository)
            names = [one.rfilename for one in found.siblings or ()]
        except errors.HfHubHTTPError:
            raise
        except Exception:  # noqa: BLE001 - no network; its kind differs by version
            folder = Path(hub.snapshot_download(repository, local_files_only=True))
            names = [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]
        models, projector = choose(names, quantization)
        paths = [
            hub.hf_hub_download(repository, one, tqdm_class=Told)
            for one in (*models, *filter(None, [projector]))
        ]
    except errors.GatedRepoError:
        _fail(f"accept its licence on the hub and set HF_TOKEN: {repository} is not open to all")
    except errors.RepositoryNotFoundError:
        _fail(f"the hub has no repository {repository}, or it needs a token in HF_TOKEN")
    except ValueError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - no network, or none that works
        _fail(
            "the hub cannot be reached. Check the network, or HF_ENDPOINT for a mirror, or name a "
            f"GGUF file ({' '.join(str(error).split())[:150]})"
        )
    _print(paths[0])


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(line: str) -> Never:
    _print(line)
    sys.exit(1)


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    main(sys.argv[1])
