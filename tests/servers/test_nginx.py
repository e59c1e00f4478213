"""Behind the real nginx: TLS, limits, time-outs, passwords and pages of HTML."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import jpeg, rows
from endpoint import FakeEndpoint, Reply
from real_servers import RealServer, free_port

PAGE = "<!DOCTYPE html><html><head><title>Maintenance</title></head><body>Back soon</body></html>"


@pytest.fixture
def nginx(
    started: Callable[..., RealServer], tmp_path: Path, endpoint: FakeEndpoint
) -> Iterator[Callable[..., str]]:
    """Start nginx in front of the endpoint; return the base URL.

    ``server`` is added to the server's block, ``location`` to that of the API.
    """
    with ExitStack() as stack:

        def start(server: str = "", location: str = "", scheme: str = "http") -> str:
            port = free_port()
            folder = tmp_path / "nginx"
            folder.mkdir()
            upstream = endpoint.base_url.removesuffix("/v1")
            kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            temporary = "".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
            (folder / "nginx.conf").write_text(
                f"""
                daemon off;
                user root;
                pid {folder}/pid;
                error_log {folder}/error.log;
                events {{}}
                http {{
                    access_log {folder}/access.log;
                    {temporary}
                    client_max_body_size 100m;
                    server {{
                        listen 127.0.0.1:{port}{" ssl" if scheme == "https" else ""};
                        {server}
                        location = /ready {{ auth_basic off; return 204; }}
                        location / {{
                            proxy_pass {upstream};
                            proxy_http_version 1.1;
                            {location}
                        }}
                    }}
                }}
                """
            )
            url = f"{scheme}://127.0.0.1:{port}"
            running = started("nginx", "-p", folder, "-c", folder / "nginx.conf", url=url)
            stack.callback(running.kill)
            return f"{url}/v1"

        yield start


@pytest.fixture
def caption(
    run_command: Callable[..., Any], make_input: Callable[..., Path], tmp_path: Path
) -> Any:
    """Caption an input of some records."""

    def run(
        count: int, url: str, *options: object, model: str = "m", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        named = ("--model", model) if model else ()
        common = ("-o", tmp_path / "out.jsonl", "--base-url", url, *named)
        return run_command(make_input(count), *common, *options, env={**os.environ, **environment})

    return run


def captions(folder: Path) -> list[int]:
    return sorted(row["id"] for row in rows(folder / "out.jsonl"))


@pytest.fixture
def authority(tmp_path: Path) -> tuple[str, str]:
    """Return the file of an own CA, and what makes nginx use a certificate of it."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = ca.issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    file = tmp_path / "server.pem"
    return str(tmp_path / "ca.pem"), f"ssl_certificate {file}; ssl_certificate_key {file};"


def test_a_certificate_by_an_own_ca(nginx, authority, caption, tmp_path) -> None:
    """Unknown, it ends the run at once and SSL_CERT_FILE is named; named there, it works."""
    file, server = authority
    url = nginx(server, scheme="https")
    for model in ("m", ""):
        refused = caption(3, url, model=model)
        assert refused.returncode == 2, refused.stderr
        assert "SSL_CERT_FILE" in refused.stderr
        assert "certificate verify failed" in refused.stderr
    done = caption(3, url, SSL_CERT_FILE=file)
    assert done.returncode == 0, done.stderr
    assert captions(tmp_path) == [0, 1, 2]


def test_http_at_the_port_of_https(nginx, authority, caption) -> None:
    """nginx says it in HTML with status 400: that is wrong use, in its words."""
    url = nginx(authority[1], scheme="https").replace("https", "http")
    for model in ("m", ""):
        refused = caption(12, url, model=model)
        assert refused.returncode == 2, refused.stderr
        assert "The plain HTTP request was sent to HTTPS port" in refused.stderr
        assert "<" not in refused.stderr


def test_images_above_the_size_limit(nginx, caption, tmp_path, endpoint) -> None:
    """They are sent smaller (413)."""
    folder = tmp_path / "images"
    folder.mkdir()
    source = tmp_path / "input.jsonl"
    large = jpeg(2, (1_600, 1_200), quality=100)
    (folder / "large.jpg").write_bytes(large)
    limit = len(large) * 4 // 3 * 8 // 10
    url = nginx(location=f"client_max_body_size {limit};")
    source.write_text(json.dumps({"id": 0, "image": "images/large.jpg", "prompt": "q"}) + "\n")
    done = caption_file(source, url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "413 Request Entity Too Large" in done.stderr
    assert captions(tmp_path) == [0]
    assert all(len(call.images[0]) < limit for call in endpoint.calls)


def caption_file(source: Path, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    from conftest import command

    line = command(source, "-o", folder / "out.jsonl", "--base-url", url, "--model", "m")
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)


def test_a_proxy_that_gives_up(nginx, caption, tmp_path, endpoint) -> None:
    """A 504 is asked again, and its page is shown as its words."""
    endpoint.behave = lambda call: Reply(delay_s=30) if call.number <= 2 else None
    url = nginx(location="proxy_read_timeout 1s;")
    done = caption(6, url)
    assert done.returncode == 0, done.stderr
    assert captions(tmp_path) == [*range(6)]
    assert "2 retries" in done.stderr


def test_connections_that_end(nginx, caption, tmp_path, endpoint) -> None:
    """nginx closes each after some requests: no record fails, and none is paid twice."""
    url = nginx(server="keepalive_requests 3;")
    done = caption(60, url, "--concurrency", 4)
    assert done.returncode == 0, done.stderr
    assert captions(tmp_path) == [*range(60)]
    assert max(endpoint.answered.values()) == 1


def test_a_user_name_and_password(nginx, caption, tmp_path) -> None:
    """A wrong one ends the run with the page's words; no message shows it."""
    (tmp_path / "users").write_text("me:{PLAIN}s3cretpassword\n")
    url = nginx(server=f"auth_basic here; auth_basic_user_file {tmp_path}/users;")
    for model in ("m", ""):
        wrong = caption(12, url.replace("//", "//me:wrongpassword@"), model=model)
        assert wrong.returncode == 2, wrong.stderr
        assert "401 Authorization Required" in wrong.stderr
        assert "wrongpassword" not in wrong.stderr
        assert "<" not in wrong.stderr
    right = caption(3, url.replace("//", "//me:s3cretpassword@"))
    assert right.returncode == 0, right.stderr
    assert "s3cretpassword" not in right.stderr
    assert captions(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("model", ["m", ""])
@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("return 404;", "404 Not Found"),
        ("return 403;", "403 Forbidden"),
        ("return 301 https://example.com/login;", "redirects to https://example.com/login"),
        (f"default_type text/html; return 200 '{PAGE}';", "Maintenance"),
    ],
)
def test_a_place_that_is_no_api(nginx, caption, tmp_path, location, words, model) -> None:
    """The true reason is told, with and without --model; no record fails."""
    url = nginx(location=location)
    done = caption(40, url, model=model)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "<" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists() or captions(tmp_path) == []


@pytest.mark.parametrize("model", ["m", ""])
def test_a_server_that_does_not_run(nginx, caption, endpoint, model) -> None:
    """nginx answers 502 in its place: with and without --model that is waited for, then told."""
    url = nginx()
    endpoint.stop()
    done = caption(3, url, "--max-outage", 2, model=model)
    assert done.returncode == 7, done.stderr
    assert "502 Bad Gateway" in done.stderr
    assert "<" not in done.stderr


@pytest.mark.parametrize("model", ["m", ""])
def test_a_server_that_starts_late(nginx, make_input, tmp_path, endpoint, model) -> None:
    """The run begins as soon as it is there."""
    url = nginx()
    endpoint.stop()
    named = ("--model", model) if model else ()
    from conftest import command
    from waiting import LIMIT_S, wait_until

    line = command(make_input(3), "-o", tmp_path / "out.jsonl", "--base-url", url, *named)
    log = tmp_path / "nginx" / "access.log"
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen(line, stderr=told)
    wait_until(lambda: " 502 " in log.read_text(), process)
    endpoint.start()
    assert process.wait(LIMIT_S) == 0, (tmp_path / "told").read_text()
    assert captions(tmp_path) == [0, 1, 2]
