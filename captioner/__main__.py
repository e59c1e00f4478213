"""The command. Signal handlers come first: what follows takes long enough to be interrupted."""

from __future__ import annotations

import os
import signal
import sys
from typing import Never


def main() -> Never:
    """Run the command and exit with its status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; what is opened next must not take its place
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open to the end
    from captioner.cli.main import run_command

    sys.exit(run_command(sys.argv[1:]))


def _leave(number: int, _: object) -> Never:
    """Nothing has begun yet: leave with the status a shell expects."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
