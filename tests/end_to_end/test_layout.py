"""The layout of the package. Which wing may import which other one is import-linter's contract."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import captioner

ROOT = Path(captioner.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if "project" not in path.relative_to(ROOT).parts  # what `init` copies is data
}
TESTS_ONLY = {"conftest", "endpoint", "fakes", "pytest", "tests", "unittest"}

EXCEPTIONS = {
    "captioner.endpoints.offline.server": "only `serve` and --offline load a server",
    "captioner.endpoints.serving.launchers": "only `serve` and `models` load servers",
    "captioner.endpoints.serving.machine": "only `serve` and `models` load servers",
    "captioner.endpoints.serving.own": "only `serve` and `models` load servers",
    "captioner.executors.batch_api.ledger": "`status` loads no pipeline",
    "captioner.executors.batch_api.status": "`status` loads no pipeline",
    "captioner.executors.ray.driver": "only --ray loads the driver",
}
"""Modules of sub-packages that other wings import by their full name, and why."""


def imports(module: str) -> Iterator[str]:
    """Yield the full name of each module that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(MODULES[module].read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def wing(module: str) -> str:
    """Return the wing of a module of the package, or its name where it is at the top."""
    return module.split(".")[1] if "." in module else ""


def is_inside_a_subpackage(module: str) -> bool:
    """Return whether a module is deeper than `captioner.<wing>.<module>`."""
    return module in MODULES and module.count(".") > 2


def test_the_top_of_the_package_can_be_seen_at_a_glance():
    top = {path.relative_to(ROOT).parts[0] for path in MODULES.values()}
    assert len(top) <= 15, sorted(top)


def test_wings_import_no_deeper_than_a_module_of_another_wing():
    """Modules of sub-packages are used through the `__init__` of their sub-package."""
    found = {
        imported
        for module in MODULES.keys() - {"captioner"}  # it only says where the public names are
        for imported in imports(module)
        if is_inside_a_subpackage(imported) and wing(imported) != wing(module)
    }
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "an exception that is no longer needed"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_package_imports_no_tests(module):
    """What is installed runs without what is only in the repository."""
    assert not TESTS_ONLY & {name.split(".")[0] for name in imports(module)}
