"""A script written for DataFlow-MM, with its imports changed."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import jpeg, rows
from endpoint import FakeEndpoint, Reply, completion
from waiting import LIMIT_S

from captioner.core.errors import SettingsError
from captioner.dataflow import APIVLMServing_openai, FileStorage, PromptedVQAGenerator
from captioner.endpoints import circuit_breaker

SCRIPT = """
import os
os.environ["DF_API_KEY"] = "sk-xxx"

from captioner.dataflow import FileStorage
from captioner.dataflow import LLMServingABC
from captioner.dataflow import APIVLMServing_openai
from captioner.dataflow import PromptedVQAGenerator


class ImageCaptionPipeline:
    def __init__(self, llm_serving: LLMServingABC = None):
        self.storage = FileStorage(
            first_entry_file_name="./sample_data.{kind}",
            cache_path="./cache_local",
            file_name_prefix="caption",
            cache_type="{kind}",
        )
        self.vlm_serving = APIVLMServing_openai(
            api_url="{url}",
            key_name_of_api_key="DF_API_KEY",
            model_name="gpt-5-nano-2025-08-07",
            image_io=None,
            send_request_stream=False,
            max_workers=10,
            timeout=1800
        )
        self.vqa_generator = PromptedVQAGenerator(
            serving=self.vlm_serving,
            system_prompt="You are a image caption generator."
        )

    def forward(self):
        self.vqa_generator.run(
            storage=self.storage.step(),
            input_conversation_key="conversation",
            input_image_key="image",
            output_answer_key="caption",
        )


if __name__ == "__main__":
    ImageCaptionPipeline().forward()
"""


def records(folder: Path, count: int = 12) -> list[dict]:
    """Records in both spellings, ids with leading zeros, one image missing."""
    found = []
    for number in range(count):
        (folder / f"{number}.png").write_bytes(jpeg(number))  # JPEG data under another name
        turn = (
            {"from": "human", "value": f"q{number}"}
            if number % 2
            else {"role": "user", "content": f"q{number}"}
        )
        path = f"./{number}.png"
        found.append(
            {"id": f"00{number}", "image": [path] if number % 3 else path, "conversation": [turn]}
        )
    found[5]["image"] = ["./missing.png"]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DF_API_KEY", "sk-xxx")
    return tmp_path


def write(folder: Path, kind: str, found: list[dict]) -> Path:
    path = folder / f"sample_data.{kind}"
    if kind == "json":
        path.write_text(json.dumps(found))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in found))
    else:
        frame = pd.DataFrame(found)
        frame["image"] = [
            one["image"] if isinstance(one["image"], str) else one["image"][0] for one in found
        ]
        if kind == "parquet":
            frame.to_parquet(path)
        elif kind == "pickle":
            frame.to_pickle(path)
        else:
            frame["prompt"] = [f"q{number}" for number in range(len(found))]
            frame.drop(columns="conversation").to_csv(path, index=False)
    return path


def run_script(folder: Path, endpoint: FakeEndpoint, kind: str = "json") -> subprocess.Popen:
    script = folder / "image_caption.py"
    script.write_text(SCRIPT.replace("{url}", endpoint.base_url).replace("{kind}", kind))
    environment = {name: value for name, value in os.environ.items() if name != "DF_API_KEY"}
    return subprocess.Popen(
        [sys.executable, script], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_script_written_for_dataflow(folder, endpoint, kind):
    """Despite faults of the endpoint, every row keeps its place and columns and gets an answer.
    A row without an image gets none, and no answer is the text of an error."""
    faults = [
        Reply(429, {"error": {"message": "slow down"}}),
        Reply(500, b"oops"),
        Reply(fault="reset"),
    ]
    endpoint.behave = lambda call: faults[call.number] if call.number < 3 else None
    found = records(folder)
    write(folder, kind, found)
    process = run_script(folder, endpoint, kind)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    output = folder / "cache_local" / f"caption_step1.{kind}"
    captioned = json.loads(output.read_bytes()) if kind == "json" else rows(output)
    assert [{n: v for n, v in row.items() if n != "caption"} for row in captioned] == found
    assert [row["caption"] is None for row in captioned] == [n == 5 for n in range(12)]
    assert all("rror" not in row["caption"] for row in captioned if row["caption"])
    assert all(len(call.images) == 1 for call in endpoint.calls)
    assert {call.texts[0] for call in endpoint.calls} == {f"q{n}" for n in range(12) if n != 5}
    assert endpoint.calls[0].body["messages"][0]["content"] == "You are a image caption generator."
    (failure,) = rows(folder / "cache_local" / "caption_step1.captions.failed.jsonl")
    assert failure["code"] == "image_missing"


def test_a_second_run_continues_the_first(folder, endpoint):
    """After an interruption no request is sent twice, and an image that was missing and now
    exists is answered."""
    endpoint.latency_s = 0.05
    found = records(folder, 60)
    write(folder, "json", found)
    endpoint.on_request[25] = lambda: process.send_signal(signal.SIGINT)
    process = run_script(folder, endpoint)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in errors
    assert not (folder / "cache_local" / "caption_step1.json").exists()
    (folder / "missing.png").write_bytes(jpeg(99))
    process = run_script(folder, endpoint)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert endpoint.given == 60 + 2  # each run asks about a test image
    captioned = json.loads((folder / "cache_local" / "caption_step1.json").read_bytes())
    assert all(row["caption"] for row in captioned)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "pickle"])
def test_every_type_of_file_in_and_out(folder, endpoint, kind):
    path = write(folder, kind, records(folder))
    mine = kind == "pickle"
    storage = FileStorage(str(path), str(folder / "cache"), "x", kind, allow_pickle=mine)
    serving = APIVLMServing_openai(endpoint.base_url, model_name="m")
    keys = (
        {"input_prompt_key": "prompt"}
        if kind == "csv"
        else {"input_conversation_key": "conversation"}
    )
    name = PromptedVQAGenerator(serving).run(storage.step(), **keys, output_answer_key="caption")
    assert name == "caption"
    assert (folder / "cache" / f"x_step1.{kind}").exists()
    frame = storage.step().read("dataframe")
    assert list(frame.columns[-1:]) == ["caption"]
    assert list(frame["id"]) == [f"00{number}" for number in range(12)]
    answered = [isinstance(value, str) and bool(value) for value in frame["caption"]]
    assert answered == [number != 5 for number in range(12)]
    assert endpoint.count == 11


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> object:
        return (Path.touch, (self.made,))


@pytest.mark.parametrize("how", ["run", "read"])
@pytest.mark.parametrize("ending", ["pkl", "pickle"])
def test_a_pickle_is_not_read_unless_that_is_allowed(folder, endpoint, how, ending, monkeypatch):
    """Reading it runs the code in it: one sentence says how to allow that."""
    path, made = folder / f"in.{ending}", folder / "made"
    path.write_bytes(pickle.dumps(Payload(made)))
    storage = FileStorage(str(path), str(folder / "cache"), "x").step()
    serving = APIVLMServing_openai(endpoint.base_url, model_name="m")

    def read() -> None:
        if how == "read":
            storage.read()
        else:
            PromptedVQAGenerator(serving).run(storage, input_prompt_key="prompt")

    with pytest.raises((SystemExit, SettingsError), match=r"runs the code in it.*allow_pickle"):
        read()
    assert not made.exists()
    monkeypatch.setenv("DF_ALLOW_PICKLE", "1")
    with contextlib.suppress(Exception):  # it holds no table
        read()
    assert made.exists()


def test_a_plain_question_in_a_column_of_any_name(folder, endpoint):
    """It is sent in place of the conversation in the same row."""
    found = [{**record, "ask": f"a{n}"} for n, record in enumerate(records(folder, 6))]
    path = write(folder, "jsonl", found)
    storage = FileStorage(str(path), str(folder), "x", "jsonl").step()
    serving = APIVLMServing_openai(endpoint.base_url, model_name="m")
    PromptedVQAGenerator(serving).run(storage, input_prompt_key="ask")
    assert sorted(call.texts[0] for call in endpoint.calls) == [f"a{n}" for n in (0, 1, 2, 3, 4)]
    assert [bool(row["answer"]) for row in rows(folder / "x_step1.jsonl")] == [True] * 5 + [False]


def test_storage_reads_and_writes_what_it_is_given(folder):
    """Each step has its file; values stay as they are, with leading zeros."""
    (folder / "in.json").write_text('[{"id": "007", "n": 1}, {"id": "8", "n": null}]')
    storage = FileStorage("in.json", "cache", "x", "csv").step()
    assert storage.read("dict") == [{"id": "007", "n": 1}, {"id": "8", "n": None}]
    frame = storage.read()
    assert list(frame["id"]) == ["007", "8"]
    assert storage.write(frame.drop(columns="n")) == str(Path("cache/x_step1.csv"))
    with Path("cache/x_step1.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["id"], ["007"], ["8"]]
    assert storage.step().read("dict") == [{"id": "007"}, {"id": "8"}]
    assert storage.reset().operator_step == -1
    with pytest.raises(ValueError, match="Unsupported data"):
        storage.write("text")
    with pytest.raises(ValueError, match="Unsupported output"):
        storage.read("list")
    with pytest.raises(ValueError, match="Unsupported file type"):
        FileStorage("in.json", cache_type="xml")


def test_the_other_methods_of_the_serving(folder, endpoint, caplog):
    records(folder)
    endpoint.behave = lambda call: Reply(body=completion("|".join(call.texts)))
    serving = APIVLMServing_openai(endpoint.base_url, model_name="m")
    assert serving.generate_from_input(["0.png", ("1.png", "why?")], "what?") == ["what?", "why?"]
    assert serving.generate_from_input_one_image(["0.png", "1.png"], ["a", "b"], "s") == ["a", "b"]
    assert endpoint.calls[-1].body["messages"][0] == {"role": "system", "content": "s"}
    found = serving.generate_from_input_multi_images([["0.png", "1.png"]], [["x", "y"]], "look")
    assert found == ["look|x:|y:"]
    assert len(endpoint.calls[-1].images) == 2
    turns = [{"from": "human", "value": "<image>\nwho?"}]
    assert serving.generate_from_input_messages([turns], [["2.png"]], system_prompt="s") == ["who?"]
    assert serving.chat_with_one_image("3.png", "where?") == "where?"
    assert serving.analyze_images_with_gpt(["0.png"], ["x"], "look") == "look|x:"
    with caplog.at_level(logging.WARNING):
        assert serving.generate_from_input(["0.png", "gone.png"], "q") == ["q", None]
    assert "gone.png" in caplog.text
    serving.cleanup()
    with pytest.raises(ValueError, match="same length"):
        serving.generate_from_input_one_image(["0.png"], [])
    with pytest.raises(ValueError, match="videos"):
        serving.generate_from_input_messages([turns], [["2.png"]], video_list=[["a.mp4"]])


async def test_inside_a_running_loop(folder, endpoint):
    """As in a notebook."""
    path = write(folder, "json", records(folder))
    storage = FileStorage(str(path), str(folder), "x", "json").step()
    serving = APIVLMServing_openai(endpoint.base_url, model_name="m")
    PromptedVQAGenerator(serving).run(storage, input_conversation_key="conversation")
    assert len(json.loads((folder / "x_step1.json").read_bytes())) == 12
    assert len(serving.generate_from_input(["0.png"], "q")) == 1
    await asyncio.sleep(0)


def ended(folder: Path, endpoint: FakeEndpoint, **changes: str) -> str:
    """Run the script with some values changed, and return the line with which it ends."""
    script = folder / "image_caption.py"
    text = SCRIPT.replace("{url}", endpoint.base_url).replace("{kind}", "json")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, script], cwd=folder, text=True, capture_output=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert not re.search(r"(?<!\S)-{1,2}[a-z]", line), "it names a flag of the command"
    return line


def test_a_wrong_key_is_one_sentence(folder, endpoint):
    """It names the argument of the script, not a flag of the command."""
    endpoint.behave = lambda _: Reply(401, {"error": {"message": "no such key"}})
    write(folder, "json", records(folder, 6))
    line = ended(folder, endpoint)
    assert "no such key" in line
    assert "key_name_of_api_key" in line


def test_a_wrong_address_is_one_sentence(folder, endpoint, monkeypatch):
    """Whether it is no URL, a page without an API, or a port without a server."""
    write(folder, "json", records(folder, 6))
    url = endpoint.base_url
    assert "api_url: must begin with http" in ended(folder, endpoint, **{url: "ftp://x"})
    assert "api_url: must not be empty" in ended(folder, endpoint, **{url: ""})
    line = ended(folder, endpoint, **{url: f"{url}/v2"})
    assert "404" in line
    assert "api_url" in line
    monkeypatch.setattr(circuit_breaker, "NEVER_CAPTIONED_S", 0.1)
    serving = APIVLMServing_openai("http://127.0.0.1:9/v1", model_name="m")
    with pytest.raises(SystemExit, match=r"cannot connect to .* Run the script again"):
        serving.generate_from_input(["0.png"], "q")


def test_another_model_in_the_same_folder_begins_anew(folder, endpoint):
    """The step's file has its answers; those of the first model are not paid for again."""
    write(folder, "json", records(folder, 6))
    endpoint.behave = lambda call: Reply(body=completion(call.body["model"]))

    def answers(model):
        serving = APIVLMServing_openai(endpoint.base_url, model_name=model)
        storage = FileStorage(
            str(folder / "sample_data.json"), str(folder / "cache"), "caption", "json"
        )
        PromptedVQAGenerator(serving).run(
            storage.step(), input_conversation_key="conversation", output_answer_key="caption"
        )
        rows = json.loads((folder / "cache/caption_step1.json").read_bytes())
        return {row["caption"] for row in rows if row["caption"] is not None}

    assert answers("a") == {"a"}
    asked = endpoint.count
    assert answers("org/b:1") == {"org/b:1"}
    assert endpoint.count == 2 * asked
    assert (folder / "cache/caption_step1.org_b_1.captions.jsonl").exists()
    assert answers("a") == {"a"}
    assert endpoint.count == 2 * asked


def test_another_prompt_in_the_same_folder_is_one_sentence(folder, endpoint):
    """It names both prompts and the argument that selects another folder."""
    write(folder, "json", records(folder, 6))
    run_script(folder, endpoint).communicate(timeout=LIMIT_S)
    line = ended(folder, endpoint, **{"You are a image": "You are a picture"})
    assert "system-prompt was" in line
    assert "or choose another cache_path" in line


def test_an_output_that_was_edited_is_one_sentence(folder, endpoint):
    """The advice to use a flag is left out."""
    write(folder, "json", records(folder, 6))
    run_script(folder, endpoint).communicate(timeout=LIMIT_S)
    answers = folder / "cache_local" / "caption_step1.captions.jsonl"
    answers.write_bytes(answers.read_bytes().replace(b"q", b"Q"))
    assert "choose another cache_path" in ended(folder, endpoint)
    answers.write_bytes(answers.read_bytes()[:-20])
    assert "choose another cache_path" in ended(folder, endpoint)


def test_a_script_without_logging_sees_why_an_answer_is_missing(folder, endpoint):
    """A missing answer is explained on standard error once."""
    script = f"""
from captioner.dataflow import APIVLMServing_openai
serving = APIVLMServing_openai("{endpoint.base_url}", model_name="m")
assert serving.generate_from_input(["gone.png"], "q") == [None]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, text=True, capture_output=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("gone.png")) == (0, 1)
    assert "input 1 has no answer" in done.stderr


@pytest.mark.parametrize("end", ["/", "/chat/completions", "/chat/completions/"])
def test_the_address_of_chat_completions_works_too(folder, endpoint, end):
    """People copy it from the documentation of their endpoint."""
    records(folder, 6)
    serving = APIVLMServing_openai(endpoint.base_url + end, model_name="m")
    assert serving.generate_from_input(["0.png"], "q") != [None]


def test_what_cannot_work_is_refused(folder, endpoint, monkeypatch):
    monkeypatch.delenv("DF_API_KEY")
    with pytest.raises(SystemExit, match="DF_API_KEY"):
        APIVLMServing_openai(endpoint.base_url)
    with pytest.raises(SystemExit, match="key_name_of_api_key") as caught:
        APIVLMServing_openai(endpoint.base_url, "sk-secret")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("DF_API_KEY", "k")
    with pytest.raises(ValueError, match="image_io"):
        APIVLMServing_openai(image_io=object())
    with pytest.raises(TypeError, match="serving"):
        PromptedVQAGenerator(object())
    operator = PromptedVQAGenerator(APIVLMServing_openai(endpoint.base_url))
    with pytest.raises(ValueError, match="Exactly one"):
        operator.run(FileStorage("x.json").step())
