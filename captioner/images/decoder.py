"""A decoder: a child process that draws images, bounded in memory and time, until it is let go.

Bytes of strangers meet a decoder's C code here and nowhere else. Whatever that does, the parent
lives on and one record fails.

What is said over the socket whose descriptor is the first argument, message by message::

    parent: the options                    once
    child:  READY                          when it has started
    parent: how to remake, the image     for each image
    child:  HEAVY                          if it is large
    parent: anything                       when it may go on
    child:  a list of frames or an error, then each frame
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
from multiprocessing.connection import Connection

import orjson

from captioner.core.errors import BadImageError
from captioner.core.types import ImageOverrides
from captioner.images.fit import HEAVY, READY, FitOptions
from captioner.images.render import render
from captioner.settings.options import ImageSettings

MEMORY = 5 << 29
"""Bytes of address space; an image of the largest size allowed and on a background takes 2 GB."""

_GRACE_S = 5


def main() -> None:
    """Render what comes until the parent is gone."""
    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # not every system has each of them
            resource.setrlimit(limit, (most, most))
    connection = Connection(int(sys.argv[1]))
    images, detail = orjson.loads(connection.recv_bytes())
    wanted = FitOptions(ImageSettings(**images), detail)
    connection.send_bytes(READY)
    # The parent ends what takes too long; the alarm does when there is no parent any more.
    seconds = int(wanted.images.image_timeout) + _GRACE_S

    def before_heavy() -> None:
        signal.alarm(0)
        connection.send_bytes(HEAVY)
        connection.recv_bytes()
        signal.alarm(seconds)

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            image_overrides = ImageOverrides(*orjson.loads(connection.recv_bytes()))
            data = connection.recv_bytes()
            signal.alarm(seconds)
            try:
                frames = render(data, wanted, image_overrides, before_heavy)
            except BadImageError as error:
                reply: object = {"code": error.code, "message": error.message}
                frames = ()
            else:
                reply = [(frame.media_type, frame.width, frame.height) for frame in frames]
            signal.alarm(0)
            connection.send_bytes(orjson.dumps(reply))
            for frame in frames:
                connection.send_bytes(frame.data)
            del data, frames


if __name__ == "__main__":
    main()
