from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from captioner.core import ocr
from captioner.core.ocr import ocr_available
from captioner.endpoints.offline.describe import RequestError, describe, describe_file


def caption(data):
    return describe_file(data)[0]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def poster(*lines, size=48, width=640, height=480):
    image = Image.new("RGB", (width, height), "#f4f0e0")
    draw = ImageDraw.Draw(image)
    for number, (x, text) in enumerate(lines):
        draw.text((x, 40 + 90 * number), text, fill="#202020", font=ImageFont.load_default(size))
    return image


def halves(first, second):
    image = Image.new("RGB", (100, 100), first)
    image.paste(second, (50, 0, 100, 100))
    return image


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ("#e01010", "red"),
        ("#0000ee", "blue"),
        ("#10a020", "green"),
        ("#ffe000", "yellow"),
        ("#ff9010", "orange"),
        ("#7a4a24", "brown"),
        ("#ffc0cb", "pink"),
        ("#808080", "grey"),
        ("#050505", "black"),
        ("#fdfdfd", "white"),
        ("#101850", "dark blue"),
        ("#fbf3df", "beige"),
    ],
)
def test_a_plain_image_is_called_by_its_colour(colour, name):
    """A red image is called red, and so on."""
    assert f"almost entirely {name}." in describe(Image.new("RGB", (80, 60), colour))


def test_a_image_of_two_colours_names_both_and_no_blend():
    """Half red, half blue is red and blue, not also the purple of a blurred edge."""
    assert "Its main colours are red and blue." in describe(halves("#e01010", "#0000ee")).replace(
        "blue and red", "red and blue"
    )


@pytest.mark.parametrize(
    ("size", "word"), [((300, 200), "landscape"), ((200, 300), "portrait"), ((200, 200), "square")]
)
def test_orientation_and_size_are_those_of_the_image(size, word):
    """Wide is landscape, tall is portrait, and the pixels are counted right."""
    caption = describe(Image.new("RGB", size, "#e01010"))
    assert f"a {word} image, {size[0]} x {size[1]} pixels" in caption


def test_a_image_turned_by_its_metadata_is_described_as_displayed():
    """A phone's portrait photograph is stored lying down; the caption says portrait."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (300, 200), "red"), "JPEG", exif=exif)
    assert "a portrait image, 200 x 300 pixels" in caption(data)


def test_brightness_follows_the_light():
    """A night image is dark and a snowy one is bright."""
    assert "It is dark" in describe(halves("#000000", "#101820"))
    assert "It is bright" in describe(halves("#ffffff", "#e8eef4"))
    assert "It is evenly lit" in describe(halves("#707070", "#8090a0"))


def test_a_blurred_copy_is_called_soft_and_the_original_sharp():
    """Out of focus images can be found by their captions."""
    original = poster((40, "Some words"), (40, "in focus here"))
    assert "and sharp." in describe(original)
    assert "and soft." in describe(original.filter(ImageFilter.GaussianBlur(8)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_every_mode_and_the_smallest_image_can_be_described(mode):
    """Scans, masks and print files are captioned like any other image."""
    for size in ((1, 1), (50, 2), (40, 30)):
        assert describe(Image.new(mode, size)).startswith("This is a ")


def test_transparency_is_seen_over_white():
    """A transparent logo is not described as black."""
    assert "almost entirely white" in describe(Image.new("RGBA", (60, 60), (0, 0, 0, 0)))


def test_sixteen_bit_grey_keeps_its_brightness():
    """A bright 16-bit scan is not clipped or darkened."""
    assert "bright" in describe(Image.new("I;16", (60, 60), 60000))
    assert "dark" in describe(Image.new("I;16", (60, 60), 6000))


def test_given_text_is_quoted_cleanly_and_capped():
    """The text sentence stays one sentence however long or oddly marked the text is."""
    image = Image.new("RGB", (60, 60), "white")
    assert describe(image, texts=["Say “yes”", " to\n tea "]).endswith("\"Say 'yes' / to tea\".")
    caption = describe(image, texts=["word " * 500])
    assert caption.endswith('word …".')
    assert len(caption) < 800
    assert "text" not in describe(image, texts=[" ", ""])


def test_the_words_of_a_poster_are_in_its_caption():
    """Large text is read, line by line from the top."""
    assert ocr_available()
    text = caption(encoded(poster((40, "Harvest Market"), (40, "Saturday 9 am"))))
    assert 'The text in it reads: "Harvest Market / Saturday 9 am".' in text


def test_two_columns_are_read_row_by_row():
    """A price list keeps each price with its dish, not below all the dishes."""
    image = poster((30, "Soup"), (30, "Bread"))
    draw = ImageDraw.Draw(image)
    for row, price in enumerate(("4.50", "2.80")):
        # A little higher, as in a real photograph: order must not follow the last pixel.
        draw.text((430, 37 + 90 * row), price, fill="black", font=ImageFont.load_default(48))
    assert "Soup / 4.50 / Bread / 2.80" in caption(encoded(image))


def test_a_stray_character_is_not_reported():
    """A ring that looks like a zero, or a lone letter, is not called text."""
    assert "text" not in caption(encoded(poster((300, "8"), size=200)))
    ring = Image.new("RGB", (400, 400), "#c8b090")
    ImageDraw.Draw(ring).ellipse((100, 80, 300, 320), outline="#303030", width=24)
    assert "text" not in caption(encoded(ring))


def test_tiny_print_is_not_reported():
    """Letters under a fiftieth of the height are left out: they are mostly misread."""
    text = caption(encoded(poster((40, "barely legible"), size=11, height=1200)))
    assert "text" not in text


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_a_degenerate_image_is_captioned(size):
    """A one pixel tracking image in a data set does not end the run."""
    assert caption(encoded(Image.new("RGB", size, "red"))).startswith("This is a ")


def test_bytes_that_are_no_image_are_refused():
    """Broken, cut off and foreign files raise one error that says so."""
    whole = encoded(poster((40, "Harvest Market")))
    for data in (b"", b"not an image", whole[: len(whole) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(RequestError, match="not an image that can be decoded"):
            caption(data)


def test_a_decompression_bomb_is_refused():
    """A few kilobytes that unpack to gigabytes do not take the machine down."""
    for side in (9_000, 12_000, 20_000):  # below and above Pillow's own two limits
        with pytest.raises(RequestError, match="80 million"):
            caption(encoded(Image.new("1", (side, side))))


def test_without_the_extra_captions_have_everything_but_text(monkeypatch):
    """A bare installation still describes, and says that it does not read."""
    monkeypatch.setattr(ocr, "find_spec", lambda _name: None)
    assert not ocr_available()
    text = caption(encoded(poster((40, "Harvest Market"))))
    assert "almost entirely" in text
    assert "reads" not in text


def test_an_extra_that_does_not_load_costs_the_text_only(monkeypatch, caplog):
    """A broken onnxruntime is reported once in the log, and captions go on."""

    def fail(name):
        raise ImportError(f"{name} is broken")

    monkeypatch.setattr(ocr.importlib, "import_module", fail)
    ocr.load_engine.cache_clear()
    try:
        for _ in range(2):
            text = caption(encoded(poster((40, "Harvest Market"))))
            assert text.startswith("This is a ")
            assert "reads" not in text
    finally:
        ocr.load_engine.cache_clear()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_nothing_heavy_is_imported_and_nothing_is_logged_by_reading():
    """Importing is cheap, and OCR writes nothing to the terminal nor touches the root logger."""
    script = """
import io, logging, sys
from PIL import Image, ImageDraw, ImageFont
from captioner.endpoints.offline.describe import describe_file
assert not {"rapidocr", "onnxruntime", "numpy", "cv2"} & set(sys.modules)
before = (logging.root.level, list(logging.root.handlers))
image = Image.new("RGB", (400, 120), "white")
ImageDraw.Draw(image).text((20, 20), "Harvest", fill="black", font=ImageFont.load_default(60))
file = io.BytesIO()
image.save(file, "PNG")
caption, _ = describe_file(file.getvalue())
assert "Harvest" in caption, caption
assert before == (logging.root.level, list(logging.root.handlers))
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
