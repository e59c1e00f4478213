"""What each model makes of a size: the vectors that providers publish or that were measured."""

from __future__ import annotations

import math

import pytest

from captioner.core.errors import SettingsError
from captioner.images.fit import FitOptions, Plan
from captioner.settings.model_sizes import MODELS, rule_of
from captioner.settings.options import ImageSettings


@pytest.mark.parametrize(
    ("model", "size", "detail", "sent", "tokens"),
    [
        ("gpt-4o", (1024, 1024), None, (768, 768), 765),
        ("gpt-4o", (2048, 4096), None, (768, 1536), 1105),
        ("gpt-4.1", (4032, 3024), "high", (1024, 768), 765),
        ("gpt-4o", (4032, 3024), "low", (512, 384), 85),
        ("gpt-4o-mini", (512, 512), None, (512, 512), 2833 + 5667),
        ("gpt-5", (512, 512), None, (512, 512), 210),
        ("gpt-5.1", (512, 512), None, (512, 512), 210),
        ("o3", (512, 512), None, (512, 512), 225),
        ("o1-2024-12-17", (512, 512), None, (512, 512), 225),
        ("gpt-5.2", (1024, 1024), None, (1024, 1024), 1229),
        ("gpt-5.4", (2048, 2048), "high", (1600, 1600), 3000),
        ("gpt-5.4", (4032, 3024), "high", (1824, 1368), 2942),
        ("gpt-5.4", (4032, 3024), "auto", (1824, 1368), 2942),
        ("gpt-5.5", (4032, 3024), "auto", (3669, 2752), 11868),
        ("openai/gpt-5.6", (4032, 3024), None, (4032, 3024), 14364),
        ("gpt-6", (4032, 3024), None, (4032, 3024), 14364),
        ("gpt-5-nano", (320, 320), None, (320, 320), 150),
        ("gpt-4.1-mini", (320, 320), None, (320, 320), 162),
        ("gpt-4.1-nano", (320, 320), None, (320, 320), 246),
        ("o4-mini", (320, 320), None, (320, 320), 172),
        ("claude-sonnet-4-5", (1000, 1000), None, (1000, 1000), 1296),
        ("claude-sonnet-4-5", (1920, 1080), None, (1456, 819), 1560),
        ("anthropic/claude-opus-4-7", (1920, 1080), None, (1920, 1080), 2691),
        ("gemini-2.5-flash", (960, 540), None, None, 6 * 258),
        ("gemini-2.5-pro", (384, 384), None, None, 258),
        ("gemini-3-pro", (4000, 3000), None, None, 1120),
        ("Qwen/Qwen3-VL-8B-Instruct", (1024, 1024), None, (1024, 1024), 1024),
        ("qwen2.5-vl-7b-instruct", (4000, 3000), None, (4000, 3000), 143 * 107),
        ("Qwen2-VL-7B", (1008, 1008), None, (1008, 1008), 1296),
        ("qwen-vl-max", (4000, 3000), None, (1148, 840), 1230),
        ("OpenGVLab/InternVL3-8B", (1792, 1344), None, (1792, 1344), 13 * 256),
        ("OpenGVLab/InternVL2_5-8B", (448, 448), None, (448, 448), 256),
        ("llava-hf/llava-1.5-7b-hf", (1024, 768), None, (448, 336), 576),
    ],
)
def test_vectors(model, size, detail, sent, tokens):
    """Size and tokens are those of the provider, for either orientation."""
    rule = rule_of(model)
    assert rule is not None
    assert rule.fit(*size, detail) == sent
    assert rule.tokens(*size, detail) == tokens
    turned = rule.fit(*reversed(size), detail)
    assert turned == (sent and tuple(reversed(sent)))
    assert rule.tokens(*reversed(size), detail) == tokens


@pytest.mark.parametrize(("pattern", "rule"), MODELS)
def test_sending_what_the_provider_makes_costs_the_same(pattern, rule):
    """Nothing is gained by sending more, nothing lost by sending less; no size is refused."""
    for width in (1, 27, 300, 1000, 1999, 4032, 12_000):
        for height in (1, 40, 768, 3024, 9_000):
            for detail in (None, "low", "high"):
                tokens = rule.tokens(width, height, detail)
                assert tokens > 0
                sent = rule.fit(width, height, detail)
                if sent is None:
                    continue
                assert min(sent) >= 1
                assert sent[0] <= width
                assert sent[1] <= height
                if math.sqrt(width * height) > 100 and max(width, height) < 50 * min(width, height):
                    assert rule.tokens(*sent, detail) == pytest.approx(tokens, rel=0.1)


def test_an_unknown_model_is_said_to_be_one():
    """Who names a model of which nothing is known hears so, rather than losing detail."""
    with pytest.raises(SettingsError, match=r"resize: no rule is known for 'my-model'.*Qwen"):
        ImageSettings(size_for="my-model")


def plan(size, scale=1.0, detail=None, **options):
    return FitOptions(ImageSettings(**options), detail).plan(*size, scale)


def same(*size):
    return Plan(size, size)


def test_plans():
    """Large ones shrink, small ones grow or are padded, none becomes narrower than models take."""
    assert plan((640, 480)) == same(640, 480)
    assert plan((4000, 3000)) == same(2048, 1536)
    assert plan((4000, 3000), max_side=1000) == same(1000, 750)
    assert plan((4000, 3000), max_side=1000, scale=0.5) == same(500, 375)
    assert plan((4000, 3000), max_pixels=1_000_000) == same(1154, 866)
    for size in ((4000, 1000), (1000, 1000), (9, 900)):
        within = plan(size, max_pixels=1_000)
        assert within.canvas[0] * within.canvas[1] <= 1_000
    assert plan((4000, 3000), size_for="gpt-4o") == same(1024, 768)
    assert plan((4000, 3000), size_for="gpt-4o", detail="low") == same(512, 384)
    assert plan((4000, 3000), size_for="gpt-4o", max_side=512) == same(512, 384)
    assert plan((5000, 3000), size_for="gpt-5.6") == same(5000, 3000)
    assert plan((5000, 3000), size_for="gemini-2.5-pro") == same(2048, 1229)
    assert plan((10, 20)) == same(28, 56)
    assert plan((10, 20), min_side=200) == same(200, 400)
    assert plan((2000, 10)) == Plan((2000, 10), (2000, 28))
    assert plan((1, 1)) == same(28, 28)
    assert plan((39_761, 11), size_for="llava-1.5-7b") == Plan((2048, 1), (2048, 28))
    assert plan((39_761, 11), size_for="qwen2-vl-7b") == Plan((2048, 1), (2048, 28))
    assert plan((20_000, 500), size_for="qwen3-vl-8b").size == (20_000, 500)
    assert plan((100, 50), max_side=10) == same(10, 10)._replace(size=(10, 5))
    assert plan((40_000, 100), max_side=40_000) == Plan((40_000, 100), (40_000, 200))
