"""The shape of captions: what is replaced, forbidden, cut, and put around them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from captioner.core.errors import BadRecordError, BadReplyError, SettingsError
from captioner.core.types import Completion, Notes, RequestOverrides, Usage, ValidatedCompletion
from captioner.engine.caption_checks import CaptionRules, ask_again, check
from captioner.engine.shape import Shape
from captioner.engine.tokens import clip_tokens
from captioner.settings.settings import Settings


def answer(text: str) -> Completion:
    return Completion(text, "stop", "m", Usage())


def shaped(text: str, notes: Notes | None = None, **options) -> str:
    shape = Shape(Settings.create("in.jsonl", **options).resolved())
    ((found,),) = shape.shaped([[ValidatedCompletion(text, answer(text))]], notes)
    assert found.raw == text
    return found.value


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"prefix": "ohwx man, "}, "a man", "ohwx man, a man"),
        ({"prefix": "ohwx man, "}, "ohwx man, a man", "ohwx man, a man"),
        ({"suffix": ", photo"}, "a man", "a man, photo"),
        ({"caption_template": "ohwx man, {{ caption }}"}, "a man", "ohwx man, a man"),
        ({"caption_template": "{{ caption|lower }}"}, "A Man", "a man"),
        ({"replace": ("a man=ohwx man", "the=a")}, "a man in the rain", "ohwx man in a rain"),
        ({"replace": "image of ="}, "an image of a cat", "an a cat"),
        ({"replace_re": r"^(?i)(?:the|an) image (?:shows|of) ="}, "The image shows a cat", "a cat"),
        ({"replace_re": r"(\w+) (\w+)=\2 \1"}, "a b", "b a"),
        ({"replace_re": r"x\=y=z"}, "x=y", "z"),
        ({"forbid": "image of"}, "An  Image of a cat. It sleeps.", "It sleeps."),
        ({"forbid": "图片"}, "这是一张图片。猫在睡觉。", "猫在睡觉。"),
        ({"forbid": "cat"}, "It is a category.", "It is a category."),
        ({"forbid": "image of"}, "An image of Mr. Smith on a horse. He waves.", "He waves."),
        (
            {"forbid": "image of"},
            'It reads "Stop." An image of a cat.\n\nThe end.',
            'It reads "Stop."\n\nThe end.',
        ),
        ({"forbid": "image of"}, "- A cat\n- An image of a dog\n- A mat", "- A cat\n- A mat"),
        ({"max_clip_tokens": 9}, 'It reads "Stop." A man stops there.', 'It reads "Stop."'),
        ({"tags": "given"}, "1girl, Blue_Eyes, blue eyes,  ^_^, 1girl.", "1girl, blue eyes, ^_^"),
        ({"tags": "sorted"}, "zebra, apple", "apple, zebra"),
        (
            {"tag_blacklist": ("watermark, rating_safe",)},
            "cat, Rating:x, watermark",
            "cat, rating:x",
        ),
        ({"tags": "given", "prefix": "ohwx, "}, "Cat, cat", "ohwx, cat"),
    ],
)
def test_what_is_done_with_a_caption(options, text, expected):
    assert shaped(text, **options) == expected


def test_words_are_read_from_files(tmp_path):
    (tmp_path / "words.txt").write_text("image of\nstock photo\n")
    forbid = f"@{tmp_path / 'words.txt'}"
    assert shaped("A stock photo. A cat.", forbid=(forbid,)) == "A cat."
    with pytest.raises(SettingsError, match=r"forbid: cannot read .*none\.txt"):
        Settings.create("in.jsonl", forbid="@none.txt").resolved()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"replace": "no sign"}, "replace: 'no sign' is not OLD=NEW"),
        ({"replace_re": "(a=b"}, "replace-re: the pattern"),
        ({"replace_re": r"a=\2"}, "no group 2"),
        ({"replace_re": r"(a+)\1=x"}, "endless time"),
        ({"caption_template": "ohwx man"}, "does not name {{ caption }}"),
        ({"caption_template": "{{ caption"}, "the template is wrong in line 1"),
        ({"prefix": "x", "preset": "caption"}, "needs captions that are text"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(options, told):
    with pytest.raises(SettingsError) as error:
        Shape(Settings.create("in.jsonl", **options))
    assert told in str(error.value)


def test_a_caption_is_cut_to_its_tokens_after_a_sentence():
    """Trainers count without the two marks of CLIP, and cut without a word of warning."""
    count = clip_tokens()
    text = "A black cat sits on a red mat. It looks at a bird. The bird flies over the old house."
    assert count(text) == 23
    assert shaped(text, max_clip_tokens=23) == text
    assert shaped(text, max_clip_tokens=20) == "A black cat sits on a red mat. It looks at a bird."
    assert shaped(text, max_clip_tokens=6) == "A black cat sits on a"
    cut = shaped(text, max_clip_tokens=11, prefix="ohwx, ", suffix=" photo")
    assert cut == "ohwx, A black cat sits on a red photo"
    assert count(cut) <= 11


@pytest.fixture
def t5(tmp_path):
    """Return a file as the models of T5 have it, of which each word is a token."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    tokenizer.enable_truncation(3)  # as such files say, which is not to be counted
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_tokens_of_t5_are_those_of_its_file(t5):
    """The mark of the end counts, as trainers count it."""
    options = {"t5_tokenizer": t5, "prefix": "ohwx "}
    assert shaped("a b c d", **options, max_t5_tokens=6) == "ohwx a b c d"
    assert shaped("a b c d", **options, max_t5_tokens=5) == "ohwx a b c"
    for wrong, told in ((None, "--t5-tokenizer"), ("none.json", "cannot read none.json")):
        with pytest.raises(SettingsError, match=told):
            Shape(Settings.create("in.jsonl", max_t5_tokens=9, t5_tokenizer=wrong))


def test_tags_are_left_out_from_the_end():
    assert shaped("one, two, three, four", max_clip_tokens=5, tags="given") == "one, two, three"


def test_no_room_for_a_caption_is_the_records_failure():
    with pytest.raises(BadRecordError) as error:
        shaped("a cat", max_clip_tokens=2, prefix="a very long trigger phrase, ")
    assert error.value.code == "too_many_tokens"


def test_an_old_caption_is_joined():
    """A space after a sentence, a comma after a tag; tags are then counted once."""
    assert shaped("a cat", Notes(existing=("A dog.",)), existing="append") == "A dog. a cat"
    assert shaped("a cat", Notes(existing=("1cat",)), existing="append") == "1cat, a cat"
    assert shaped("a cat", Notes(existing=("1cat",)), existing="prepend") == "a cat, 1cat"
    assert shaped("a cat", Notes(existing=("",)), existing="append") == "a cat"
    notes = Notes(existing=("cat, mat",))
    assert shaped("mat, hat", notes, existing="append", tags="given") == "cat, mat, hat"


def test_what_the_template_names_is_filled_in():
    notes = Notes(values={"folder": "10_ohwx"})
    template = "{{ folder }}: {{ caption }}"
    assert shaped("{{ 7 * 7 }}", notes, caption_template=template) == "10_ohwx: {{ 7 * 7 }}"


def test_an_answer_with_forbidden_words_is_no_caption_until_it_may_be_cut():
    """The next request says what was wrong; the second answer is taken without the sentence."""
    rules = CaptionRules(shape=Shape(Settings.create("in.jsonl", forbid="image of")))
    with pytest.raises(BadReplyError) as error:
        check(answer("An image of a cat. It sleeps."), rules)
    assert (error.value.code, "'image of'" in error.value.message) == ("forbidden", True)
    assert check(answer("An image of a cat. It sleeps."), rules, may_cut=True).flag == ""
    with pytest.raises(BadReplyError):  # nothing would be left
        check(answer("An image of a cat."), rules, may_cut=True)


@pytest.mark.parametrize("options", [{"forbid": "image of"}, {"max_clip_tokens": 3}])
def test_what_the_model_is_told_names_no_option(options):
    rules = CaptionRules(shape=Shape(Settings.create("in.jsonl", **options)))
    said = answer("An image of a cat. It sleeps.")
    with pytest.raises(BadReplyError) as error:
        check(said, rules)
    turns = ask_again(error.value, said, RequestOverrides(), RequestOverrides(), rules).turns
    assert "the caption has" in str(turns)
    assert "--" not in str(turns)
