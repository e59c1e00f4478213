"""What each model does with an image's size, and what the image costs there in tokens.

An image above the size to which a provider shrinks it anyway costs upload and nothing is gained.
The rules are the providers' own, as published in late 2026 or read in their servers' code: OpenAI's
vision guide (tiles and patches), Anthropic's vision guide, Google's token guide, and the image
processors of Qwen-VL, InternVL and LLaVA. None of them makes an image larger here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Protocol


class Rule(Protocol):
    """One family's rule. Sides are in pixels; ``detail`` is OpenAI's, None where it is unset."""

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int] | None:
        """Return the size to which the provider makes an image smaller; None: it says nothing."""
        ...

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """Return what an image costs in input tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Tiles:
    """OpenAI's older models: 512-pixel tiles of an image within 2048², its shorter side 768."""

    base: int
    tile: int

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:
        """See `Rule`."""
        if detail == "low":
            return within(width, height, 512)
        width, height = within(width, height, 2048)
        if (short := min(width, height)) > 768:
            width, height = int(width * 768 / short), int(height * 768 / short)
        return width, height

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """See `Rule`."""
        if detail == "low":
            return self.base
        width, height = self.fit(width, height, detail)
        return self.base + self.tile * math.ceil(width / 512) * math.ceil(height / 512)


_HIGH = (2_500, 2_048)
_EVERY = (6_144, 2_048)


@dataclass(frozen=True, slots=True)
class Patches:
    """OpenAI's newer models: 32-pixel patches, at most so many.

    Args:
        factor: Tokens of a patch.
        budgets: Most patches and longest side, by detail; "" is for every other.
    """

    factor: float
    budgets: dict[str, tuple[int, int]] = field(default_factory=lambda: {"": _EVERY})

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:
        """See `Rule`."""
        patches, side = self.budgets.get(detail or "auto", self.budgets[""])
        width, height = within(width, height, side)
        if math.ceil(width / 32) * math.ceil(height / 32) <= patches:
            return width, height
        scale = math.sqrt(32 * 32 * patches / (width * height))
        across, down = width * scale / 32, height * scale / 32
        scale *= min(max(1, int(across)) / across, max(1, int(down)) / down)
        return max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """See `Rule`."""
        width, height = self.fit(width, height, detail)
        return math.ceil(round(math.ceil(width / 32) * math.ceil(height / 32) * self.factor, 6))


@dataclass(frozen=True, slots=True)
class Claude:
    """Anthropic: 28-pixel patches, bounded by a side and by tokens."""

    side: int
    limit: int

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        """See `Rule`."""
        width, height = within(width, height, self.side)
        if _cells(width, height, 28) <= self.limit:
            return width, height
        # The largest that is allowed fills its last row or column of patches.
        sizes = [
            (28 * count, max(1, int(height * 28 * count / width)))
            for count in range(1, width // 28 + 1)
        ] + [
            (max(1, int(width * 28 * count / height)), 28 * count)
            for count in range(1, height // 28 + 1)
        ]
        return max(size for size in sizes if _cells(*size, 28) <= self.limit)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:
        """See `Rule`."""
        return _cells(*self.fit(width, height, detail), 28)


@dataclass(frozen=True, slots=True)
class GeminiTiles:
    """Gemini up to 2.5: tiles by aspect, whatever the size; "rough", by Google's own word."""

    def fit(self, width: int, height: int, detail: str | None = None) -> None:
        """See `Rule`: nothing is published."""

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        """See `Rule`."""
        if max(width, height) <= 384:
            return 258
        unit = max(1, int(min(width, height) / 1.5))
        return 258 * math.ceil(width / unit) * math.ceil(height / unit)


@dataclass(frozen=True, slots=True)
class Flat:
    """Every image costs the same: Gemini 3 (its usual resolution), LLaVA-1.5.

    Args:
        cost: Tokens.
        side: Shorter side above which nothing is gained; None where none is published.
    """

    cost: int
    side: int | None = None

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int] | None:  # noqa: ARG002
        """See `Rule`."""
        if self.side is None:
            return None
        scale = min(1.0, self.side / min(width, height))
        return round(width * scale), round(height * scale)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        """See `Rule`."""
        return self.cost


@dataclass(frozen=True, slots=True)
class Grid:
    """Qwen-VL: sides are multiples of a cell, the area is bounded on both ends.

    Args:
        cell: Side of what becomes one token.
        least: Fewest pixels.
        most: Most pixels.
    """

    cell: int
    least: int
    most: int

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size after rounding, as `smart_resize` of Qwen's processor does it."""
        cell = self.cell
        across, down = (max(cell, round(side / cell) * cell) for side in (width, height))
        if across * down > self.most:
            scale = math.sqrt(width * height / self.most)
            across, down = (
                max(cell, math.floor(side / scale / cell) * cell) for side in (width, height)
            )
        elif across * down < self.least:
            scale = math.sqrt(self.least / (width * height))
            across, down = (math.ceil(side * scale / cell) * cell for side in (width, height))
        return across, down

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        """See `Rule`."""
        across, down = self._size(width, height)
        return (across, down) if across * down < width * height > self.most else (width, height)

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        """See `Rule`."""
        across, down = self._size(width, height)
        return across * down // self.cell**2


@dataclass(frozen=True, slots=True)
class InternVL:
    """InternVL: stretched onto the grid of 448-pixel tiles of the nearest aspect, and a thumbnail.

    Args:
        most: Most tiles.
    """

    most: int = 12

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        aspect = width / height
        grids = sorted(
            (
                (across, down)
                for across in range(1, self.most + 1)
                for down in range(1, self.most // across + 1)
            ),
            key=lambda grid: grid[0] * grid[1],
        )
        best, difference = (1, 1), math.inf
        for grid in grids:
            apart = abs(aspect - grid[0] / grid[1])
            large = width * height > 448 * 448 * grid[0] * grid[1] / 2
            if apart < difference or (apart == difference and large):
                best, difference = grid, apart
        return best

    def fit(self, width: int, height: int, detail: str | None = None) -> tuple[int, int]:  # noqa: ARG002
        """See `Rule`: it keeps its shape, and fills the grid both ways."""
        across, down = self._grid(width, height)
        scale = min(1.0, max(448 * across / width, 448 * down / height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def tokens(self, width: int, height: int, detail: str | None = None) -> int:  # noqa: ARG002
        """See `Rule`."""
        across, down = self._grid(width, height)
        tiles = across * down
        return 256 * (tiles + (tiles > 1))


def within(width: int, height: int, side: int) -> tuple[int, int]:
    """Return a size of the same shape with no side longer than one given."""
    if max(width, height) <= side:
        return width, height
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _cells(width: int, height: int, side: int) -> int:
    return math.ceil(width / side) * math.ceil(height / side)


_NO_BUDGET = (30_000, 1 << 30)

MODELS: tuple[tuple[str, Rule], ...] = (
    (r"gpt-4o-mini", Tiles(2_833, 5_667)),
    (r"gpt-4\.1-mini", Patches(1.62)),
    (r"gpt-4\.1-nano", Patches(2.46)),
    (r"gpt-4(o|\.1|\.5|-turbo|-vision)|chatgpt-4o", Tiles(85, 170)),
    (r"gpt-5-mini", Patches(1.2)),
    (r"gpt-5-nano", Patches(1.5)),
    (r"gpt-5\.2", Patches(1.2)),
    (r"gpt-5\.4", Patches(1.2, {"": _HIGH, "low": _EVERY, "original": (10_000, 6_000)})),
    (r"gpt-5\.5", Patches(1.2, {"": (10_000, 6_000), "low": _EVERY, "high": _HIGH})),
    (r"gpt-(5\.[6-9]|6)", Patches(1.2, {"": _NO_BUDGET, "low": _EVERY, "high": _HIGH})),
    (r"gpt-5(\.1)?(?![.\d])", Tiles(70, 140)),
    (r"o4-mini", Patches(1.72)),
    (r"o[13](?!\d)", Tiles(75, 150)),
    (r"claude.*(opus-4-[7-9]|(opus|sonnet|fable)-[5-9])", Claude(2_576, 4_784)),
    (r"claude", Claude(1_568, 1_568)),
    (r"gemini-([3-9])", Flat(1_120)),
    (r"gemini", GeminiTiles()),
    (r"qwen-vl-(max|plus)", Grid(28, 4 * 28 * 28, 1_280 * 28 * 28)),
    (r"qwen-?(3|4)", Grid(32, 65_536, 16_777_216)),
    (r"qwen-?2(\.5)?-?(vl|omni)|qvq", Grid(28, 4 * 28 * 28, 16_384 * 28 * 28)),
    (r"intern-?vl", InternVL()),
    (r"llava-(v?1\.5|1-5)", Flat(576, 336)),
)
"""A pattern of a model's name, after its vendor's, and its rule; the first that fits counts."""

FAMILIES = "OpenAI, Claude, Gemini, Qwen-VL, InternVL and LLaVA models"


def rule_of(model: str) -> Rule | None:
    """Return the rule of a model, by its name with or without its vendor's; None: not known."""
    name = model.lower().rpartition("/")[2]
    return next((rule for pattern, rule in MODELS if re.match(pattern, name)), None)
