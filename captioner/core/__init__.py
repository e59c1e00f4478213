"""Types, errors, protocols and small helpers that every other wing uses."""

import logging

logging.getLogger("captioner").addHandler(logging.NullHandler())
