"""The batches of an output and their states, in the folder ``OUT.batch/``.

::

    state.json                 the batches, replaced atomically at every step
    0001.requests.jsonl        the requests, one a line; kept until the responses are merged
    0001.records.jsonl         the records of those requests, in the same order
    0001.output.jsonl          the responses
    0001.errors.jsonl          the requests that failed

A step that cannot be undone is noted before it is taken, any other step afterwards. After a crash,
a batch is therefore either begun again or found at the provider; no request is submitted twice.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.regular import reading, writing
from captioner.core.seal import is_sealed, seal
from captioner.core.secrets import sealed, without_login
from captioner.core.types import Notes
from captioner.journal.companions import batch_folder
from captioner.journal.disk import Files, atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 1

State = Literal[
    "written", "uploaded", "creating", "created", "ended", "fetched", "merging", "merged",
    "exported",
]  # fmt: skip
"""The states of a batch, in order; ``exported`` is a file that another program runs."""

_REQUEST = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
_OVERHEAD = 128  # bytes of such a line beside the body, at most


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        number: From 1, part of its files' names.
        file_id: The provider's id of the file of requests.
        batch_id: The provider's id of the batch.
        remote: The batch's status at the provider.
        done: Requests that the provider has completed.
        output_id: The provider's id of the file of responses; empty if there is none.
        errors_id: The provider's id of the file of failed requests; empty if there is none.
        journal_at: Bytes of the journal when merging began.
        failures_at: Bytes of the failures when merging began.
        missed: Searches that did not find a batch that may have been created, or attempts to
            create it that got a 404.
        alone: Times that the provider refused it as too large with no other batch open.
        token: Start of its requests' ids, which distinguishes them from those of other batches.
    """

    number: int
    state: State = "written"
    records: int = 0
    requests: int = 0
    file_id: str = ""
    batch_id: str = ""
    remote: str = ""
    done: int = 0
    output_id: str = ""
    errors_id: str = ""
    journal_at: int = -1
    failures_at: int = 0
    missed: int = 0
    alone: int = 0
    token: str = ""


@dataclass(slots=True)
class Ledger:
    """The batches of an output.

    Attributes:
        folder: Where they are kept.
        base_url: The endpoint they were sent to; in the file without user and password.
        api_key_env: Names of variables with its key.
        batches: Batches that are not merged.
        next: Number of the next batch.
        settings: The options that affect the captions of open batches, by name.
        is_own: This user wrote the file on this machine: its address may get the user's key.
    """

    folder: Path
    base_url: str = ""
    api_key_env: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    next: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    is_own: bool = True
    files: Files = field(default_factory=Files)

    @classmethod
    def of(cls, journal: Path) -> Self:
        """Return the ledger of a journal, empty if there is none yet.

        Raises:
            OutputDamagedError: It cannot be read, or a newer version wrote it.
        """
        ledger = cls(batch_folder(journal))
        path = ledger.folder / "state.json"
        try:
            with reading(path) as file:
                state = orjson.loads(file.read())
        except FileNotFoundError:
            return ledger
        except orjson.JSONDecodeError:
            state = None  # reported below
        try:
            if state["version"] > VERSION:
                raise OutputDamagedError(f"{path} was written by a newer captioner; use that one")
            known = {one.name for one in fields(Batch)}
            ledger.base_url = str(state["base_url"])
            ledger.api_key_env = list(state["api_key_env"])
            ledger.is_own = is_sealed(ledger.place(), str(state.get("seal", "")))
            ledger.next = int(state["next"])
            ledger.settings = sealed(state.get("settings") or {})
            ledger.batches = [
                Batch(**{name: value for name, value in one.items() if name in known})
                for one in state["batches"]
            ]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise OutputDamagedError(
                f"{path} cannot be read: it lists the batches that were paid for. Restore it, or "
                "choose another output with -o."
            ) from error
        return ledger

    def save(self) -> None:
        """Write the state to disk.

        Raises:
            OSError: The disk refused; the state there is unchanged.
        """
        self.make_folder()
        self.batches = [batch for batch in self.batches if batch.state != "merged"]
        state = {
            "version": VERSION,
            "base_url": without_login(self.base_url),
            "api_key_env": self.api_key_env,
            "seal": seal(self.place()),
            "next": self.next,
            "settings": self.settings,
            "batches": [asdict(batch) for batch in self.batches],
        }
        with atomic_write(self.folder / "state.json", self.files, private=True) as file:
            file.write(orjson.dumps(state, option=orjson.OPT_INDENT_2))

    def place(self) -> bytes:
        """Return where a key is sent, and which: what the seal of the file is about."""
        return orjson.dumps([without_login(self.base_url), list(self.api_key_env)])

    def make_folder(self) -> None:
        """Create the folder so that it survives a power loss."""
        kind = self.files.kind(self.folder)
        if kind == "missing":
            self.folder.mkdir()
            self.files.sync_folder(self.folder.parent)
        elif kind != "folder":
            raise OutputDamagedError(f"{self.folder} is not a folder; remove it")

    def changed(self, settings: dict[str, Any]) -> list[str]:
        """Return the options that differ from those of the open batches."""
        if not self.batches:
            return []
        names = sorted(self.settings.keys() | settings.keys())
        return [name for name in names if self.settings.get(name) != settings.get(name)]

    def path(self, batch: Batch, content: str) -> Path:
        """Return a file of a batch: ``requests``, ``records``, ``output`` or ``errors``."""
        return self.folder / f"{batch.number:04d}.{content}.jsonl"

    def remove_files(self, batch: Batch) -> None:
        """Remove the files of a batch that is merged."""
        for content in ("requests", "records", "output", "errors"):
            self.path(batch, content).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove the files of batches that a crash interrupted while they were written."""
        known = {f"{batch.number:04d}" for batch in self.batches}
        for path in self.folder.glob("[0-9]*.jsonl"):
            if path.name.partition(".")[0] not in known:
                path.unlink()


class Entry(NamedTuple):
    """A record in a batch; see `InputRecord` and `PreparedRecord`.

    Attributes:
        attempt: Number of this attempt, from 1.
        questions: Number of questions.
        samples: Number of responses to each.
        notes: See `PreparedRecord`.
    """

    number: int
    key: bytes
    attempt: int
    questions: int
    samples: int
    replaces: bool
    raw: bytes
    notes: Notes | None = None

    def ids(self, token: str, index: int) -> list[str]:
        """Return the ids of its requests, question by question."""
        return [
            f"{token}.{index}.{question}.{sample}"
            for question in range(self.questions)
            for sample in range(self.samples)
        ]


class BatchWriter:
    """Writes the requests of one batch and their records.

    Args:
        ledger: The ledger, which numbers the batch.
        max_requests: Requests after which the batch is full.
        max_bytes: Bytes of requests after which it is full.
    """

    def __init__(
        self, ledger: Ledger, max_requests: float = math.inf, max_bytes: float = math.inf
    ) -> None:
        self._ledger = ledger
        self._max = max_requests, max_bytes
        self.batch = Batch(ledger.next, token=secrets.token_hex(8))
        ledger.next += 1
        ledger.make_folder()
        self._requests = writing(ledger.path(self.batch, "requests"), new=True)
        self._records = writing(ledger.path(self.batch, "records"), new=True)
        self._bytes = 0

    def fits(self, bodies: Sequence[bytes]) -> bool:
        """Return whether one more record has room; the first one always has."""
        more = sum(map(len, bodies)) + _OVERHEAD * len(bodies)
        requests, size = self._max
        return not self.batch.records or (
            self.batch.requests + len(bodies) <= requests and self._bytes + more <= size
        )

    def add(self, entry: Entry, bodies: Sequence[bytes]) -> None:
        """Add a record and the bodies of its requests."""
        notes = [] if entry.notes is None else [list(entry.notes)]
        head = orjson.dumps([entry.number, entry.key.hex(), *entry[2:6], *notes])
        self._records.write(head + b"\t" + entry.raw + b"\n")
        for name, body in zip(entry.ids(self.batch.token, self.batch.records), bodies, strict=True):
            self._bytes += self._requests.write(_REQUEST % (name.encode(), body))
        self.batch.records += 1
        self.batch.requests += len(bodies)

    def close(self) -> Batch:
        """Sync the files; return the batch, which is not in the ledger yet."""
        for file in (self._requests, self._records):
            file.flush()
            self._ledger.files.sync(file.fileno())
            file.close()
        return self.batch

    def abandon(self) -> None:
        """Remove what was written."""
        self._requests.close()
        self._records.close()
        self._ledger.remove_files(self.batch)


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the records of a batch in order."""
    with reading(path) as file:
        for line in file:
            head, _, raw = line.rstrip(b"\n").partition(b"\t")
            number, key, attempt, questions, samples, replaces, *notes = orjson.loads(head)
            entry = Entry(number, bytes.fromhex(key), attempt, questions, samples, replaces, raw)
            yield entry._replace(notes=Notes(*notes[0])) if notes else entry


def body_of(line: bytes) -> bytes:
    """Return the body in a line of a file of requests."""
    _, mark, rest = line.partition(b',"body":')
    if not mark:
        raise ValueError("not a line of requests")
    return rest.rstrip(b"\n")[:-1]
