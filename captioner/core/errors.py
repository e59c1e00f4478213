"""Every exception, named for who suffers.

::

    CaptionerError
    ├─ SettingsError          before the run: nothing was sent or written   exit 2
    ├─ DamagedInputError      the rest of the input: becomes one Failure
    ├─ RecordError            this record: becomes a Failure, the run goes on
    │  ├─ BadRecordError      unreadable line, missing field, unknown role
    │  ├─ BadImageError       missing, corrupt or oversized image
    │  └─ RefusedError        the endpoint will never caption this record
    ├─ AttemptError           this attempt: the record is tried again
    │  ├─ EndpointFaultError  the endpoint's trouble: spends time, no attempts
    │  ├─ BadReplyError       a reply that is no caption: spends an attempt
    │  ├─ ParameterError      a parameter the model does not take: asked again without it
    │  ├─ ImageError        images the endpoint does not take: made again, otherwise
    │  └─ NotFoundError       no such model, or an oversized body: a second one tells
    └─ RunError               the whole run stops, and can be run again
       ├─ EndpointRefusedError   key, model or address is wrong             exit 2
       ├─ EndpointGaveOutError   out of quota, or away for too long         exit 7
       ├─ LimitReachedError      a limit that the user set                  exit 8
       ├─ DecoderError           no process to decode images              exit 1
       ├─ WorkersDiedError       no process of several is left              exit 1
       ├─ OutputBusyError        another run holds the output               exit 4
       ├─ OutputDamagedError     the output is not what we wrote            exit 5
       └─ DiskError              the disk refused a write or a sync         exit 9
          └─ DiskFullError       it has no room; waiting may help
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from captioner.core.progress import RunReport


class CaptionerError(Exception):
    """Base of everything captioner raises on purpose."""


class SettingsError(CaptionerError):
    """The settings cannot work; nothing was sent or written."""

    exit_code: ClassVar[int] = 2


class RecordError(CaptionerError):
    """One record cannot be captioned.

    Args:
        code: Short machine-readable kind, for example ``image_missing``.
        message: One plain sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadRecordError(RecordError):
    """The input line is unreadable or lacks something it needs."""


class BadImageError(RecordError):
    """An image of the record is missing, corrupt or too large."""


class DamagedInputError(CaptionerError):
    """The input ends where it should not; what came before is read."""


class WouldBlockError(Exception):
    """It cannot be done without waiting; not an error, but a reason to do it elsewhere."""


class RefusedError(RecordError):
    """The endpoint said no to this record, and would say so again."""


class AttemptError(CaptionerError):
    """One attempt failed; the record may be tried again.

    Args:
        code: Short machine-readable kind, for example ``http_503``.
        message: One plain sentence for a person.
        retry_after_s: Seconds the endpoint asked to be left alone, if it said so.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class EndpointFaultError(AttemptError):
    """The endpoint is overloaded, limiting, unreachable or broken."""


class BadReplyError(AttemptError):
    """The endpoint answered, but not with a caption."""


class ParameterError(AttemptError):
    """The endpoint does not take a parameter of the request.

    Args:
        code: As in `AttemptError`.
        message: As in `AttemptError`.
        parameter: The parameter's name as the endpoint gives it.
    """

    def __init__(self, code: str, message: str, parameter: str) -> None:
        super().__init__(code, message)
        self.parameter = parameter


class ImageRejectedError(AttemptError):
    """The endpoint does not take the images as they were sent.

    Args:
        code: As in `AttemptError`.
        message: As in `AttemptError`.
        smaller: They are too large; else it is their encoding.
    """

    def __init__(self, code: str, message: str, *, smaller: bool) -> None:
        super().__init__(code, message)
        self.smaller = smaller


class NotFoundError(AttemptError):
    """The endpoint answered 404 or 410: no such model, or a gateway met an oversized body.

    Args:
        code: As in `AttemptError`.
        message: As in `AttemptError`.
        certain: It says that it is the model.
    """

    def __init__(self, code: str, message: str, *, certain: bool) -> None:
        super().__init__(code, message)
        self.certain = certain


class RunError(CaptionerError):
    """The run stops; what is finished is saved, and running again continues it.

    Attributes:
        exit_code: Status the command ends with.
        report: What was done until then, where the run had begun.
    """

    exit_code: ClassVar[int] = 1
    report: RunReport | None = None


PROXY_REFUSES = (
    "The proxy wants another user and password (407). Put them into the environment's proxy, as in "
    "https_proxy=http://USER:PASSWORD@HOST:PORT."
)


class EndpointRefusedError(RunError):
    """The endpoint rejects every request: wrong key, model or address."""

    exit_code = 2


class EndpointGaveOutError(RunError):
    """The endpoint is out of quota, or has been away longer than allowed."""

    exit_code = 7


class LimitReachedError(RunError):
    """The run has come to a limit that the user set; running again goes on."""

    exit_code = 8


class OutputBusyError(RunError):
    """Another run is writing to the same output."""

    exit_code = 4


class OutputDamagedError(RunError):
    """The output is not what captioner wrote; it is left alone."""

    exit_code = 5


class DecoderError(RunError):
    """No process can be started that decodes images."""


class WorkersDiedError(RunError):
    """A run in several processes has none of them left, or cannot start them."""


class DiskError(RunError):
    """The disk refused a write or a sync; what was synced before is safe."""

    exit_code = 9


class DiskFullError(DiskError):
    """There is no room on the disk; the same may work later."""
