"""All exceptions, grouped by what they end.

::

    CaptionerError
    ├─ SettingsError          invalid settings: nothing was sent or written     exit 2
    ├─ DamagedInputError      the rest of the input is unreadable: one Failure
    ├─ RecordError            the record becomes a Failure; the run continues
    │  ├─ BadRecordError      unreadable line, missing field, unknown role
    │  ├─ BadImageError       missing, corrupt or oversized image
    │  └─ RefusedError        the endpoint will never caption this record
    ├─ AttemptError           the attempt failed; the record is retried
    │  ├─ EndpointFaultError  the endpoint is at fault: does not count as an attempt
    │  ├─ BadReplyError       the reply is not a caption: counts as an attempt
    │  ├─ ParameterError      an unsupported parameter: retried without it
    │  ├─ TokenLimitError     max_tokens above the context: retried with fewer
    │  ├─ ImageRejectedError  unsupported images: re-encoded and retried
    │  └─ NotFoundError       unknown model or oversized body: a second request decides
    └─ RunError               the run stops and can be resumed
       ├─ EndpointRefusedError   wrong key, model or address                    exit 2
       ├─ EndpointGaveOutError   out of quota, or unavailable for too long      exit 7
       │  └─ ServerDiedError     the server of --serve cannot be kept running   exit 7
       ├─ StoreGaveOutError      the object stores of the images give nothing   exit 7
       ├─ LimitReachedError      a limit set by the user                        exit 8
       ├─ DecoderError           image decoders cannot be started               exit 1
       ├─ WorkersDiedError       all worker processes died                      exit 1
       ├─ DescriptorsError       no file can be opened for a minute             exit 1
       ├─ OutputBusyError        another run is writing the output              exit 4
       ├─ OutputDamagedError     the output was damaged or changed              exit 5
       └─ DiskError              a write or a sync failed                       exit 9
          └─ DiskFullError       the disk is full; waiting may help
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from captioner.core.progress import RunReport


class CaptionerError(Exception):
    """Base class of captioner's exceptions."""


class SettingsError(CaptionerError):
    """The settings are invalid; nothing was sent or written."""

    exit_code: ClassVar[int] = 2


class RecordError(CaptionerError):
    """One record cannot be captioned.

    Args:
        code: Machine-readable code, for example ``image_missing``.
        message: One sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadRecordError(RecordError):
    """The input line is unreadable or lacks a required field."""


class BadImageError(RecordError):
    """An image of the record is missing, corrupt or too large."""


class DamagedInputError(CaptionerError):
    """The input ends unexpectedly; the records before were read."""


class WouldBlockError(Exception):
    """The work would block; the caller does it in a thread."""


class RefusedError(RecordError):
    """The endpoint refused this record, and would refuse it again."""


class AttemptError(CaptionerError):
    """One attempt failed; the record can be retried.

    Args:
        code: Machine-readable code, for example ``http_503``.
        message: One sentence for a person.
        retry_after_s: Seconds to wait before a retry, if the endpoint gave them.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class EndpointFaultError(AttemptError):
    """The endpoint is overloaded, rate limiting, unreachable or broken.

    Attributes:
        is_loading: The endpoint says that it loads its model.
        is_unknown_host: There is no host of that name.
    """

    is_loading: bool = False
    is_unknown_host: bool = False


class BadReplyError(AttemptError):
    """The endpoint's reply is not a caption."""


class ParameterError(AttemptError):
    """The endpoint does not support a parameter of the request.

    Args:
        parameter: The parameter's name in the endpoint's message.
    """

    def __init__(self, code: str, message: str, parameter: str) -> None:
        super().__init__(code, message)
        self.parameter = parameter


class ImageRejectedError(AttemptError):
    """The endpoint does not accept the images as they were sent.

    Args:
        smaller: The images are too large. If false, their format is not supported.
        excess: Tokens above the model's context, if the endpoint says so.
    """

    def __init__(self, code: str, message: str, *, smaller: bool, excess: int = 0) -> None:
        super().__init__(code, message)
        self.smaller = smaller
        self.excess = excess


class TokenLimitError(AttemptError):
    """``max_tokens`` is more than the model's context leaves.

    Args:
        limit: Tokens that the context leaves, if the endpoint says so.
    """

    def __init__(self, code: str, message: str, limit: int | None) -> None:
        super().__init__(code, message)
        self.limit = limit


class NotFoundError(AttemptError):
    """The endpoint responded 404: an unknown model, or a body too large for a gateway."""


class RunError(CaptionerError):
    """The run stops; finished records are saved, and the same command continues it.

    Attributes:
        exit_code: Exit status of the command.
        report: The report up to then, if the run had started.
        code: Failure code of a record that alone meets it.
        reason: What the endpoint responded, without advice; empty if it is not about a response.
    """

    exit_code: ClassVar[int] = 1
    code: str = "refused"
    reason: str = ""
    report: RunReport | None = None


PROXY_REFUSES = (
    "The proxy rejected the user and password (407). Set them in the environment, as in "
    "https_proxy=http://USER:PASSWORD@HOST:PORT."
)


class EndpointRefusedError(RunError):
    """The endpoint rejects every request: wrong key, model or address."""

    exit_code = 2


class EndpointGaveOutError(RunError):
    """The endpoint is out of quota, or was unavailable longer than allowed."""

    exit_code = 7


class ServerDiedError(EndpointGaveOutError):
    """A server that captioner started cannot be kept running."""


class StoreGaveOutError(RunError):
    """The object stores of the images cannot be reached, or refuse everything."""

    exit_code = 7


class LimitReachedError(RunError):
    """The run reached a limit set by the user; the same command continues it."""

    exit_code = 8


class OutputBusyError(RunError):
    """Another run is writing to the same output."""

    exit_code = 4


class OutputDamagedError(RunError):
    """The output was damaged or changed; it is not touched."""

    exit_code = 5


class DecoderError(RunError):
    """The processes that decode images cannot be started."""


class WorkersDiedError(RunError):
    """All worker processes died, or cannot be started."""


class DescriptorsError(RunError):
    """No file can be opened for a minute: too many are open."""


class DiskError(RunError):
    """A write or a sync failed; everything synced before is safe."""

    exit_code = 9


class UploadError(RunError):
    """An object store refused a finished output, which is safe on this machine."""

    exit_code = 9


class DiskFullError(DiskError):
    """The disk is full; the call can be repeated when there is space."""


def revive(name: str, message: str) -> RunError | SettingsError | None:
    """Return the error of another process from its class name and message; None for a bug."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, RunError | SettingsError):
        return kind(message)
    return None
