"""How each model resizes an image, and how many tokens the image costs.

Providers make large images smaller, so larger images cost upload time and gain nothing. The rules
are those that the providers published by late 2026 or that their servers' code contains: OpenAI's
vision guide (tiles and patches), Anthropic's vision guide, Google's token guide, and the image
processors of Qwen-VL, InternVL and LLaVA. No rule here makes an image larger.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Size = tuple[int, int]


class Rule:
    """The rule of a model family. Sides are in pixels; ``detail`` is the option of that name.

    Args:
        measure: Returns what `fit` and `tokens` do, for the figures, the sides and the detail.
        figures: The figures of the family.
    """

    def __init__(self, measure: Callable[..., tuple[Size | None, int]], *figures: Any) -> None:
        self._measure = measure
        self._figures = figures

    def fit(self, width: int, height: int, detail: str | None = None) -> Size | None:
        """Return the size to which the provider resizes an image; None if it is not published."""
        return self._measure(*self._figures, width, height, detail)[0]

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """Return the input tokens that an image costs."""
        return self._measure(*self._figures, width, height, detail)[1]


def within(width: int, height: int, side: int) -> Size:
    """Return the size with its aspect ratio kept and no side longer than ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _cells(width: int, height: int, side: int) -> int:
    return math.ceil(width / side) * math.ceil(height / side)


def _tiles(base: int, tile: int, width: int, height: int, detail: str | None) -> tuple[Size, int]:
    """OpenAI's older models: 512-pixel tiles; at most 2048 x 2048, and 768 on the shorter side."""
    if detail == "low":
        return within(width, height, 512), base
    width, height = within(width, height, 2048)
    if (short := min(width, height)) > 768:
        width, height = int(width * 768 / short), int(height * 768 / short)
    return (width, height), base + tile * _cells(width, height, 512)


_HIGH = (2_500, 2_048)
_EVERY = (6_144, 2_048)
_ORIGINAL = (10_000, 6_000)
_NO_BUDGET = (30_000, 1 << 30)


def _patches(
    factor: float, budgets: dict[str, Size], width: int, height: int, detail: str | None
) -> tuple[Size, int]:
    """OpenAI's newer models: 32-pixel patches.

    ``factor`` is the tokens of a patch. ``budgets`` has the maximum of patches and the longest side
    by detail; "" is for all other details.
    """
    patches, side = budgets.get(detail or "auto", budgets[""])
    width, height = within(width, height, side)
    if _cells(width, height, 32) > patches:
        scale = math.sqrt(32 * 32 * patches / (width * height))
        across, down = width * scale / 32, height * scale / 32
        scale *= min(max(1, int(across)) / across, max(1, int(down)) / down)
        width, height = (max(1, int(side * scale + 1e-6)) for side in (width, height))
    return (width, height), math.ceil(round(_cells(width, height, 32) * factor, 6))


def _claude(
    longest: int, limit: int, width: int, height: int, _detail: str | None
) -> tuple[Size, int]:
    """Anthropic: 28-pixel patches, with a maximum side and a maximum of tokens."""
    width, height = within(width, height, longest)
    if _cells(width, height, 28) > limit:
        # The largest allowed size fills its last row or column of patches.
        wide = [(side, max(1, int(height * side / width))) for side in range(28, width + 1, 28)]
        high = [(max(1, int(width * side / height)), side) for side in range(28, height + 1, 28)]
        width, height = max(size for size in wide + high if _cells(*size, 28) <= limit)
    return (width, height), _cells(width, height, 28)


def _gemini_tiles(width: int, height: int, _detail: str | None) -> tuple[None, int]:
    """Gemini up to 2.5: tiles by aspect ratio. Google calls the figures rough."""
    if max(width, height) <= 384:
        return None, 258
    unit = max(1, int(min(width, height) / 1.5))
    return None, 258 * _cells(width, height, unit)


def _flat(
    cost: int, shorter: int | None, width: int, height: int, _detail: str | None
) -> tuple[Size | None, int]:
    """Every image costs the same: Gemini 3 at its default resolution, LLaVA-1.5.

    ``shorter`` is the side to which images are resized; None if it is not published.
    """
    if shorter is None:
        return None, cost
    scale = min(1.0, shorter / min(width, height))
    return (round(width * scale), round(height * scale)), cost


def _grid(
    cell: int, least: int, most: int, width: int, height: int, _detail: str | None
) -> tuple[Size, int]:
    """Qwen-VL: square cells of one token, with a minimum and a maximum of pixels.

    The size is rounded as `smart_resize` of Qwen's processor does.
    """
    pixels = width * height
    across, down = (max(cell, round(side / cell) * cell) for side in (width, height))
    if across * down > most:
        scale = math.sqrt(pixels / most)
        across, down = (max(cell, int(side / scale / cell) * cell) for side in (width, height))
    elif across * down < least:
        scale = math.sqrt(least / pixels)
        across, down = (math.ceil(side * scale / cell) * cell for side in (width, height))
    size = (across, down) if across * down < pixels > most else (width, height)
    return size, across * down // cell**2


def _internvl(width: int, height: int, _detail: str | None) -> tuple[Size, int]:
    """InternVL: up to 12 448-pixel tiles in the grid with the nearest aspect ratio, a thumbnail."""
    sides = range(1, 13)
    grids = [(across, down) for across in sides for down in sides if across * down <= 12]
    grids.sort(key=math.prod)
    best, difference = (1, 1), math.inf
    for grid in grids:
        apart = abs(width / height - grid[0] / grid[1])
        large = width * height > 448 * 448 * math.prod(grid) / 2
        if apart < difference or (apart == difference and large):
            best, difference = grid, apart
    # The image keeps its aspect ratio and fills the grid in both directions.
    scale = min(1.0, max(448 * best[0] / width, 448 * best[1] / height))
    tiles = math.prod(best)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return size, 256 * (tiles + (tiles > 1))


_DEFAULT = {"": _EVERY}

MODELS: tuple[tuple[str, Rule], ...] = (
    (r"gpt-4o-mini", Rule(_tiles, 2_833, 5_667)),
    (r"gpt-4\.1-mini", Rule(_patches, 1.62, _DEFAULT)),
    (r"gpt-4\.1-nano", Rule(_patches, 2.46, _DEFAULT)),
    (r"gpt-4(o|\.1|\.5|-turbo|-vision)|chatgpt-4o", Rule(_tiles, 85, 170)),
    (r"gpt-5-mini", Rule(_patches, 1.2, _DEFAULT)),
    (r"gpt-5-nano", Rule(_patches, 1.5, _DEFAULT)),
    (r"gpt-5\.2", Rule(_patches, 1.2, _DEFAULT)),
    (r"gpt-5\.4", Rule(_patches, 1.2, {"": _HIGH, "low": _EVERY, "original": _ORIGINAL})),
    (r"gpt-5\.5", Rule(_patches, 1.2, {"": _ORIGINAL, "low": _EVERY, "high": _HIGH})),
    (r"gpt-(5\.[6-9]|6)", Rule(_patches, 1.2, {"": _NO_BUDGET, "low": _EVERY, "high": _HIGH})),
    (r"gpt-5(\.1)?(?![.\d])", Rule(_tiles, 70, 140)),
    (r"o4-mini", Rule(_patches, 1.72, _DEFAULT)),
    (r"o[13](?!\d)", Rule(_tiles, 75, 150)),
    (r"claude.*(opus-4-[7-9]|(opus|sonnet|fable)-[5-9])", Rule(_claude, 2_576, 4_784)),
    (r"claude", Rule(_claude, 1_568, 1_568)),
    (r"gemini-([3-9])", Rule(_flat, 1_120, None)),
    (r"gemini", Rule(_gemini_tiles)),
    (r"qwen-vl-(max|plus)", Rule(_grid, 28, 4 * 28 * 28, 1_280 * 28 * 28)),
    (r"qwen-?(3|4)", Rule(_grid, 32, 65_536, 16_777_216)),
    (r"qwen-?2(\.5)?-?(vl|omni)|qvq", Rule(_grid, 28, 4 * 28 * 28, 16_384 * 28 * 28)),
    (r"intern-?vl", Rule(_internvl)),
    (r"llava-(v?1\.5|1-5)", Rule(_flat, 576, 336)),
)
"""Patterns of model names without the vendor, with their rules. The first match counts."""

FAMILIES = "OpenAI, Claude, Gemini, Qwen-VL, InternVL and LLaVA models"


def rule_of(model: str) -> Rule | None:
    """Return the rule of a model, named with or without its vendor; None if none is known."""
    name = model.lower().rpartition("/")[2]
    return next((rule for pattern, rule in MODELS if re.match(pattern, name)), None)
