"""The README and the documentation say what the code does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from conftest import jpeg

import captioner
from captioner.core import errors
from captioner.endpoints.blame import STOP_FIRST, STOP_LATER
from captioner.endpoints.circuit_breaker import LOADING_S, NEVER_CAPTIONED_S
from captioner.endpoints.finish_reasons import finish_family
from captioner.endpoints.reply_rules import Verdict, verdict_of
from captioner.settings.flags import all_options
from captioner.settings.options import CODES

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "captioner" / "docs").glob("*.md"))
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "captioner" / "ARCHITECTURE.md"
ALL = [README, ARCHITECTURE, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *DOCS]
ENDPOINTS = ROOT / "captioner" / "docs" / "endpoints.md"
CAPTIONS = ROOT / "captioner" / "docs" / "captions.md"
CODES_PAGE = (ROOT / "captioner" / "docs" / "codes.md").read_text("utf-8")

COMMAND_FLAGS = {
    "--config", "--help", "--help-all", "--json", "--to", "--to-format", "--download", "--probe",
    "--dry-run", "--html", "--references", "--reviewed", "--host",
}  # fmt: skip
"""Flags of commands, which are not options of a run."""

OTHER_PROGRAMS = {
    "--max-model-len", "--tensor-parallel-size",
    "--model-path", "--mmproj", "--parallel", "--no-deps", "--port", "--long", "--check", "--text",
    "--servers",
}  # fmt: skip
"""Flags of servers, of pip and of our scripts."""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


def every_block(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{path.stem} {number}")
        for path in (README, *DOCS)
        for number, block in enumerate(blocks(path, language), 1)
    ]


def prose(path: Path) -> str:
    """Return a page without what looks like a flag but is not: table rules and comments."""
    return re.sub(r"<!--.*?-->|\| ---.*", "", path.read_text("utf-8"))


# -- pages -------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    """A reader with one minute gets through it; everything else is in the pages."""
    assert len(README.read_text("utf-8").splitlines()) <= 250


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_each_page_begins_with_a_title_and_one_sentence(path) -> None:
    """`captioner docs` lists the pages by this sentence."""
    title, blank, sentence, after, *_ = path.read_text("utf-8").splitlines()
    assert re.fullmatch(r"# \S.*", title)
    assert (blank, after) == ("", "")
    assert re.fullmatch(r"[A-Z].*\.", sentence)
    assert not re.search(r"\. [A-Z]", sentence)


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path) -> None:
    """Every relative link is to a file that exists, and to a heading in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"https?:", link):
            continue
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if heading:
            found = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in found
            }


def test_every_page_is_linked_from_the_readme() -> None:
    """No page is hidden."""
    linked = set(re.findall(r"captioner/docs/([\w-]+)\.md", README.read_text("utf-8")))
    assert linked == {path.stem for path in DOCS}


# -- options and flags -------------------------------------------------------------------------


def test_the_tables_of_options_are_up_to_date() -> None:
    """The page of options has every option with its present default."""
    script = ROOT / "scripts" / "write_docs.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [README, *DOCS], ids=lambda path: path.stem)
def test_every_flag_that_is_named_exists(path) -> None:
    """No page sends a user to a flag that does not exist."""
    options = all_options().values()
    known = {f"--{option.key}" for option in options}
    known |= {f"--no-{option.key}" for option in options if option.default is True}
    known |= COMMAND_FLAGS | OTHER_PROGRAMS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", prose(path))) <= known


# -- endpoints and captions ---------------------------------------------------------------------


def cells_of(path: Path, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table under a heading."""
    section = path.read_text("utf-8").partition(f" {heading}\n")[2]
    table = re.search(r"^\|.*\n\|[ :|-]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert table, heading
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()
    ]


def test_every_verdict_of_an_error_response_is_explained() -> None:
    """The page of endpoints has a row for each verdict, and no other."""
    rows = cells_of(ENDPOINTS, "What captioner does with an error response")
    assert {row[0].strip("` |") for row in rows} == set(get_args(Verdict))


def test_the_verdicts_of_statuses_are_those_of_the_code() -> None:
    """An error response with unknown words is treated as the page says."""
    text = ENDPOINTS.read_text("utf-8").partition("the status decides:\n")[2].partition("\n\n##")[0]
    rows = re.findall(r"^\| (\d.*?) \| `(\w+)` \|$", text, re.MULTILINE)
    found = {
        int(status): verdict for cell, verdict in rows for status in re.findall(r"\d{3}", cell)
    }
    assert found == {status: verdict_of(status, "") for status in found}
    assert len(found) > 20


def test_the_numbers_that_stop_a_run_are_those_of_the_code() -> None:
    """The page says after how many refusals and after which outage a run stops."""
    stops = cells_of(ENDPOINTS, "When a run stops")
    assert [int(row[1]) for row in stops] == [STOP_FIRST, STOP_LATER]
    outages = cells_of(ENDPOINTS, "What is waited for, and how long")
    assert outages[0][1].startswith(f"{NEVER_CAPTIONED_S:g} s")
    assert outages[1][1].startswith(f"{LOADING_S / 60:g} minutes")


def test_every_fault_of_a_caption_is_explained() -> None:
    """The page of checks has each code that a check gives, and each that --accept takes."""
    tree = ast.parse((ROOT / "captioner" / "engine" / "caption_checks.py").read_text("utf-8"))
    page = CAPTIONS.read_text("utf-8")
    assert codes_in(tree) | set(CODES) <= set(re.findall(r"`(\w+)`", page))
    taken = page.partition("`caption_flag`. It takes")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", taken)) == set(CODES)


def test_finish_reasons_are_in_the_family_that_the_page_names() -> None:
    """The examples of each family belong to it."""
    for family, examples, _ in cells_of(CAPTIONS, "Finish reasons"):
        for reason in re.findall(r"`(\w+)`", examples):
            assert finish_family(reason) == family


# -- examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", every_block("python"))
def test_python_compiles_and_imports_names_that_exist(code) -> None:
    """Code that is copied from a page raises no ImportError."""
    tree = ast.parse("async def example():\n" + textwrap.indent(code, "    "))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "captioner":
            assert all(hasattr(captioner, alias.name) for alias in node.names)


RUN_IN = ("README 1", *(f"library {number}" for number in range(1, 8)))
"""Examples that run by themselves; the others name a cluster, or are a part of a program."""


@pytest.mark.parametrize("code", [one for one in every_block("python") if one.id in RUN_IN])
def test_python_runs_as_it_is_pasted(code, tmp_path, endpoint) -> None:
    """Into a file, or with ``await`` at its top into Jupyter, whose rule for that is compile's."""
    (tmp_path / "photo.jpg").write_bytes(jpeg(1))
    (tmp_path / "other.png").write_bytes(jpeg(2))
    (tmp_path / "input.jsonl").write_text('{"image": "photo.jpg"}\n')
    code = code.replace("http://localhost:8000/v1", endpoint.base_url)
    code = code.replace("offline=True", f'base_url="{endpoint.base_url}"')
    paste = (
        "import ast, asyncio, inspect, sys\n"
        "code = compile(sys.stdin.read(), 'cell', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
        "found = eval(code)\n"
        "if inspect.iscoroutine(found): asyncio.run(found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", paste], input=code, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert endpoint.count


@pytest.mark.parametrize("text", every_block("toml"))
def test_toml_is_toml(text) -> None:
    """Files that are copied from a page can be read."""
    assert tomllib.loads(text)


@pytest.mark.parametrize("path", [README, ROOT / "captioner" / "docs" / "inputs.md"])
def test_json_is_a_record_before_and_after(path) -> None:
    """The records shown are records, and a caption is all that is added."""
    given, got = map(json.loads, blocks(path, "json"))
    assert got.pop("caption")
    assert got == given


# -- codes -------------------------------------------------------------------------------------

WITH_CODE = {
    "RecordError", "BadRecordError", "BadImageError", "RefusedError", "AttemptError",
    "EndpointFaultError", "BadReplyError", "ParameterError", "ImageRejectedError",
    "NotFoundError", "Failure", "fault_record", "broken_input", "fault",
}  # fmt: skip
CODE = re.compile(r"[a-z]+(?:_[a-z]+)*")


def strings_in(node: ast.expr) -> set[str]:
    """Return the strings that an expression may be: itself, or both branches of a choice."""
    if isinstance(node, ast.IfExp):
        return strings_in(node.body) | strings_in(node.orelse)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    return set()


def codes_in(tree: ast.AST) -> set[str]:
    """Return the failure codes in a module: of errors, of faults, and assigned to a `code`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            values = node.args if name in WITH_CODE else []
            values = values[:1] if name.endswith("Error") else values
            values = [*values, *(word.value for word in node.keywords if word.arg == "fault")]
        elif isinstance(node, ast.Assign):
            target = node.targets[0]
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            named = {name.id for name in names if isinstance(name, ast.Name)}
            values = [node.value] if named & {"code", "fault"} else []
        else:
            continue
        for value in values:
            first = value.elts[0] if isinstance(value, ast.Tuple) else value
            found |= {text for text in strings_in(first) if CODE.fullmatch(text)}
    return found


def test_every_failure_code_is_documented() -> None:
    """Each code that a failures file may have is on the page of codes."""
    package = ROOT / "captioner"
    skipped = package / "endpoints" / "offline"  # it answers as a server does, with codes of those
    found: set[str] = set()
    for path in package.rglob("*.py"):
        if not path.is_relative_to(skipped):
            found |= codes_in(ast.parse(path.read_text("utf-8")))
    assert {"image_missing", "bad_json", "looping", "duplicate_id", "bad_shard"} <= found
    assert found <= set(re.findall(r"`(\w+)`", CODES_PAGE)), found


def test_exit_codes_are_those_of_the_errors() -> None:
    """The table of exit codes has each one that an error ends with."""
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    listed = {int(code) for code in re.findall(r"^\| ([\d]+)[ ,]", CODES_PAGE, re.MULTILINE)}
    assert codes <= listed
