"""Through the real Squid, which asks for a password and resolves the endpoint's name."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme
from conftest import rows
from endpoint import FakeEndpoint
from real_servers import RealServer, free_port

AUTHENTICATOR = Path("/usr/lib/squid/basic_ncsa_auth")
USERS = "me:$1$squid$EaJiJdQ/0xjOzW6ERURj1.\n"
"""The password is ``open-sesame``."""


@pytest.fixture
def squid(started: Callable[..., RealServer]) -> Iterator[str]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # Squid gives up the rights of root
        port = free_port()
        (folder / "hosts").write_text("127.0.0.1 vlm.test\n")
        (folder / "users").write_text(USERS)
        (folder / "squid.conf").write_text(
            f"""
            http_port 127.0.0.1:{port}
            pid_filename {folder}/pid
            cache_log {folder}/cache.log
            access_log none
            cache deny all
            hosts_file {folder}/hosts
            coredump_dir {folder}
            auth_param basic program {AUTHENTICATOR} {folder}/users
            acl known proxy_auth REQUIRED
            http_access allow known
            http_access deny all
            """
        )
        service = f"captioner{port}"
        arguments = ("-N", "-n", service, "-f", folder / "squid.conf")
        running = started("squid", *arguments, url=f"http://127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
        running.kill()
        for left in Path("/dev/shm").glob(f"{service}-*"):
            left.unlink()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_with_a_password(
    squid: str, scheme: str, make_input: Callable, run_command: Callable, tmp_path: Path
) -> None:
    """Without TLS and through a tunnel; a wrong password is wrong use, and not shown."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    endpoint = FakeEndpoint()
    if scheme == "https":
        endpoint.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert("vlm.test").configure_cert(endpoint.tls)
    endpoint.start()
    port = endpoint.base_url.split(":")[2]
    line = (
        make_input(4),
        "-o",
        tmp_path / "out.jsonl",
        "--base-url",
        f"{scheme}://vlm.test:{port}",
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem"), "no_proxy": ""}
    try:
        for model in (("--model", "m"), ()):
            environment[f"{scheme}_proxy"] = f"http://me:close-sesame@{squid}"
            wrong = run_command(*line, *model, env=environment)
            assert wrong.returncode == 2, wrong.stderr
            assert "The proxy rejected the user and password (407)" in wrong.stderr
            assert "close-sesame" not in wrong.stderr
        environment[f"{scheme}_proxy"] = f"http://me:open-sesame@{squid}"
        right = run_command(*line, env=environment)
        assert right.returncode == 0, right.stderr
        assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == [0, 1, 2, 3]
    finally:
        endpoint.stop()
