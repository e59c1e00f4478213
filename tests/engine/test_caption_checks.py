# ruff: noqa: RUF001 - Chinese text has commas of its own
from __future__ import annotations

import pytest

from captioner.core.errors import BadReplyError
from captioner.core.types import Completion, RequestOverrides, Usage
from captioner.engine import caption_checks as checks
from captioner.engine.caption_checks import (
    HOTTEST,
    LONGEST,
    CaptionRules,
    attempts_for,
    check,
    is_looping,
)

LONG = (
    "A brown dog runs along a sandy beach at low tide, its shadow long in the evening light, while "
    "two children in red jackets wave from a wooden pier in the background."
)


def ask_again(
    fault: BadReplyError, said: Completion, asked: RequestOverrides, usual: RequestOverrides
) -> RequestOverrides:
    return checks.ask_again(fault, said, asked, usual, CaptionRules())


def completion(text: str, reason: str = "stop", tokens: int = 0) -> Completion:
    return Completion(text, reason, "m", Usage(10, tokens))


def fault_of(text: str, reason: str = "stop", **rules) -> str:
    try:
        check(completion(text, reason), CaptionRules(**rules))
    except BadReplyError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot describe this image.",
        "Sorry, I am not able to identify people in images.",
        "I cannot assist with that request.",
        "I can't view images.",
        "I'm unable to process this image.",
        "As an AI language model, I cannot see images.",
        "Unfortunately, I can't tell.",
        '"I apologize, but I will not describe it."',
    ],
)
def test_a_refusal_in_prose_is_no_caption(text) -> None:
    """What a model says instead of describing must not train another."""
    assert fault_of(text) in ("refused", "no_image_seen")


@pytest.mark.parametrize(
    "text",
    [
        'A sign reads "I\'m sorry, we are closed".',
        'The poster says "As an AI language model, I cannot".',
        "Sorrel leaves on a plate.",
        "I see a cat.",
        "Icannot is written on a wall.",
        "Unfortunate weather over a harbour.",
        '"Sorry, we\'re closed" sign hanging in a glass door.',
        "Sorry! board game box on a table.",
        "I Won't Grow Up poster",
        "'I can't' is written on the wall.",
        "I'm sorry is painted on a wall. " + LONG * 3,
    ],
)
def test_legible_text_is_no_refusal(text) -> None:
    """A caption is judged by its beginning and length only, and never cut."""
    assert fault_of(text) == ""
    assert check(completion(text), CaptionRules()).value == text


@pytest.mark.parametrize(
    "unit",
    ["la ", "a tree, ", "A red car is parked on the street. ", "x" * 5 + "y" * 60 + " ", "é\n"],
)
def test_a_loop_is_found_whatever_its_length(unit) -> None:
    """One unit over and over at the end, begun and broken off anywhere."""
    for cut in range(min(12, len(unit))):
        text = LONG + " " + unit * 60
        assert is_looping(text[: len(text) - cut])


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        "ha ha ha ha ha",
        LONG + " " + "." * 500,
        "A table of contents:" + " -" * 200,
        " ".join(f"Chair {number} is red." for number in range(100)),
        "The red car. " * 3 + LONG,
        LONG + LONG,
        "",
    ],
)
def test_what_only_repeats_a_little_is_no_loop(text) -> None:
    """Lists, rulings and echoes are captions."""
    assert not is_looping(text)


def test_each_fault_has_its_code() -> None:
    """The worst is told first: a loop that ran into the limit is a loop."""
    assert fault_of("") == "empty"
    assert fault_of("a cat on", "length") == "truncated"
    assert fault_of("", "length") == "truncated"
    assert fault_of(LONG + " and on" * 50, "length") == "looping"
    assert fault_of("a cat", min_chars=6) == "too_short"
    assert fault_of("a cat", max_chars=4) == "too_long"
    assert fault_of("a cat", min_chars=5, max_chars=5) == ""


def test_what_is_accepted_is_flagged_and_whole() -> None:
    """--accept keeps the text as it came and says what is wrong with it; nothing is not kept."""
    rules = CaptionRules(accept=frozenset({"truncated", "too_long"}), max_chars=3)
    answer = check(completion("a cat on", "length"), rules)
    assert (answer.value, answer.flag) == ("a cat on", "truncated")
    assert check(completion("a cat"), rules).flag == "too_long"
    with pytest.raises(BadReplyError):
        check(completion("", "length"), rules)


def test_loops_are_asked_for_hotter_and_hotter() -> None:
    """The same settings give the same loop again."""
    fault = BadReplyError("looping", "")
    asked, seen = RequestOverrides(), []
    for _ in range(4):
        asked = ask_again(fault, completion("x"), asked, RequestOverrides(0.1))
        seen.append(asked.temperature)
    assert seen == [0.4, 0.7, 1.0, HOTTEST]
    assert (
        ask_again(fault, completion("x"), RequestOverrides(), RequestOverrides(1.5)).temperature
        == 1.5
    )


def test_truncated_captions_get_more_room() -> None:
    """Twice what there was, within bounds; a length that the user gave counts."""
    fault = BadReplyError("truncated", "")
    again = ask_again(fault, completion("x", tokens=700), RequestOverrides(), RequestOverrides())
    assert again.max_tokens == 1400
    assert ask_again(fault, completion("x"), again, RequestOverrides()).max_tokens == 2800
    assert (
        ask_again(
            fault, completion("x"), RequestOverrides(), RequestOverrides(max_tokens=16)
        ).max_tokens
        == 1024
    )
    assert ask_again(
        fault, completion("x"), RequestOverrides(max_tokens=99_999), RequestOverrides()
    ) == RequestOverrides(max_tokens=LONGEST)


def test_other_faults_are_asked_for_as_before() -> None:
    """An empty reply says nothing about how to ask."""
    assert (
        ask_again(
            BadReplyError("empty", ""), completion(""), RequestOverrides(), RequestOverrides(0.1)
        )
        == RequestOverrides()
    )


def test_nobody_begs() -> None:
    """A model that refuses twice means it."""
    assert attempts_for("refused", CaptionRules(max_attempts=5)) == 2
    assert attempts_for("refused", CaptionRules(max_attempts=1)) == 1
    assert attempts_for("empty", CaptionRules(max_attempts=5)) == 5


def test_a_refusal_inside_an_object_is_a_refusal() -> None:
    """A model that has to answer in JSON refuses in JSON."""
    rules = CaptionRules(parse=lambda _: {"short": "I'm sorry, I can't help with that.", "n": 1})
    with pytest.raises(BadReplyError) as caught:
        check(completion("{}x"), rules)
    assert caught.value.code == "refused"
    mixed = CaptionRules(parse=lambda _: {"a": "I'm sorry, I can't.", "b": "A cat on a mat."})
    assert check(completion("{}x"), mixed).flag == ""


@pytest.mark.parametrize(
    "text",
    [
        "I don't see any picture attached. Could you share it again?",
        ("I do not see an image in your message. Please attach one and I'll gladly describe it."),
        "There doesn't appear to be an image attached to your message.",
        "It looks like you forgot to attach the image.",
        "It seems no image came through. Please try again.",
        "I'm unable to view images. If you describe the picture, I can write a caption.",
        "I am a text-based AI and cannot see or interpret images.",
        "I can't view or analyze images directly, but if you describe it to me I can help.",
        "Your image did not upload correctly.",
        "Please share the photo you would like described.",
        "No image provided.",
        "[No image provided]",
        "No image was provided, so I cannot write a caption.",
        "I apologize, but I don't have access to any image. Could you provide it?",
        "Sure! Please upload the image and I'll write a caption for it.",
        "To write a caption I need to see the image. Please upload it.",
        "I'm ready to help! Please send the image.",
        "As an AI language model, I don't have the ability to see images.",
        "I'm sorry, but no image is visible to me.",
        "The image is missing. Please attach it.",
        "The image you mentioned is not visible to me.",
        "Unfortunately, the image could not be loaded.",
        "It appears that the image you're referring to isn't included.",
        "I would be happy to help, but there is no image attached.",
        "I'd be happy to describe the image, but I don't see one attached.",
        "Hello! I'm happy to help, but I don't see an image attached to this conversation.",
        "Without seeing the image, I cannot provide a caption.",
        "I currently can't see images.",
        "I cannot directly see the image you're referring to.",
        "Sorry, I can't view this picture.",
        "Could you please describe the image? I cannot see it.",
        "抱歉，我无法看到图片。请您描述一下图片内容。",
        "很抱歉，您似乎没有上传图片。",
        "我无法直接查看图片，请提供文字描述。",
        "请提供图片，我来为您描述。",
        "您还没有上传图片哦。",
        "作为一个文本模型，我看不到图片。",
        "对不起，我无法看到您提到的图像。",
        "申し訳ありませんが、画像が添付されていないようです。",
        "画像を見ることができません。説明していただけますか？",
        "申し訳ございませんが、画像を確認できません。",
        "Ich kann leider kein Bild sehen. Bitte laden Sie es hoch.",
        "Es tut mir leid, aber ich kann keine Bilder sehen.",
        "Es wurde kein Bild hochgeladen.",
        "Lo siento, no puedo ver imágenes.",
        "No veo ninguna imagen adjunta.",
        "Parece que no has adjuntado ninguna imagen.",
        "Je ne peux pas voir l'image.",
        "Je ne vois pas d'image jointe à votre message.",
        "Désolé, aucune image n'a été fournie.",
        "Não consigo ver a imagem. Poderia enviá-la novamente?",
        "Извините, я не вижу изображения.",
        "이미지를 볼 수 없습니다. 다시 업로드해 주세요.",
        "이미지가 첨부되지 않았습니다.",
        "Non vedo nessuna immagine allegata.",
    ],
)
def test_a_model_that_saw_no_image_says_so_in_many_words(text) -> None:
    """Each is a fault of its own, in any language, and is never kept as a caption."""
    assert fault_of(text) == "no_image_seen"


@pytest.mark.parametrize(
    "text",
    [
        (
            "A screenshot of a chat in which an assistant writes: \"I can't see the image "
            'you attached."'
        ),
        (
            'A screenshot of an error dialog that reads "No image was uploaded. Please '
            'upload an image and try again."'
        ),
        (
            'A web page with a form; the button below it says "Upload image", and red '
            "text says that no file was selected."
        ),
        'A phone screen shows a gallery app with the words "No photos found".',
        'A sign on a fence: "Please do not attach pictures or posters here."',
        (
            "The upload page of a photo service. Please upload your photos, it says above a "
            "dashed box."
        ),
        ("A meme with the caption \"I'm sorry, I can't do that, Dave\" over a red camera lens."),
        "A museum label explains that there is no image of the saint on the left panel.",
        "A blank wall where there is no picture, only a nail and a lighter square of paint.",
        "There is no photograph in the frame, only a folded letter.",
        (
            "A man in a dark room. I cannot make out his face, as the image is blurred, but "
            "he holds a lamp."
        ),
        "It appears to be a vintage photograph that does not include any colour.",
        (
            "It looks like a photo that was not developed properly, with a purple haze over "
            "a street."
        ),
        "You can see a river in the image, but no boats.",
        "As an example of street photography, the image does not show faces.",
        "The image is not clear, but a dog seems to be lying on a rug.",
        "The photo does not contain text. It shows a lake at dawn with a wooden pier.",
        "Das Bild zeigt eine Straße, auf der kein Auto zu sehen ist.",
        "Ein Bildschirmfoto mit dem Hinweis, dass kein Bild ausgewählt wurde.",
        "Ich sehe ein Haus am See; im Bild ist kein Mensch zu erkennen.",
        "La imagen muestra una calle en la que no se ve ningún coche.",
        "Una foto en la que no aparece ninguna persona, solo un perro.",
        "图片中没有人物，只有一只猫坐在窗台上。",
        "照片中看不到任何车辆，街道空无一人。",
        "截图显示一个对话框，提示“请上传图片”。",
        "画像には人物が写っていません。猫が一匹だけいます。",
        "写真には車が見えず、誰もいない通りが写っています。",
        "Cette image ne montre aucune personne, seulement un chien.",
        "1. A cup",
        "2. A spoon",
        "3. A plate",
        "4. A knife",
        "5. A fork",
        "6. A napkin",
        "Sorry seems to be the hardest word, says a banner over a stage.",
        "I ♥ NY on a white T-shirt.",
        "404",
        "7",
        "STOP",
        "A QR code.",
        (
            "A page of dots: . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . . "
            ". . . . . . . . . and a title."
        ),
        "Cannot Buy Me Love, a vinyl single in its sleeve.",
        "Unable to fly, a fledgling sits on a branch.",
        "A document whose lines read 0 0 0 0 0 0 0 0 0 0 0 0 and a total of 0.",
        'I am a sign held by a protester that says "I will not be silent".',
        "A keyboard: Q W E R T Y U I O P A S D F G H J K L Z X C V B N M.",
        (
            "A calendar page of May: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 "
            "22 23 24 25 26 27 28 29 30 31."
        ),
        "Rows of identical windows, row after row, floor after floor, on a concrete tower.",
        (
            "A laptop shows a photo editor; it has not loaded the image yet, and a spinner "
            "turns in the middle."
        ),
        "A poster about privacy: we do not share, sell or upload your photos.",
        'An app\'s settings, with "Do not upload photos over mobile data" switched on.',
        ("A camera without a memory card; its display says that no images can be saved or shared."),
        (
            "A page of a manual that explains how to attach a file. If you cannot see the "
            "image, reload the page."
        ),
        (
            "You have to look closely to see the cat, which the picture does not show at "
            "first glance."
        ),
        ("It seems that the photo was not taken by a professional: it is tilted and overexposed."),
        (
            "Unfortunately for the driver, the car in the picture does not have a roof, and "
            "it is raining."
        ),
        "A woman views images on a tablet; nothing in the photo is not tidy.",
        "A receipt on which no picture is printed, only prices.",
        "The language model diagram has no images, only boxes and arrows.",
        'A slide titled "Text-based models cannot see images" with three bullet points.',
        "I spy with my little eye: a picture book page without text.",
        "图中的告示牌写着：无法查看图片，请刷新页面。",
        "一张没有图像的电视屏幕，显示“无信号”。",
        "电脑屏幕上显示照片无法加载。",
        "スクリーンショット。「画像が表示されない場合はこちら」と書かれている。",
        "この画像では空が見えません。",
        "Capture d'écran d'un message : « aucune image n'a été trouvée ».",
        'Captura de pantalla con el texto "No puedo ver la imagen".',
        "Bildschirmfoto eines Chats: „Leider kann ich das Bild nicht sehen.“",
        "| Item | Price |\n|---|---|\n| Tea | 2.50 |\n| Cake | 4.20 |",
        "I see a dog in a park. I do not see any people in the image.",
        "Ich sehe keinen Menschen im Bild, nur ein leeres Boot.",
        "Je ne vois personne sur la photo, seulement une plage.",
        "画像を見ると人は見えません。",
        "我没有看到图片中有人物。",
        "Non vedo persone nell'immagine, solo un tavolo.",
    ],
)
def test_a_description_with_the_words_of_a_fault_is_a_caption(text) -> None:
    """Screenshots, signs, tables and what an image does not show, in several languages."""
    assert fault_of(text) == ""
    assert check(completion(text), CaptionRules()).value == text


@pytest.mark.parametrize(
    "text",
    [
        "!" * 200, "?" * 50, "....", "\u200b\u200c", "\ufeff", "\ufffd" * 40,
        "A \ufffd\ufffd\ufffd dog",
        "@" * 99, "-" * 300, "<unk>", "<pad><pad>", "<image>", "\x00\x00", "A cat. " + "!" * 300,
        "A cat " + "\u200b" * 400, "0" * 300, "0 0 0 " * 60, "the the " * 60, "1. \n" * 80,
        "<unk>" * 40, "a" * 100, "嗯" * 90, "啊,  " * 60, "1, 2, " * 60,
    ],
)  # fmt: skip
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_signs_and_loops_are_no_captions(text, reason) -> None:
    """A loop is a loop before it is a truncation, and signs alone describe nothing."""
    assert fault_of(text, reason) in ("garbage", "looping")
