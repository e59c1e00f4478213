"""The README says what the code does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from captioner.settings.flags import all_options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_table_of_options_is_the_definition_of_the_options() -> None:
    """Whoever reads the README sees every option with its present default."""
    script = ROOT / "scripts" / "readme_options.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def on_by_default(flag: str) -> bool:
    return any(
        option.default is True and f"--{option.key}" == flag for option in all_options().values()
    )


def test_every_flag_that_is_named_exists() -> None:
    """No sentence of the README sends a user to a flag that is not there."""
    known = {f"--{option.key}" for option in all_options().values()}
    known |= {f"--no-{flag[2:]}" for flag in known if on_by_default(flag)}
    known |= {"--config", "--long", "--json", "--input", "--output", "--to", "--download"}
    known |= {
        "--probe",
        "--dry-run",
        "--help",
        "--help-all",
        "--html",
        "--references",
        "--reviewed",
        "--to-format",
    }
    known |= {"--host", "--port"}
    known |= {"--model-path", "--mmproj", "--parallel", "--no-deps"}  # of servers, and of pip
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_in_it_compiles_and_imports_what_exists(code) -> None:
    """Code that is copied from the README runs into no ImportError."""
    import captioner

    tree = ast.parse("async def example():\n" + textwrap.indent(code, "    "))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "captioner":
            assert all(hasattr(captioner, alias.name) for alias in node.names)


def test_the_json_in_it_is_json() -> None:
    """The records shown are records."""
    blocks = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    given, got = map(json.loads, blocks)
    caption = got.pop("caption")
    assert caption
    assert got == given


def test_exit_codes_are_those_of_the_errors() -> None:
    """The table of exit codes has each one that an error ends with."""
    from captioner.core import errors

    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    listed = {int(code) for code in re.findall(r"^\| ([\d]+)[ ,]", README, re.MULTILINE)}
    assert codes <= listed
