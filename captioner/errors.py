"""The errors that captioner raises, under the name that users import.

See `captioner.core.errors` for the tree of errors and their exit codes.
"""

from captioner.core.errors import *  # noqa: F403 - a re-export of all of it
