"""The command. Signal handlers come first: what follows takes long enough to be interrupted."""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # importing typing takes long enough to be interrupted
if TYPE_CHECKING:
    from typing import Never


def main() -> Never:
    """Run the command and exit with its status."""
    signals = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    ]
    for number in signals:
        signal.signal(number, _leave)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; what is opened next must not take its place
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open to the end
    from captioner.cli.main import run_command

    status = run_command(sys.argv[1:])

    def end(*_: object) -> Never:
        os._exit(status)

    def ignore() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)

    for number in signals:
        signal.signal(number, end)  # all is done; only threads are still waited for
    atexit.register(ignore)
    sys.exit(status)


def _leave(number: int, _: object) -> Never:
    """Leave with the status a shell expects: nothing has begun yet.

    An exception would end in a stack trace in some imports, and crash modules written in C.
    """
    os._exit(128 + (signal.SIGTERM if number == signal.SIGHUP else number))


if __name__ == "__main__":
    main()
