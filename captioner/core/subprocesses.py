"""Starting modules of this package as processes."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.core.secrets import SECRET_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module.

    The working directory is not searched for modules (-P): a file such as queue.py among the
    user's data would break the child.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def start_child(module: str, descriptor: int) -> subprocess.Popen[bytes]:
    """Start a module that reads a stranger's bytes, as a process without other open files.

    Ctrl-C does not end it: the run that stops may still need it.

    Args:
        module: Its full name.
        descriptor: The child's end of a connection; the number is its only argument.

    Raises:
        OSError: It cannot be started.
    """
    return subprocess.Popen(  # noqa: S603 - our own module
        python(module, str(descriptor)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        pass_fds=[descriptor],
        start_new_session=True,
    )


def program() -> list[str]:
    """Return how the user called this program, for commands that can be pasted."""
    name = "captioner"
    return [name] if Path(sys.argv[0]).name == name else ["python", "-m", name]


def ease_garbage_collection() -> None:
    """Make Python look for reference cycles less often: records create none.

    For processes of the command, not for a program that uses captioner as a library.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next images.

    By default it returns large blocks to the system at once, which costs time for each image.
    For processes of the command, not for a program that uses captioner as a library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(-3, 16 << 20)  # M_MMAP_THRESHOLD of malloc.h
    mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


_PASSED_ON = re.compile(
    "PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|PYTHON.*|VIRTUAL_ENV|"
    "CONDA_PREFIX|XDG_CACHE_HOME|XDG_STATE_HOME|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_.*|MALLOC_.*|OMP_.*|OPENBLAS_.*|"
    "MKL_.*|CUDA_.*|NVIDIA_.*|HIP_.*|ROCR_.*|TESSDATA_PREFIX|COVERAGE_.*|UVLOOP_.*"
)
"""Variables that every child process gets, unless their name looks like that of a secret."""

_FETCHING = re.compile(
    "https?_proxy|HTTPS?_PROXY|all_proxy|ALL_PROXY|no_proxy|NO_PROXY|SSL_CERT_FILE|SSL_CERT_DIR|"
    "REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|AIOHTTP_NO_EXTENSIONS|OTEL_.*|FSSPEC_.*|"
    "AWS_(?:ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|PROFILE|DEFAULT_PROFILE|"
    "REGION|DEFAULT_REGION|ENDPOINT_URL(?:_.*)?|CA_BUNDLE|CONFIG_FILE|SHARED_CREDENTIALS_FILE|"
    "ROLE_ARN|ROLE_SESSION_NAME|WEB_IDENTITY_TOKEN_FILE|CONTAINER_.*|EC2_METADATA_.*|"
    "MAX_ATTEMPTS|RETRY_MODE|STS_REGIONAL_ENDPOINTS)|"
    "GOOGLE_(?:APPLICATION_CREDENTIALS|CLOUD_PROJECT)|GCLOUD_PROJECT|CLOUDSDK_CONFIG|"
    "STORAGE_EMULATOR_HOST|GCSFS_.*|"
    "AZURE_(?:STORAGE_.*|TENANT_ID|CLIENT_ID|CLIENT_SECRET|CLIENT_CERTIFICATE_.*|"
    "AUTHORITY_HOST|FEDERATED_TOKEN_FILE)|"
    "HF_(?:HOME|TOKEN|TOKEN_PATH|ENDPOINT|HUB_.*)|HUGGING_FACE_HUB_TOKEN"
)
"""Proxies, certificates and the credentials of object stores, by the names that libraries read."""


def environment(*, fetching: bool = False, more: Iterable[str] = ()) -> dict[str, str]:
    """Return an environment in which a child process imports this same package.

    Other variables, which may hold secrets of other programs, are left out.

    Args:
        fetching: The child sends requests or fetches images.
        more: Names of further variables to pass on.
    """
    names = set(more)
    found = {
        name: value
        for name, value in os.environ.items()
        if (_PASSED_ON.fullmatch(name) and not SECRET_NAME.search(name))
        or (fetching and _FETCHING.fullmatch(name))
        or name in names
    }
    root = str(Path(__file__).resolve().parents[2])
    # An installed package is found without it.
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths = (found.get("PYTHONPATH"), root)
        found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return found
