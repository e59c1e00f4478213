"""Reviews of an output, as a person would make them on the page."""

from __future__ import annotations

import json

from captioner.core.keys import RecordKeys
from captioner.journal.companions import reviews_path
from captioner.journal.reviews import Review, Reviews, fingerprint

FIELDS = ("caption",)


def judge(output, journal=None, **verdicts):
    """Review rows by number: ``_2="rejected"``, or an edit as ``_2={...}``."""
    reviews = Reviews(reviews_path(output))
    identity = RecordKeys(FIELDS)
    lines = (journal or output).read_bytes().splitlines()
    for name, verdict in verdicts.items():
        line = lines[int(name[1:])]
        captions = verdict if isinstance(verdict, dict) else {}
        said = "edited" if captions else verdict
        of = fingerprint(json.loads(line), FIELDS)
        reviews.add(Review(identity.of_output(line), of, said, captions))
