from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from real_servers import RECIPES, RealServer, is_installed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of chat servers on each one that was asked for."""
    if "chat" in metafunc.fixturenames:
        names = [name for name in chosen(metafunc.config) if RECIPES[name].model]
        metafunc.parametrize("chat", names, indirect=True, scope="session")


def chosen(config: pytest.Config) -> list[str]:
    """Return the servers that were asked for."""
    return config.getoption("--servers").split(",")


@pytest.fixture(scope="session")
def wanted(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Skip the test unless a server was asked for and is installed."""

    def skip_without(name: str) -> None:
        if name not in chosen(request.config):
            pytest.skip(f"{name} was not asked for")
        if not is_installed(name):
            pytest.skip(f"{name} is not installed: scripts/servers install {name}")

    return skip_without


@pytest.fixture(scope="session")
def started(
    wanted: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RealServer]]:
    """Start servers; they are stopped at the end of all tests."""
    running: list[RealServer] = []

    def start(name: str, *more: object, url: str = "") -> RealServer:
        wanted(name)
        server = RealServer(name, tmp_path_factory.mktemp(name), *more, url=url)
        running.append(server)
        server.start()
        return server

    yield start
    for server in running:
        server.kill()


@pytest.fixture(scope="session")
def chat(request: pytest.FixtureRequest, started: Callable[..., RealServer]) -> RealServer:
    """A chat server that runs."""
    return started(request.param)
