"""Write a small data set to try captioner on: photographs, posters and an input file.

Run as ``python scripts/make_examples.py DIR``. The photographs come from the installed
scikit-image wheel (``pip install --no-deps scikit-image``); the posters are drawn here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# File names in the wheel's data folder, and in the demo folder.
PHOTOGRAPHS = {
    "astronaut.png": "astronaut.jpg",
    "chelsea.png": "cat.jpg",
    "coffee.png": "coffee.jpg",
    "hubble_deep_field.jpg": "galaxies.jpg",
    "motorcycle_left.png": "motorcycle.jpg",
    "rocket.jpg": "rocket.jpg",
}

Colour = str
TextLine = tuple[str, int, Colour]


def photographs_folder() -> Path:
    """Return the folder of the scikit-image wheel's photographs, without importing it.

    Raises:
        SystemExit: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed: pip install --no-deps scikit-image")
    return Path(spec.origin).parent / "data"


def write_lines(
    draw: ImageDraw.ImageDraw, lines: list[TextLine], *, left: int, top: int, anchor: str = "la"
) -> None:
    """Write lines of text one below the other.

    Args:
        draw: The image.
        lines: Text, size in pixels and colour of each line.
        left: Left edge of the lines in pixels, or their middle with the anchor ``ma``.
        top: Top edge of the first line in pixels.
        anchor: ``la`` for lines aligned on the left (the default), ``ma`` for centred ones.
    """
    for text, size, colour in lines:
        draw.text((left, top), text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
        top += round(size * 1.45)


def draw_concert() -> Image.Image:
    """Draw a concert poster: centred lines on a night sky with a moon."""
    poster = Image.new("RGB", (600, 850), "#1b1f4b")
    draw = ImageDraw.Draw(poster)
    draw.ellipse((330, 60, 530, 260), fill="#ffd34d")
    draw.ellipse((285, 35, 485, 235), fill="#1b1f4b")
    for x, height in enumerate((50, 90, 140, 75, 115, 160, 100, 60, 125, 80)):
        draw.rectangle((60 + 50 * x, 800 - height, 90 + 50 * x, 800), fill="#e4572e")
    lines = [
        ("SUMMER JAZZ", 76, "#ffffff"),
        ("NIGHT", 76, "#ffd34d"),
        ("Friday 12 June, 8 pm", 38, "#ffffff"),
        ("Riverside Park", 38, "#ffffff"),
    ]
    write_lines(draw, lines, left=300, top=280, anchor="ma")
    return poster


def draw_hours() -> Image.Image:
    """Draw a bakery's opening hours: two columns on a cream card."""
    card = Image.new("RGB", (700, 560), "#fbf3df")
    draw = ImageDraw.Draw(card)
    draw.rectangle((20, 20, 679, 539), outline="#7a4a24", width=6)
    draw.rectangle((20, 20, 679, 150), fill="#7a4a24")
    write_lines(draw, [("Old Mill Bakery", 66, "#fbf3df")], left=350, top=45, anchor="ma")
    days = ("Monday", "Tuesday to Friday", "Saturday", "Sunday")
    hours = ("closed", "7:00 - 18:30", "7:00 - 14:00", "8:00 - 12:00")
    write_lines(draw, [("Opening hours", 44, "#b3541e")], left=70, top=180)
    write_lines(draw, [(text, 36, "#3d2a1a") for text in days], left=70, top=270)
    write_lines(draw, [(text, 36, "#3d2a1a") for text in hours], left=430, top=270)
    return card


def draw_warning() -> Image.Image:
    """Draw a warning sign of a hiking trail: a triangle on yellow, text on its right."""
    sign = Image.new("RGB", (900, 420), "#f7c600")
    draw = ImageDraw.Draw(sign)
    draw.rectangle((12, 12, 887, 407), outline="#111111", width=10)
    draw.polygon(((170, 90), (300, 320), (40, 320)), fill="#111111")
    draw.polygon(((170, 135), (265, 302), (75, 302)), fill="#f7c600")
    draw.rectangle((161, 185, 179, 255), fill="#111111")
    draw.ellipse((160, 268, 180, 288), fill="#111111")
    lines = [
        ("DANGER", 92, "#111111"),
        ("Falling rocks", 58, "#111111"),
        ("Stay on the marked trail", 42, "#111111"),
    ]
    write_lines(draw, lines, left=350, top=75)
    return sign


def draw_slide() -> Image.Image:
    """Draw a conference slide: a title, three points and a bar chart."""
    slide = Image.new("RGB", (1280, 720), "#ffffff")
    draw = ImageDraw.Draw(slide)
    draw.rectangle((0, 0, 1279, 120), fill="#0b6e69")
    write_lines(draw, [("Faster captions, lower cost", 60, "#ffffff")], left=60, top=25)
    points = [
        ("Keep every worker busy", 44, "#222222"),
        ("Retry only what failed", 44, "#222222"),
        ("Resume after a crash", 44, "#222222"),
    ]
    write_lines(draw, points, left=80, top=210)
    for x, height in enumerate((90, 170, 260, 340)):
        draw.rectangle((800 + 100 * x, 580 - height, 870 + 100 * x, 580), fill="#e08a1e")
    draw.line((780, 580, 1200, 580), fill="#222222", width=4)
    write_lines(draw, [("Images per second", 34, "#222222")], left=990, top=600, anchor="ma")
    return slide


POSTERS = {
    "concert.png": draw_concert,
    "hours.png": draw_hours,
    "warning.png": draw_warning,
    "slide.png": draw_slide,
}


def records() -> list[dict[str, Any]]:
    """Return the records of the input file, one in each form that data sets use."""
    ask = "Generate detailed captions based on image content."
    return [
        {"image": ["./images/astronaut.jpg"], "conversation": [{"from": "human", "value": ask}]},
        {"image": ["./images/concert.png"], "conversation": [{"from": "human", "value": ask}]},
        {
            "image": "images/cat.jpg",
            "messages": [{"role": "user", "content": "Describe the image."}],
        },
        {
            "image": "images/hours.png",
            "messages": [{"role": "user", "content": "Describe the image."}],
        },
        {"id": 7, "image": "images/coffee.jpg", "prompt": "What is on the table?"},
        {"id": 8, "image": "images/warning.png", "prompt": "What does the sign say?"},
        {"image": "images/galaxies.jpg"},
        {"id": "motorcycle", "image": "images/motorcycle.jpg"},
        {
            "image": "images/rocket.jpg",
            "conversations": [{"from": "human", "value": "<image>\nDescribe this image."}],
        },
        {
            "image": ["images/slide.png"],
            "conversations": [{"from": "human", "value": "<image>\nSum up this slide."}],
        },
    ]


def make_examples(folder: Path) -> str:
    """Write the images and the input file and return a sentence that says what was written.

    Creates the folder if it does not exist, and replaces files of the same names.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    source = photographs_folder()
    for name, target in PHOTOGRAPHS.items():
        with Image.open(source / name) as photograph:
            photograph.convert("RGB").save(images / target, quality=90)
    for name, draw in POSTERS.items():
        draw().save(images / name)
    listed = records()
    lines = "".join(json.dumps(record) + "\n" for record in listed)
    (folder / "input.jsonl").write_text(lines, encoding="utf-8")
    photographs = f"{len(PHOTOGRAPHS)} photographs and {len(POSTERS)} posters"
    return f"Wrote {folder / 'input.jsonl'}: {len(listed)} records about {photographs} in {images}."


def main() -> None:
    """Read the command line and write the examples."""
    parser = argparse.ArgumentParser(description="Write a small data set to try captioner on.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write it")
    print(make_examples(parser.parse_args().folder))


if __name__ == "__main__":
    main()
