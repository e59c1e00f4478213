"""The decoder process: re-encodes images with limited memory and time.

Untrusted bytes meet the C code of a decoder only here. If that code crashes or hangs, one record
fails and the parent process continues.

The messages on the socket, whose descriptor is the first argument::

    parent: the options                        once
    child:  READY                              once, when it has started
    parent: the overrides, then the image      for each image
    child:  HEAVY                              if the image is large
    parent: anything                           when the child may decode it
    child:  a list of frames or an error, then the data of each frame
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
from captioner.images.fit import HEAVY, MEMORY, READY, FitOptions
from captioner.images.render import render
from captioner.settings.options import ImageSettings

_GRACE_S = 5


def main() -> None:
    """Re-encode images until the parent closes the connection."""
    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # some systems lack one of them
            resource.setrlimit(limit, (most, most))
    connection = Connection(int(sys.argv[1]))
    images, detail = orjson.loads(connection.recv_bytes())
    wanted = FitOptions(ImageSettings(**images), detail)
    connection.send_bytes(READY)
    # The parent kills a slow child; the alarm does so if the parent is gone.
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
                reply: object = [
                    (frame.media_type, frame.width, frame.height, frame.time_s) for frame in frames
                ]
            except BadImageError as error:
                frames = ()
                reply = {"code": error.code, "message": error.message}
            signal.alarm(0)
            connection.send_bytes(orjson.dumps(reply))
            for frame in frames:
                connection.send_bytes(frame.data)
            del data, frames


if __name__ == "__main__":
    main()
