"""The decoder process: re-encodes and reads images with limited memory and time.

Untrusted bytes meet the C code of a decoder only here. If that code crashes or hangs, one record
fails and the parent process continues.

The messages on the socket, whose descriptor is the first argument::

    parent: the options                        once
    child:  READY                              once, when it has started
    parent: the overrides, then the image      for each image; or what to look for in it
    child:  HEAVY                              if the image is large
    parent: anything                           when the child may decode it
    child:  a list of frames or an error, then the data of each frame; or what was found
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
from captioner.images.fit import HEAVY, MEMORY, READY, FitOptions, Fitted
from captioner.images.render import look, render
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
            request = orjson.loads(connection.recv_bytes())
            data = connection.recv_bytes()
            signal.alarm(seconds)
            frames: tuple[Fitted, ...] = ()
            try:
                if isinstance(request, dict):
                    reply: object = {"found": look(data, wanted, request["look"], before_heavy)}
                else:
                    frames = render(data, wanted, ImageOverrides(*request), before_heavy)
                    reply = [(one.media_type, one.width, one.height, one.time_s) for one in frames]
            except BadImageError as error:
                reply = {"code": error.code, "message": error.message}
            signal.alarm(0)
            connection.send_bytes(orjson.dumps(reply))
            for frame in frames:
                connection.send_bytes(frame.data)
            del data, frames


if __name__ == "__main__":
    main()
