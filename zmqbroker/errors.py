"""What can go wrong, named by what went wrong.

BrokerError
 +- Recoverable            trying again can help, as the message says
 |   +- PublishTimeout         no credit, or no broker, within the time given
 |   +- BrokerUnavailable      nobody answers at the address
 |   +- DiskFull               no space for data; acks and seals go on
 +- Fatal                  trying again cannot help; something must change first
     +- MessageTooLarge        above the broker's limit
     +- ProducerClosed, ConsumerClosed
     +- Refused                the broker said no, with a code of the protocol
     +- BatchesRefused         of what was published, some will never be taken
     +- LogStopped             an fsync failed: the log is never written again by this process (R11)
     +- DirectoryLocked        another process holds the data directory
     +- CorruptLog             the log's own files contradict each other
     +- NewerFormat            a file was written by a later version of this software
ProtocolError                  the other side sent what the protocol does not allow
"""

from __future__ import annotations


class BrokerError(Exception):
    """Base of everything that this package raises on purpose."""


class Recoverable(BrokerError):
    """Trying again can help."""


class Fatal(BrokerError):
    """Trying again cannot help."""


class PublishTimeout(Recoverable):
    """The batch was not taken within the time given: no credit, or no broker. It was not queued."""


class BrokerUnavailable(Recoverable):
    """Nobody answers at the address."""


class DiskFull(Recoverable):
    """No space for data. Nothing of the commit became visible; it may be tried again when there is space."""


class MessageTooLarge(Fatal):
    """The payload is above the broker's limit: send fewer rows a batch."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a message of {size_bytes} bytes is above the limit of {limit_bytes}: send fewer rows a batch"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class ProducerClosed(Fatal):
    """The producer was closed; make a new one."""


class ConsumerClosed(Fatal):
    """The consumer was closed; make a new one."""


class Refused(Fatal):
    """The broker refused; ``code`` is a :class:`zmqbroker.protocol.Code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the broker refused: {reason} (code {code})")
        self.code = code
        self.reason = reason


class BatchesRefused(Fatal):
    """``count`` batches that were published will never be durable; ``first`` is why the first of them was refused."""

    def __init__(self, count: int, first: BrokerError) -> None:
        super().__init__(
            f"{count} {'batch was' if count == 1 else 'batches were'} refused for good; the first: {first}"
        )
        self.count = count
        self.first = first


class LogStopped(Fatal):
    """An fsync or write failed: what is on disk is no longer known, so this log takes nothing more (R11)."""


class DirectoryLocked(Fatal):
    """Another process holds the data directory."""

    def __init__(self, path: str, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{path} is held by {holder}: stop it, or choose another --data-dir")
        self.path = path
        self.pid = pid


class CorruptLog(Fatal):
    """The log's own files contradict each other beyond what recovery may decide."""


class NewerFormat(Fatal):
    """A file has a format that only a later version knows. Nothing that it holds was changed."""

    def __init__(self, path: str, version: int, known: int) -> None:
        super().__init__(
            f"{path} has format version {version}, this software knows {known}: "
            "start the version that wrote it or a later one, or choose another directory"
        )
        self.path = path
        self.version = version
        self.known = known


class ProtocolError(BrokerError):
    """The other side sent what the protocol does not allow. ``code`` is a :class:`zmqbroker.protocol.Code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
