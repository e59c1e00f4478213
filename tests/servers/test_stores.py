"""Azure's and Google's object stores through adlfs and gcsfs, on emulators."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import jpeg, rows
from endpoint import FakeEndpoint
from fsspec.config import conf, set_conf_env
from real_servers import RealServer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the stores' libraries leave open
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's own key, the same everywhere."""


@pytest.fixture
def azure(started: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("adlfs")
    url = started("azurite").url
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};"
        f"BlobEndpoint={url}/devstoreaccount1;",
    )
    return "az"


@pytest.fixture
def google(started: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch) -> str:
    # Before the import: no emulator speaks gRPC.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", started("gcs").url)
    monkeypatch.setenv("FSSPEC_GS_TOKEN", "anon")
    # Nobody asks the machine's cloud for credentials.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    set_conf_env(conf)
    return "gs"


@pytest.mark.parametrize("store", ["azure", "google"])
def test_images_and_input(
    store: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    endpoint: FakeEndpoint,
    run_command: Callable,
) -> None:
    """What is there is captioned, what is missing fails its own record."""
    import fsspec

    scheme = request.getfixturevalue(store)
    system = fsspec.filesystem(scheme, skip_instance_cache=True)
    system.mkdir("photos")
    large = jpeg(2, (2_400, 1_200), quality=100) + bytes(1 << 20)
    system.pipe_file("photos/0.jpg", jpeg(0))
    system.pipe_file("photos/1.jpg", large)
    lines = [{"id": number, "image": f"{scheme}://photos/{number}.jpg"} for number in range(3)]
    system.pipe_file("photos/in.jsonl", "\n".join(map(json.dumps, lines)).encode())
    source, output = f"{scheme}://photos/in.jsonl", tmp_path / "out.jsonl"
    common = ("--base-url", endpoint.base_url, "--model", "m")
    done = run_command(source, "-o", output, *common, env=os.environ)
    assert done.returncode == 3, done.stderr
    assert sorted(row["id"] for row in rows(output)) == [0, 1]
    (failed,) = rows(tmp_path / "out.failed.jsonl")
    assert (failed["record"]["id"], failed["code"]) == (2, "image_missing")
    checked = run_command("check", output, "--input", source, env=os.environ)
    assert checked.stdout.startswith(f"{output}: 2 captioned, 1 failed, 0 pending of {source}")
