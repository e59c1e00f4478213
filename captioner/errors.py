"""The errors that captioner raises, under the name that users import.

See `captioner.core.errors` for the tree of errors and their exit codes.
"""

from captioner.core.errors import *  # noqa: F403 - re-exports all of them
from captioner.core.errors import ImageRejectedError as PictureError  # noqa: F401 - until 0.2
from captioner.core.errors import WouldBlockError as NotAtOnceError  # noqa: F401 - until 0.2
