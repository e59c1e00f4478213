"""Record a run in a terminal and the page of `captioner view` for the documentation.

usage: python scripts/screenshots.py
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "captioner" / "docs" / "images"
COLUMNS, LINES = 84, 9
PAGE = (1200, 640)
COMMAND = "captioner input.jsonl --offline"
HALFWAY = 70
"""Per cent done up to which the terminal is recorded."""

TIMEOUT_S = 180.0


def record_terminal(folder: Path) -> None:
    """Caption the examples in a terminal, and save how the display looked halfway."""
    socket = ["tmux", "-L", f"captioner-{os.getpid()}"]
    log = folder / "status"
    run = f"{sys.executable} -m captioner input.jsonl --offline; echo $? > {log}; sleep 1"
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    subprocess.run([*socket, "new-session", "-d", *size, "-c", folder, run], check=True)
    frame = ""
    deadline = time.monotonic() + TIMEOUT_S
    while not log.exists() and time.monotonic() < deadline:
        shown = subprocess.run(
            [*socket, "capture-pane", "-p", "-e"], capture_output=True, text=True, check=False
        ).stdout
        done = re.search(r"(\d+)%", shown)
        if done and (not frame or int(done[1]) <= HALFWAY):
            frame = shown.rstrip()
        time.sleep(0.2)
    subprocess.run([*socket, "kill-server"], check=False, stderr=subprocess.DEVNULL)
    if not log.exists() or log.read_text().strip() != "0" or not frame:
        sys.exit("the run did not end with exit code 0, or showed nothing")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ {COMMAND}\n{frame}"))
    svg = console.export_svg(title="captioner")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is loaded from the web
    svg = svg.replace("Fira Code, monospace", "monospace")
    (IMAGES / "run.svg").write_text(svg, "utf-8")


def record_page(folder: Path, chromium: str) -> None:
    """Save what `captioner view` shows of the captions."""
    viewer = subprocess.Popen(
        [sys.executable, "-m", "captioner", "view", "input.captions.jsonl"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        if viewer.stdout is None or not viewer.stdout.readline():
            sys.exit("captioner view printed no address")
        address = (folder / "input.captions.jsonl.page").read_text().strip()
        shot = folder / "page.png"
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu",
                "--disable-background-networking", "--hide-scrollbars",
                f"--user-data-dir={folder / 'profile'}", f"--window-size={PAGE[0]},{PAGE[1]}",
                "--virtual-time-budget=8000", f"--screenshot={shot}", address,
            ],
            check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        viewer.terminate()
        viewer.wait()
    with Image.open(shot) as image:
        image.convert("RGB").quantize(128).save(IMAGES / "view.png", optimize=True)


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if shutil.which("tmux") is None:
        sys.exit("tmux is not installed: nothing to record the terminal with")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        examples = [sys.executable, str(ROOT / "scripts" / "make_examples.py"), name]
        subprocess.run(examples, check=True, stdout=subprocess.DEVNULL)
        record_terminal(folder)
        if chromium is None:
            print("Chromium is not installed: the page is not recorded")
        else:
            record_page(folder, chromium)
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
