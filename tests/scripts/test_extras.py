"""All extras can be installed together."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(UV is None, reason="uv is not installed")
@pytest.mark.timeout(300)
def test_all_extras_are_resolved_together(tmp_path):
    """A resolver finds versions for all at once, and those of ModelScope that import."""
    done = subprocess.run(
        [UV, "pip", "compile", "--all-extras", "--quiet", ROOT / "pyproject.toml"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    if re.search("error sending request|dns error|connect", done.stderr, re.IGNORECASE):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^([\w-]+)==(\S+)", done.stdout, re.MULTILINE))

    def version(name):
        return tuple(map(int, re.findall(r"\d+", found[name])[:2]))

    assert version("modelscope") >= (1, 40)
    assert version("fsspec") <= (2026, 2)
    assert version("rapidocr") >= (3, 10)
    assert "opencv-python" not in found


def test_messages_name_packages_that_are_the_right_ones() -> None:
    """What a message tells to install is what an extra installs; others have like names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = itertools.chain(project["dependencies"], *extras)
    known = {re.split(r"[\[><=;]", one)[0].strip() for one in wanted}
    told = set()
    for path in (ROOT / "captioner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_call and node.func.id == "needed" and isinstance(node.args[-1], ast.Constant):
                packages = node.args[-1].value
                told |= (
                    {packages.partition(".")[0]} if len(node.args) == 1 else set(packages.split())
                )
    assert {"instant-clip-tokenizer", "pyarrow", "ray"} <= told
    assert told <= known | {"fsspec"}


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "captioner").rglob("*.md")])
def test_pages_install_nothing_from_an_index_that_has_no_captioner(path) -> None:
    assert "pip install captioner" not in path.read_text()
    assert "captioner[" not in path.read_text()
