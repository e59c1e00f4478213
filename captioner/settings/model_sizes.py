"""How each model resizes an image, and how many tokens the image costs.

Providers make large images smaller, so larger images cost upload time and gain nothing. The rules
are those that the providers published by late 2026 or that their servers' code contains: OpenAI's
vision guide (tiles and patches), Anthropic's vision guide, Google's token guide, and the image
processors of Qwen-VL, InternVL and LLaVA. No rule here makes an image larger.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Protocol


class Rule(Protocol):
    """The rule of a model family. Sides are in pixels; ``detail`` is the option of that name."""

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int] | None:
        """Return the size to which the provider resizes an image; None if it is not published."""
        ...

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """Return the input tokens that an image costs."""
        ...


@dataclass(frozen=True, slots=True)
class _Tiles:
    """OpenAI's older models: 512-pixel tiles; at most 2048 x 2048, and 768 on the shorter side."""

    base: int
    tile: int

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:
        if detail == "low":
            return within(width, height, 512)
        width, height = within(width, height, 2048)
        if (short := min(width, height)) > 768:
            width, height = int(width * 768 / short), int(height * 768 / short)
        return width, height

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        if detail == "low":
            return self.base
        return self.base + self.tile * _cells(*self.fit(width, height, detail), 512)


_HIGH = (2_500, 2_048)
_EVERY = (6_144, 2_048)


@dataclass(frozen=True, slots=True)
class _Patches:
    """OpenAI's newer models: 32-pixel patches.

    ``factor`` is the tokens of a patch. ``budgets`` has the maximum of patches and the longest side
    by detail; "" is for all other details.
    """

    factor: float
    budgets: dict[str, tuple[int, int]] = field(default_factory=lambda: {"": _EVERY})

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:
        patches, side = self.budgets.get(detail or "auto", self.budgets[""])
        width, height = within(width, height, side)
        if _cells(width, height, 32) <= patches:
            return width, height
        scale = math.sqrt(32 * 32 * patches / (width * height))
        across, down = width * scale / 32, height * scale / 32
        scale *= min(max(1, int(across)) / across, max(1, int(down)) / down)
        return max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        return math.ceil(round(_cells(*self.fit(width, height, detail), 32) * self.factor, 6))


@dataclass(frozen=True, slots=True)
class _Claude:
    """Anthropic: 28-pixel patches, with a maximum side and a maximum of tokens."""

    side: int
    limit: int

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        width, height = within(width, height, self.side)
        if _cells(width, height, 28) <= self.limit:
            return width, height
        # The largest allowed size fills its last row or column of patches.
        wide = [(side, max(1, int(height * side / width))) for side in range(28, width + 1, 28)]
        high = [(max(1, int(width * side / height)), side) for side in range(28, height + 1, 28)]
        return max(size for size in wide + high if _cells(*size, 28) <= self.limit)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        return _cells(*self.fit(width, height, detail), 28)


@dataclass(frozen=True, slots=True)
class _GeminiTiles:
    """Gemini up to 2.5: tiles by aspect ratio. Google calls the figures rough."""

    def fit(self, width: int, height: int, detail: str | None = None) -> None:  # noqa: ARG002
        return None

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        if max(width, height) <= 384:
            return 258
        unit = max(1, int(min(width, height) / 1.5))
        return 258 * math.ceil(width / unit) * math.ceil(height / unit)


@dataclass(frozen=True, slots=True)
class _Flat:
    """Every image costs the same: Gemini 3 at its default resolution, LLaVA-1.5.

    ``side`` is the shorter side to which images are resized; None if it is not published.
    """

    cost: int
    side: int | None = None

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int] | None:  # noqa: ARG002
        if self.side is None:
            return None
        scale = min(1.0, self.side / min(width, height))
        return round(width * scale), round(height * scale)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        return self.cost


@dataclass(frozen=True, slots=True)
class _Grid:
    """Qwen-VL: square cells of one token, with a minimum and a maximum of pixels."""

    cell: int
    least: int
    most: int

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Round the size as `smart_resize` of Qwen's processor does."""
        cell = self.cell
        across, down = (max(cell, round(side / cell) * cell) for side in (width, height))
        if across * down > self.most:
            scale = math.sqrt(width * height / self.most)
            across, down = (max(cell, int(side / scale / cell) * cell) for side in (width, height))
        elif across * down < self.least:
            scale = math.sqrt(self.least / (width * height))
            across, down = (math.ceil(side * scale / cell) * cell for side in (width, height))
        return across, down

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        across, down = self._size(width, height)
        return (across, down) if across * down < width * height > self.most else (width, height)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        across, down = self._size(width, height)
        return across * down // self.cell**2


@dataclass(frozen=True, slots=True)
class _InternVL:
    """InternVL: 448-pixel tiles in the grid with the nearest aspect ratio, and a thumbnail."""

    most: int = 12

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        aspect = width / height
        sides = range(1, self.most + 1)
        grids = [(across, down) for across in sides for down in sides if across * down <= self.most]
        grids.sort(key=lambda grid: grid[0] * grid[1])
        best, difference = (1, 1), math.inf
        for grid in grids:
            apart = abs(aspect - grid[0] / grid[1])
            large = width * height > 448 * 448 * grid[0] * grid[1] / 2
            if apart < difference or (apart == difference and large):
                best, difference = grid, apart
        return best

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        # The image keeps its aspect ratio and fills the grid in both directions.
        across, down = self._grid(width, height)
        scale = min(1.0, max(448 * across / width, 448 * down / height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        tiles = math.prod(self._grid(width, height))
        return 256 * (tiles + (tiles > 1))


def within(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the size with its aspect ratio kept and no side longer than ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _cells(width: int, height: int, side: int) -> int:
    return math.ceil(width / side) * math.ceil(height / side)


_NO_BUDGET = (30_000, 1 << 30)

MODELS: tuple[tuple[str, Rule], ...] = (
    (r"gpt-4o-mini", _Tiles(2_833, 5_667)),
    (r"gpt-4\.1-mini", _Patches(1.62)),
    (r"gpt-4\.1-nano", _Patches(2.46)),
    (r"gpt-4(o|\.1|\.5|-turbo|-vision)|chatgpt-4o", _Tiles(85, 170)),
    (r"gpt-5-mini", _Patches(1.2)),
    (r"gpt-5-nano", _Patches(1.5)),
    (r"gpt-5\.2", _Patches(1.2)),
    (r"gpt-5\.4", _Patches(1.2, {"": _HIGH, "low": _EVERY, "original": (10_000, 6_000)})),
    (r"gpt-5\.5", _Patches(1.2, {"": (10_000, 6_000), "low": _EVERY, "high": _HIGH})),
    (r"gpt-(5\.[6-9]|6)", _Patches(1.2, {"": _NO_BUDGET, "low": _EVERY, "high": _HIGH})),
    (r"gpt-5(\.1)?(?![.\d])", _Tiles(70, 140)),
    (r"o4-mini", _Patches(1.72)),
    (r"o[13](?!\d)", _Tiles(75, 150)),
    (r"claude.*(opus-4-[7-9]|(opus|sonnet|fable)-[5-9])", _Claude(2_576, 4_784)),
    (r"claude", _Claude(1_568, 1_568)),
    (r"gemini-([3-9])", _Flat(1_120)),
    (r"gemini", _GeminiTiles()),
    (r"qwen-vl-(max|plus)", _Grid(28, 4 * 28 * 28, 1_280 * 28 * 28)),
    (r"qwen-?(3|4)", _Grid(32, 65_536, 16_777_216)),
    (r"qwen-?2(\.5)?-?(vl|omni)|qvq", _Grid(28, 4 * 28 * 28, 16_384 * 28 * 28)),
    (r"intern-?vl", _InternVL()),
    (r"llava-(v?1\.5|1-5)", _Flat(576, 336)),
)
"""Patterns of model names without the vendor, with their rules. The first match counts."""

FAMILIES = "OpenAI, Claude, Gemini, Qwen-VL, InternVL and LLaVA models"


def rule_of(model: str) -> Rule | None:
    """Return the rule of a model, named with or without its vendor; None if none is known."""
    name = model.lower().rpartition("/")[2]
    return next((rule for pattern, rule in MODELS if re.match(pattern, name)), None)
