"""What has been handed to the provider, and how far each batch has come: ``OUT.batch/``.

::

    state.json                 the batches, replaced atomically at every step
    0001.requests.jsonl        what is sent: a request a line; kept until the answers are in
    0001.records.jsonl         the records of those requests, in the same order
    0001.output.jsonl          what came back
    0001.errors.jsonl

A step is noted before what cannot be taken back, and after what can: a crash at any moment leaves
a batch that is begun again, or one that is found again at the provider, and never a row that is
submitted twice.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from captioner.core.errors import OutputDamagedError
from captioner.core.jsonbytes import one_line
from captioner.journal.companions import batch_folder
from captioner.journal.disk import Files, atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from captioner.core.types import InputRecord

VERSION = 1
STATES = ("written", "uploaded", "creating", "created", "ended", "fetched", "merging", "merged")
"""The life of a batch; ``exported`` and ``given up`` stand beside."""

_BLOCK = 1 << 20


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        number: From 1; names its files.
        state: One of `STATES`, or ``exported`` for a file that somebody else runs.
        records: Records in it.
        requests: Requests in it.
        file_id: The provider's id of the requests.
        batch_id: The provider's id of the batch.
        remote: The provider's word for how it is.
        done: Requests that the provider has done.
        output_id: The provider's id of the answers; empty if there are none.
        errors_id: The provider's id of the requests that failed; empty if there are none.
        journal_at: Bytes of the journal when merging began.
        failures_at: Bytes of the failures when merging began.
        missed: Looks that have not found it, while it is not known whether it was created.
        alone: Times that it was too much for the provider with no other batch open.
        token: Begins the ids of its requests, so that no other's answers are taken for its own.
    """

    number: int
    state: str = "written"
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

    @property
    def open(self) -> bool:
        """Its answers are not in the journal yet."""
        return self.state != "merged"


@dataclass(slots=True)
class Ledger:
    """The batches of an output.

    Attributes:
        folder: Where they are kept.
        base_url: The endpoint they went to.
        api_key_env: Names of variables with its key.
        batches: The batches.
        next: Number of the next one.
        settings: What shapes the captions of open batches, by option name.
    """

    folder: Path
    base_url: str = ""
    api_key_env: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    next: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=Files)

    @classmethod
    def of(cls, journal: Path) -> Self:
        """Return the ledger of a journal, empty if there is none yet.

        Raises:
            OutputDamagedError: It cannot be read, or a newer version wrote it.
        """
        folder = batch_folder(journal)
        ledger = cls(folder)
        path = folder / "state.json"
        if not path.exists():
            return ledger
        try:
            state = orjson.loads(path.read_bytes())
            if state["version"] > VERSION:
                raise OutputDamagedError(f"{path} was written by a newer captioner; use that one")
            known = {one.name for one in fields(Batch)}
            ledger.base_url = str(state["base_url"])
            ledger.api_key_env = list(state["api_key_env"])
            ledger.next = int(state["next"])
            ledger.settings = dict(state.get("settings") or {})
            ledger.batches = [
                Batch(**{name: value for name, value in one.items() if name in known})
                for one in state["batches"]
            ]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise OutputDamagedError(
                f"{path} cannot be read: it tells what was paid for. Restore it, or choose another "
                "output with -o."
            ) from error
        return ledger

    def save(self) -> None:
        """Put the state on disk.

        Raises:
            OSError: The disk refused; the state there is the one before.
        """
        self.make_folder()
        self.batches = [batch for batch in self.batches if batch.open]
        state = {
            "version": VERSION,
            "base_url": self.base_url,
            "api_key_env": self.api_key_env,
            "next": self.next,
            "settings": self.settings,
            "batches": [asdict(batch) for batch in self.batches],
        }
        with atomic_write(self.folder / "state.json", self.files) as file:
            file.write(orjson.dumps(state, option=orjson.OPT_INDENT_2))

    def make_folder(self) -> None:
        """Make the folder, so that it is still there after a power loss."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            self.files.sync_folder(self.folder.parent)

    def changed(self, settings: dict[str, Any]) -> list[str]:
        """Return the options that are others than those of the open batches."""
        if not self.batches:
            return []
        names = sorted(self.settings.keys() | settings.keys())
        return [name for name in names if self.settings.get(name) != settings.get(name)]

    def path(self, batch: Batch, what: str) -> Path:
        """Return a file of a batch: ``requests``, ``records``, ``output`` or ``errors``."""
        return self.folder / f"{batch.number:04d}.{what}.jsonl"

    def forget(self, batch: Batch) -> None:
        """Remove the files of a batch whose answers are safe."""
        for what in ("requests", "records", "output", "errors"):
            self.path(batch, what).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove files of no batch: what a crash left of one that was being written."""
        if not self.folder.is_dir():
            return
        known = {f"{batch.number:04d}" for batch in self.batches}
        for path in self.folder.glob("[0-9]*.jsonl"):
            if path.name.partition(".")[0] not in known:
                path.unlink()


class Entry(NamedTuple):
    """A record in a batch.

    Attributes:
        number: See `InputRecord`.
        key: See `InputRecord`.
        attempt: How often it has been asked for, this batch included.
        questions: Questions asked.
        samples: Answers to each.
        replaces: See `PreparedRecord`.
        raw: See `InputRecord`.
    """

    number: int
    key: bytes
    attempt: int
    questions: int
    samples: int
    replaces: bool
    raw: bytes

    def ids(self, token: str, index: int) -> list[str]:
        """Return the ids of its requests, question by question."""
        return [
            f"{token}.{index}.{question}.{sample}"
            for question in range(self.questions)
            for sample in range(self.samples)
        ]


class BatchWriter:
    """Writes the requests of one batch, and the records they are for.

    Args:
        ledger: Knows where.
        max_requests: Requests after which it is full.
        max_bytes: Bytes after which it is full.
    """

    def __init__(self, ledger: Ledger, *, max_requests: int, max_bytes: int) -> None:
        self._ledger = ledger
        self._max = max_requests, max_bytes
        self.batch = Batch(ledger.next, token=secrets.token_hex(8))
        ledger.next += 1
        ledger.make_folder()
        self._requests = ledger.path(self.batch, "requests").open("wb", buffering=_BLOCK)
        self._records = ledger.path(self.batch, "records").open("wb", buffering=_BLOCK)
        self._bytes = 0

    def fits(self, bodies: Sequence[bytes]) -> bool:
        """Tell whether one more record has room; the first one always has."""
        more = sum(map(len, bodies)) + _OVERHEAD * len(bodies)
        requests, size = self._max
        return not self.batch.records or (
            self.batch.requests + len(bodies) <= requests and self._bytes + more <= size
        )

    def add(self, entry: Entry, bodies: Sequence[bytes]) -> None:
        """Add a record and its requests' bodies."""
        head = orjson.dumps([*entry[:1], entry.key.hex(), *entry[2:6]])
        self._records.write(head + b"\t" + entry.raw + b"\n")
        for name, body in zip(entry.ids(self.batch.token, self.batch.records), bodies, strict=True):
            line = (
                b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
                % (
                    name.encode(),
                    body,
                )
            )
            self._requests.write(line)
            self._bytes += len(line)
        self.batch.records += 1
        self.batch.requests += len(bodies)

    def close(self) -> Batch:
        """Put the files on disk; return the batch, which is not in the ledger yet."""
        for file in (self._requests, self._records):
            file.flush()
            self._ledger.files.sync(file.fileno())
            file.close()
        return self.batch

    def abandon(self) -> None:
        """Remove what was written."""
        self._requests.close()
        self._records.close()
        self._ledger.forget(self.batch)


_REQUEST = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":%b}\n'
_OVERHEAD = 128


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the records of a batch in order."""
    with path.open("rb") as file:
        for line in file:
            head, _, raw = line.rstrip(b"\n").partition(b"\t")
            number, key, attempt, questions, samples, replaces = orjson.loads(head)
            yield Entry(number, bytes.fromhex(key), attempt, questions, samples, replaces, raw)


def entry_of(
    line: InputRecord, key: bytes, *, questions: int, samples: int, replaces: bool
) -> Entry:
    """Return what is noted of a record when it is asked for first."""
    return Entry(line.number, key, 1, questions, samples, replaces, one_line(line.raw))
