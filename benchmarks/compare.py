"""What one caption costs: captioner beside the least aiohttp can do and the usual openai loop.

Every client is a whole process, started in turn against the same server, which costs next to
nothing. CPU seconds are those of the process and of all its children, start-up included.
It needs gcc, and pip install openai.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from corpora import corpus

HERE = Path(__file__).parent
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled, ours as well
OURS = [sys.executable, "-m", "captioner"]
ANCHOR = [sys.executable, str(HERE / "anchors.py")]


@contextmanager
def endpoint(latency_ms: float):
    """Build and start the server; yield its base URL."""
    binary = Path(tempfile.gettempdir()) / "captioner-sink"
    subprocess.run(["gcc", "-O2", "-o", binary, HERE / "sink.c"], check=True)
    server = subprocess.Popen(
        [binary, str(latency_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    server.stdin.close()
    server.wait()


def write_input(path: Path, images: list[Path], count: int) -> None:
    """Write records, each another request: images that come again are asked something else."""
    with path.open("w") as file:
        for number in range(count):
            turn, which = divmod(number, len(images))
            prompt = f"Generate detailed captions based on image content ({turn})."
            record = {"id": number, "image": str(images[which]), "prompt": prompt}
            file.write(json.dumps(record) + "\n")


def measure(command: list[str], output: Path) -> dict[str, float]:
    """Run a client to its end; return CPU seconds, wall seconds and its peak RSS in MB."""
    for left in output.parent.glob(f"*{output.name}*"):
        left.unlink()
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said: list[bytes] = []
    reading = threading.Thread(target=lambda: said.append(process.stderr.read()))
    reading.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    reading.join()
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}: {said[0].decode()[-500:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "rss": usage.ru_maxrss / 1024}


def stats(url: str) -> dict[str, int]:
    return json.load(urllib.request.urlopen(f"{url}/stats"))


def rivals(source: Path, output: Path, url: str, concurrency: int) -> dict[str, list[str]]:
    given = [str(source), str(output), url, str(concurrency)]
    return {
        "bare aiohttp": [*ANCHOR, "bare", *given],
        "captioner": [
            *OURS, str(source), "-o", str(output), "--base-url", url, "--model", "m",
            "--concurrency", str(concurrency),
        ],
        "AsyncOpenAI": [*ANCHOR, "openai", *given],
    }  # fmt: skip


def cost(folder: Path, rounds: int = 5) -> None:
    """CPU of a caption with images that pass as they are, 64 in flight.

    Ratios are those of one round, for the machine may be faster in the next.
    """
    print("| images | client | CPU s per 1,000 | of bare, rounds | median | peak RSS MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, count in (("S", 10_000), ("M", 10_000), ("L", 1_000)):
        source, output = folder / "in.jsonl", folder / "out.jsonl"
        write_input(source, corpus(name), count)
        more = ["--resize", "4096"] if name == "L" else []
        with endpoint(0) as url:
            clients = rivals(source, output, url, 64)
            clients["captioner"] += more
            found: dict[str, list[dict[str, float]]] = {client: [] for client in clients}
            for number in range(rounds):
                for client, command in clients.items():
                    if client == "AsyncOpenAI" and number:  # one round of it takes as long as ten
                        continue
                    found[client].append(measure(command, output))
        for client, several in found.items():
            cpu = middle([one["cpu"] for one in several])
            bare = found["bare aiohttp"]
            ratios = sorted(
                one["cpu"] / base["cpu"] for one, base in zip(several, bare, strict=False)
            )
            print(
                f"| {name} | {client} | {cpu / count * 1e3:.3f} "
                f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | {middle(ratios):.2f} "
                f"| {max(one['rss'] for one in several):.0f} |",
                flush=True,
            )


def latency(folder: Path) -> None:
    """Captions a second against an endpoint that takes 300 ms."""
    print("\n| in flight | client | captions/s | of bare | most really waiting |")
    print("| ---: | --- | ---: | ---: | ---: |")
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    for concurrency in (256, 512, 2_000):
        count = concurrency * 60
        write_input(source, corpus("S"), count)
        base = 0.0
        with endpoint(300) as url:
            for client, command in rivals(source, output, url, concurrency).items():
                if client == "AsyncOpenAI" and concurrency > 256:
                    continue
                stats(url)
                taken = measure(command, output)
                rate = count / taken["wall"]
                base = base or rate
                print(
                    f"| {concurrency:,} | {client} | {rate:,.0f} | {rate / base:.2f} "
                    f"| {stats(url)['most_waiting']:,} |",
                    flush=True,
                )


def draw(folder: Path) -> None:
    """12 megapixels to 1024 pixels: the whole command beside Pillow's thumbnail() alone."""
    import io

    from PIL import Image

    images = corpus("L")
    begin = time.process_time()
    for path in images[:40]:
        with Image.open(path) as image:
            image.thumbnail((1024, 1024))
            image.convert("RGB").save(io.BytesIO(), "JPEG", quality=92)
    alone = (time.process_time() - begin) / 40
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    write_input(source, images, 240)
    with endpoint(0) as url:
        command = rivals(source, output, url, 64)["captioner"] + ["--resize", "1024"]
        taken = measure(command, output)
    print("\n| 12 megapixels to 1024 | CPU ms an image | of thumbnail() | cores busy |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| Pillow's thumbnail(), alone | {alone * 1e3:.0f} | 1.00 | 1 |")
    each = taken["cpu"] / 240
    busy = taken["cpu"] / taken["wall"]
    print(f"| captioner | {each * 1e3:.0f} | {each / alone:.2f} | {busy:.2f} |")


def processes(folder: Path, rounds: int = 3) -> None:
    """One process and two, 59 kB images and an endpoint that takes no time."""
    print("\n| processes | captions/s | of one | CPU s per 1,000 | cores busy, server included |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    count = 60_000
    write_input(source, corpus("S"), count)
    base = 0.0
    with endpoint(0) as url:
        for number in (1, 2):
            command = rivals(source, output, url, 128)["captioner"]
            before = stats(url)["cpu_s"]
            found = []
            for _ in range(rounds):
                taken = measure([*command, "--processes", str(number)], output)
                now = stats(url)["cpu_s"]
                found.append((taken["wall"], taken["cpu"], now - before))
                before = now
            wall, cpu, served = sorted(found)[rounds // 2]
            base = base or count / wall
            print(
                f"| {number} | {count / wall:,.0f} | {count / wall / base:.2f} "
                f"| {cpu / count * 1e3:.3f} | {(cpu + served) / wall:.2f} |",
                flush=True,
            )


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


TABLES = {one.__name__: one for one in (cost, latency, draw, processes)}


def arguments() -> argparse.Namespace:
    """Return the command line."""
    lines = (f"  {name:<11}{one.__doc__.splitlines()[0]}" for name, one in TABLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(["tables:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help="What to measure. Default: all, which takes 20 minutes.",
    )
    found = parser.parse_args()
    if wrong := next((name for name in found.tables if name not in TABLES), None):
        parser.error(f"there is no table {wrong}; there are {', '.join(TABLES)}")
    return found


if __name__ == "__main__":
    chosen = arguments().tables or list(TABLES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    place = Path(tempfile.mkdtemp(prefix="captioner-compare-"))
    try:
        for one in chosen:
            TABLES[one](place)
    finally:
        shutil.rmtree(place)
