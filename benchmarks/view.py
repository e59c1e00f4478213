"""What the page of captioner view does over many rows: looking, finding, drawing charts.

usage: python benchmarks/view.py [ROWS]        default: 1,000,000
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from captioner.journal.companions import index_path
from captioner.journal.reviews import Review, fingerprint
from captioner.outputs.viewer.finding import find as find_some
from captioner.outputs.viewer.search import Query
from captioner.outputs.viewer.store import ViewerStore

WORDS = [
    "a",
    "red",
    "photograph",
    "of",
    "two",
    "dogs",
    "on",
    "the",
    "beach",
    "near",
    "old",
    "houses",
]


def write(path: Path, count: int) -> None:
    chance = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(chance.choices(WORDS, k=chance.randrange(8, 60)))
            row = {"id": number, "image": f"images/{number}.jpg", "caption": text}
            if number % (count // 5) == 7:
                row["caption"] += " and a zebra"
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def find(store: ViewerStore, query: Query) -> tuple[int, float]:
    """Return how many rows fit, and the seconds of the longest of the requests it took."""
    found, at, longest = 0, 0, 0.0
    while at is not None:
        began = time.perf_counter()
        some = find_some(store, "rows", query, at, 1)
        longest = max(longest, time.perf_counter() - began)
        found, at = found + len(some.numbers), some.next
    return found, longest


class Watch:
    """The seconds since it was made, and those of them on a processor, as cells of a table."""

    def __init__(self) -> None:
        self._began, self._worked = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        took = time.perf_counter() - self._began, time.process_time() - self._worked
        return " | ".join(f"{seconds:.3g}" for seconds in took)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.jsonl"
        write(output, count)
        print(f"| {count:,} rows, {output.stat().st_size >> 20} MB | s | s of processor |")
        print("| --- | ---: | ---: |")
        store = ViewerStore(output, image_root=None)
        with output.open("rb") as file:
            first = file.readline().rstrip(b"\n")
        key = store.reader.keys.of_output(first)
        of = fingerprint(json.loads(first), store.reader.fields)
        store.reviews.add(Review(key, of, "accepted", {}))
        watch = Watch()
        store.rows.refresh()
        print(f"| first look | {watch} |")
        watch = Watch()
        store.display("rows", list(range(count // 2, count // 2 + 100)))
        print(f"| 100 rows to show | {watch} |")
        watch = Watch()
        while store.indexer.advance():
            pass
        print(f"| index all rows | {watch} |")
        for name, query in (
            ("a rare word", Query(text="Zebra")),
            ("a word of another script", Query(text="шум")),
            ("captions of 300 characters and more", Query(shortest=300)),
            ("what is not reviewed", Query(verdict="none")),
            ("near-duplicates", Query(repeated="nearly")),
        ):
            watch = Watch()
            found, longest = find(store, query)
            print(f"| find {name}: {found:,}, a request at most {longest:.2f} s | {watch} |")
        watch = Watch()
        store.indexer.choices()
        print(f"| openings, prompts, models | {watch} |")
        watch = Watch()
        store.charts()
        print(f"| charts, first time | {watch} |")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| peak RSS, MB | {peak:.0f} | |")
        store.close()
        print(f"| index on the disk, MB | {index_path(output).stat().st_size >> 20} | |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
