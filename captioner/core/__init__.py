"""Types, errors, protocols and small helpers that every other package uses."""

import logging

logging.getLogger("captioner").addHandler(logging.NullHandler())
