"""What images cost before they are sent: by format, and drawn in threads or in processes.

usage: python benchmarks/images.py [formats|workers]        default both, about two minutes
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from photographs import photograph, saved
from PIL import Image

from captioner.images.decoder_pool import DecoderPool
from captioner.images.fit import FitOptions, fit
from captioner.images.render import render
from captioner.settings.options import ImageSettings


def formats() -> None:
    """One image of 1024 x 768 in every format, and what becomes of it."""
    image = photograph(1024, 768)
    alpha = image.copy()
    alpha.putalpha(128)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [photograph(1024, 768, seed) for seed in range(4)]
    cases: list[tuple[str, bytes]] = [
        ("JPEG", saved(image, quality=85)),
        ("JPEG, EXIF with a place", saved(image, quality=85, exif=Image.Exif().tobytes())),
        ("JPEG, turned by EXIF", saved(image, quality=85, exif=turned.tobytes())),
        ("JPEG, progressive", saved(image, quality=85, progressive=True)),
        ("JPEG, CMYK", saved(image.convert("CMYK"), quality=85)),
        ("PNG", saved(image, "PNG")),
        ("PNG, transparent", saved(alpha, "PNG")),
        ("PNG, palette", saved(image.convert("P"), "PNG")),
        ("WebP", saved(image, "WEBP")),
        ("WebP, transparent", saved(alpha, "WEBP")),
        ("GIF, four frames", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        ("BMP", saved(image, "BMP")),
        ("TIFF", saved(image, "TIFF")),
        ("AVIF", saved(image, "AVIF")),
        ("JPEG 2000", saved(image, "JPEG2000", quality_layers=[20])),
    ]
    wanted = FitOptions(ImageSettings())
    print("| image of 1024 x 768 | kB | what is done | ms |")
    print("| --- | ---: | --- | ---: |")
    for name, data in cases:
        drawn = []

        def by(data: bytes, image_overrides: Any, drawn: list[int] = drawn) -> Any:
            drawn.append(1)
            return render(data, wanted, image_overrides)

        cost = best(lambda data=data, by=by: fit(data, wanted, by))
        sent = fit(data, wanted, by)[0]
        what = "drawn" if drawn else "passed" if sent.data == data else "passed, metadata cut"
        print(f"| {name} | {len(data) / 1000:,.0f} | {what} | {cost * 1e3:,.2f} |")


def best(run: Callable[[], object], times: int = 7) -> float:
    """Return the seconds of CPU that a call takes, at its fastest."""
    costs = []
    for _ in range(times):
        begin = time.process_time()
        run()
        costs.append(time.process_time() - begin)
    return min(costs)


def workers() -> None:
    """12 megapixels to 1024, in threads and in child processes, while an event loop keeps time."""
    data = saved(photograph(4000, 3000), quality=80)
    wanted = FitOptions(ImageSettings(max_side=1024))
    count = os.cpu_count() or 1
    print(f"\n{count} workers, JPEG of 4000 x 3000 ({len(data) / 1e6:.1f} MB) to 1024 x 768")
    print("| where | images/s | CPU ms each | cores busy | loop lag, worst ms | peak RSS MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with DecoderPool(wanted, count) as decoders:
        for name, by in (
            ("threads", lambda data, image_overrides: render(data, wanted, image_overrides)),
            ("processes", decoders.render),
        ):
            asyncio.run(race(name, lambda by=by: fit(data, wanted, by), count))


async def race(name: str, run: Callable[[], object], count: int, images: int = 120) -> None:
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(count)
    await asyncio.gather(*(loop.run_in_executor(pool, run) for _ in range(count)))
    lag = 0.0
    over = False

    async def watch() -> None:
        nonlocal lag
        while not over:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            lag = max(lag, time.perf_counter() - begin - 0.001)

    watching = asyncio.create_task(watch())
    cpu, wall = processor(), time.perf_counter()
    await asyncio.gather(*(loop.run_in_executor(pool, run) for _ in range(images)))
    wall, cpu = time.perf_counter() - wall, processor() - cpu
    over = True
    await watching
    pool.shutdown()
    memory = sum(map(resident, (os.getpid(), *children())))
    print(
        f"| {name} | {images / wall:.1f} | {cpu / images * 1e3:.0f} | {cpu / wall:.2f} "
        f"| {lag * 1e3:.1f} | {memory >> 20} |"
    )


def processor() -> float:
    """Return the seconds of CPU of this process and of its living children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    tick = os.sysconf("SC_CLK_TCK")
    total = own.ru_utime + own.ru_stime
    for pid in children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


def resident(pid: int) -> int:
    """Return the most memory that a process has held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["formats", "workers"]
    for one in chosen:
        {"formats": formats, "workers": workers}[one]()
