"""Marks of thinking, boxes and turns of any model family, and captions that name them."""

from __future__ import annotations

import pytest

from captioner.endpoints.thinking import final_text

WHOLE = "A red square."

THOUGHT = [
    "<think>hm</think>\n\nA red square.",
    "<think></think>A red square.",
    "<THINK>hm</THINK>A red square.",
    "<think >hm</think >A red square.",
    '<think time="2">hm</think>A red square.',
    "<thinking>hm</thinking>A red square.",
    "<thought>hm</thought>A red square.",
    "<reasoning>hm</reasoning>A red square.",
    "<reasoning_content>hm</reasoning_content>A red square.",
    "<longcat_think>hm</longcat_think>A red square.",
    "<ds_think>hm</ds_think>A red square.",
    "<mm:think>hm</mm:think>A red square.",
    "<seed:think><seed:cot_budget_reflect>x</seed:cot_budget_reflect>hm</seed:think>A red square.",
    "<seed:cot_budget_reflect>x</seed:cot_budget_reflect>A red square.",
    "<internal_monologue>hm</internal_monologue>A red square.",
    "<scratchpad>hm</scratchpad>A red square.",
    "<analysis>hm</analysis>A red square.",
    "[THINK]hm[/THINK]A red square.",
    "[REASONING]hm[/REASONING]A red square.",
    "◁think▷hm◁/think▷A red square.",
    "<|thinking|>hm<|/thinking|>A red square.",
    "<|begin_of_thought|>hm<|end_of_thought|>A red square.",
    "<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>A red square.<|end_of_solution|>",
    "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>A red square.<|END_RESPONSE|>",
    "&lt;think&gt;hm&lt;/think&gt;A red square.",
    "<unused94>thought\nhm<unused95>A red square.",
    "<|channel>thought\nhm hm<channel|>A red square.",
    "<think><think>a</think>b</think>A red square.",
    "<think>a</think><think>b</think>A red square.",
    "hm hm</think>A red square.",
    "hm</think></think>A red square.",
    "<think>The tag </think> closes it.</think>A red square.",
    (
        "<SUMMARY>I will</SUMMARY><CAPTION>sq</CAPTION><REASONING>hm</REASONING>"
        "<CONCLUSION>A red square.</CONCLUSION>"
    ),
    '<think>He wrote "<think>" there.</think>A red square.',
    (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
        "A red square.<|return|>"
    ),
    "<|channel|>commentary<|message|>hm<|end|><|channel|>final<|message|>A red square.",
    "analysisThe user wants a caption.assistantfinalA red square.",
    "analysisHm.assistantcommentaryHm.assistantfinal A red square.",
    "Thinking...\nhm\n...done thinking.\n\nA red square.",
    "**Thinking**\nhm hm\n\n**Final Answer**\nA red square.",
    "### Reasoning\nhm\n### Final answer\nA red square.",
    (
        '<details type="reasoning" done="true"><summary>Thought for 2 seconds</summary>hm'
        "</details>\nA red square."
    ),
    "<details><summary>Thinking</summary>hm</details>A red square.",
    "<think>hm</think><answer>A red square.</answer>",
    "<think>x</think>\n<|begin_of_box|>A red square.<|end_of_box|>",
]  # fmt: skip

DRESSED = [
    "<|channel|>final<|message|>A red square.",
    "<|start|>assistant<|channel|>final<|message|>A red square.<|end|>",
    "<answer>A red square.</answer>",
    "<answer>A red square.",
    "<caption>A red square.</caption>",
    "<response>\nA red square.\n</response>",
    "<output>A red square.</output>",
    "<final_answer>A red square.</final_answer>",
    "<CONCLUSION>A red square.</CONCLUSION>",
    "\\boxed{A red square.}",
    "$\\boxed{\\text{A red square.}}$",
    "<|begin_of_box|>A red square.<|end_of_box|>",
    "[BEGIN FINAL RESPONSE]A red square.[END FINAL RESPONSE]",
    "A red square.<|im_end|>",
    "A red square.<|im_end|>\n<|im_start|>user\nMore",
    "A red square.<|endoftext|>Human: hi",
    "A red square.<|end_of_sentence|>",
    "A red square.<\uff5cend▁of▁sentence\uff5c>",
    "A red square.<|endofassistant|>",
    "A red square.\n<|observation|>",
    "A red square.<|END_OF_TURN_TOKEN|>",
    "A red square.<|fim_pad|>",
    "A red square.<end_of_turn>",
    "A red square.<turn|>",
    "A red square.</s>",
    "A red square.[EOS]",
    "A red square. [PAD] [PAD]",
    "A red square.<EOD>",
    "A red square.<unk>",
    "A red square.<pad><pad><pad>",
    "A red square.<0x0A>",
    "<s>A red square.</s>",
    "<|assistant|>A red square.",
    "<|im_start|>assistant\nA red square.",
    "<|start_header_id|>assistant<|end_header_id|>\n\nA red square.<|eot_id|>",
    "assistant\nA red square.",
    "assistant\n\nassistant\n\nA red square.",
    "ASSISTANT: A red square.",
    "<image>A red square.",
    "<|vision_start|><|image_pad|><|vision_end|>A red square.",
]

UNENDED = [
    "<think>hm and so on",
    "A red <think>hm and",
    "[THINK]hm and so on",
    "◁think▷hm and",
    "<think>one <think>two</think> and three",
    "<|channel|>analysis<|message|>The user wants a caption so I say",
    "analysisThe user wants a caption",
    "Thinking...\nhm and",
    '<details type="reasoning" done="false"><summary>Thinking</summary>hm',
    "&lt;think&gt;hm",
]

KEPT = [
    'A sign that reads "<think>" on a wall.',
    "A poster with the word [THINK] in red.",
    "A screen shows `</think>` in code.",
    'Code with "<think>...</think>" in a monospaced font.',
    "A page with `</think>` and `<|im_end|>` on it.",
    "A laptop shows HTML: <answer> tags in an editor.",
    "A keyboard with < and > keys.",
    "The sign says <think>",
    "Thinking... about lunch, a man rests his chin on his hand.",
    "**Analysis**\nThe image shows a dog.",
    "Analysis of a chess game: arrows on a board.",
    "analysis of a chess game on a page",
    "assistant coach shouting from the touchline",
    "Assistant: a title on a badge.",
    "model of a ship in a bottle",
    "<p>A cat on a mat.</p>",
    "A key labelled [ESC] beside [TAB].",
    'A label that reads "[EOS]"',
    "A formula, \\boxed{x}, on a blackboard.",
    "Tom & Jerry on a poster.",
    "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(1,2)<|box_end|> sits.",
    "<|ref|>Title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
    "<details><summary>Menu</summary>Tea 2.50</details>",
]


@pytest.mark.parametrize("text", THOUGHT)
def test_what_the_model_thought_is_not_the_caption(text) -> None:
    """In any mark, nested or not, with its beginning in the prompt or in the text."""
    assert final_text(text) == (WHOLE, True)


@pytest.mark.parametrize("text", DRESSED)
def test_boxes_and_turns_are_not_the_caption(text) -> None:
    """What stands around the answer goes; nothing was thought."""
    assert final_text(text) == (WHOLE, False)


@pytest.mark.parametrize("text", UNENDED)
def test_thinking_that_has_no_end_leaves_no_caption(text) -> None:
    """Nothing after it is known to be an answer."""
    assert final_text(text) == ("", True)


@pytest.mark.parametrize("text", KEPT)
def test_a_caption_that_names_a_mark_is_kept_whole(text) -> None:
    """Signs, code and places in the image."""
    assert final_text(text) == (text, False)


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user\nDescribe it.<|im_end|>", "<|endoftext|>Human: hi", "<|user|>Describe it."],
)
def test_an_echo_of_another_turn_is_no_caption(text) -> None:
    """What the user said, or would say next, is not the model's answer."""
    assert final_text(text)[0] == ""


@pytest.mark.parametrize(
    "unit",
    [
        "<", "<think>", "</think>", "<think></think>", "[THINK]", "◁", "<|", "<|channel|>",
        "<|channel|>final<|message|>", "<|im_end|>", "<pad>", "<pad> ", "[PAD] ", " ", "\n",
        "<answer>", "</answer>", "<answer></answer> ", "<CONCLUSION>", "\\boxed{", "assistant\n",
        "assistantfinal", "analysis", "Thinking...\n", "...done thinking", "&lt;think",
        "<details type=reasoning ", "</details>", "# ", "**answer**\n", "<unused1> thought",
        "<thinkthinkthink", "<aaaaaaaaaaaaaaaaaaaaaaathink", '"<think>"', "<think  a",
    ],
)  # fmt: skip
def test_hostile_text_is_read_at_once(unit) -> None:
    """100,000 characters in one pass; a hang is caught by the suite's timeout."""
    for before in ("", "<think>", "A cat. ", "<SUMMARY>", "<answer>", "**Thinking**\n"):
        for after in ("", " x", "</think>A"):
            final_text(before + unit * (100_000 // len(unit)) + after)
