"""The corpora that clients are compared on: distinct images, made once and kept.

S: 512 x 512, about 60 kB. M: 1024 x 768, about 190 kB. L: 4000 x 3000, about 3 MB.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from photographs import photograph, saved

FOLDER = Path(os.environ.get("CORPORA", Path(tempfile.gettempdir()) / "captioner-corpora"))
SIZES = {"S": (512, 512, 93, 2_000), "M": (1024, 768, 94, 2_000), "L": (4_000, 3_000, 94, 120)}
BATCH = 40


def corpus(name: str) -> list[Path]:
    """Return the images of a corpus, made if they are not there."""
    *_, count = SIZES[name]
    folder = FOLDER / name
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            starts = range(0, count, BATCH)
            list(pool.map(make, [name] * len(starts), starts, chunksize=1))
    return paths


def make(name: str, start: int) -> None:
    """Cut images out of one large one, each from another place."""
    width, height, quality, count = SIZES[name]
    large = photograph(width + 8 * BATCH, height, start)
    for number in reversed(range(start, min(count, start + BATCH))):
        left = 8 * (number - start)
        data = saved(large.crop((left, 0, left + width, height)), quality=quality)
        (FOLDER / name / f"{number:05d}.jpg").write_bytes(data)


if __name__ == "__main__":
    for one in sys.argv[1:] or SIZES:
        sizes = [path.stat().st_size for path in corpus(one)]
        print(f"{one}: {len(sizes):,} images, {sum(sizes) / len(sizes) / 1e3:,.0f} kB each")
