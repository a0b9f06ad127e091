"""Every error that fedlora raises on purpose.

    FedloraError
    +-- ConfigError          a value in a configuration or on the command line
    +-- MissingExtraError    a part of fedlora that is not installed
    +-- TensorFileError      a file that is not a sound safetensors file
    +-- AtRestError          a file that is encrypted, and cannot be opened
    +-- CheckpointError      a source model that cannot be packed
    +-- PackError            a base pack that is damaged, foreign or missing
    +-- AdapterError         an adapter that cannot be read
    |   +-- AdapterMismatchError   a sound adapter that does not belong to this base or run
    |   +-- AdapterExistsError     a name that has an adapter already
    |   +-- AdapterStoreFullError  an adapter for which there is no room beside those in use
    |   |   +-- AdapterTooLargeError   one for which there would be none if it were alone
    |   +-- UnknownAdapterError    a name without an adapter
    +-- UpdateError          bytes from a device that are refused; `reason` is a short word to count by
    +-- PolicyError          what a device's own policy does not allow; `reason` is a short word to count by
    +-- CourierError         a device service that cannot be reached, or what it cannot read
    +-- DataError            training text that cannot be used
    |   +-- NotRecordsError        a sound file that holds something else
    +-- RunError             a federated run that cannot go on
    +-- BundleError          a device's bundle, its name, its keys or its server's address
    +-- IdentityError        a key, or a signed statement, that cannot be read
    |   +-- SignatureError         one that is not signed by whom it must be
    +-- ReleaseError         a release that is damaged, older, out of time, for another base, or not wholly signed
    +-- GraphError           an ONNX graph that is damaged or disagrees with the base

A message says where, what was expected, what came and what to do next. The command line prints it and exits with 1.
"""

_MOST_CHARACTERS = 4000


def printable(text: str) -> str:
    """What a stranger may have written, in one line that steers no terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FedloraError(Exception):
    """The root: catch this to catch whatever fedlora raises on purpose."""

    def __str__(self) -> str:
        """The message in one line: what a stranger wrote is shown in it, begins no line and steers no terminal."""
        message = super().__str__()
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[: _MOST_CHARACTERS // 2]} ... {message[-_MOST_CHARACTERS // 2 :]}"
        return printable(message)


class ConfigError(FedloraError):
    """A value that a configuration does not take."""


class MissingExtraError(FedloraError):
    """An optional part that is not installed."""


class TensorFileError(FedloraError):
    """A file that is not a sound safetensors file."""


class AtRestError(FedloraError):
    """A file that is encrypted at rest: its key is not there, or it is not what was written."""


class CheckpointError(FedloraError):
    """A source model that cannot be packed."""


class PackError(FedloraError):
    """A base pack that is damaged, foreign or missing."""


class AdapterError(FedloraError):
    """An adapter that cannot be read."""


class AdapterMismatchError(AdapterError):
    """A sound adapter that does not belong to this base or run."""


class AdapterExistsError(AdapterError):
    """A name that has an adapter already, which was not to be replaced."""


class AdapterStoreFullError(AdapterError):
    """An adapter for which there is no room beside those that are pinned or in use."""


class AdapterTooLargeError(AdapterStoreFullError):
    """An adapter that is larger than all of them together may be."""


class UnknownAdapterError(AdapterError):
    """A name without an adapter."""


class UpdateError(FedloraError):
    """Bytes from a device that are refused."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PolicyError(FedloraError):
    """What a device's own policy does not allow."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CourierError(FedloraError):
    """A device service that cannot be reached, or a message between it and its courier that cannot be read."""


class DataError(FedloraError):
    """Training text that cannot be used."""


class NotRecordsError(DataError):
    """A sound file that holds something else than records to learn from."""


class RunError(FedloraError):
    """A federated run that cannot go on."""


class BundleError(FedloraError):
    """A bundle that makes no device of a fleet, or a part of it that does not."""


class IdentityError(FedloraError):
    """A key, or a signed statement, that cannot be read."""


class SignatureError(IdentityError):
    """A statement that is not signed by whom it must be signed by."""


class ReleaseError(FedloraError):
    """A release that is not taken: damaged, older, out of time, for another base, or not as it was signed."""


class GraphError(FedloraError):
    """An ONNX graph that is damaged or disagrees with its base."""
