"""CURVE keys, and who may do what.

Every connection of a secured broker is encrypted with CURVE and authenticated over ZAP: a client whose public key is
not in the allow-list does not get past the handshake. CURVE alone would authenticate nobody; the allow-list does.

    NAME.key_secret   both keys of one party, readable by its owner alone (``zmqbroker keygen NAME --out DIR``)
    NAME.key          its public key, to be given to others
    allow-list        one line a client: ``PUBLIC-KEY ROLE[,ROLE…] [NAME]``; ``#`` begins a comment

Roles: ``produce`` (HELLO), ``consume`` (SUBSCRIBE), ``admin`` (the admin socket). Roles are checked once a
conversation, not once a message. The allow-list is read again when the file changes; who lost a role keeps the
conversation that is open until it ends, or until an operator kicks it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq
import zmq.auth
import zmq.utils.z85
from zmq.auth.thread import ThreadAuthenticator

from zmqbroker import protocol
from zmqbroker.errors import BrokerError
from zmqbroker.protocol import HEADER_BYTES, Code, Type

PRODUCE: Final = "produce"
CONSUME: Final = "consume"
ADMIN: Final = "admin"
ROLES: Final = frozenset({PRODUCE, CONSUME, ADMIN})
DATA_DOMAIN: Final = "data"
ADMIN_DOMAIN: Final = "admin"

_NEEDS: Final = {int(Type.HELLO): PRODUCE, int(Type.SUBSCRIBE): CONSUME}
_NOBLOCK: Final = int(zmq.NOBLOCK)


class KeyFileError(BrokerError):
    """A key or an allow-list cannot be used: the message names the file, the line and what to do."""


@dataclass(frozen=True)
class KeyPair:
    """One party's keys, Z85 text as bytes (40 characters each)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.decode()}, secret=…)"


def make_keys(name: str, directory: Path) -> tuple[Path, Path]:
    """Write NAME.key and NAME.key_secret (mode 0600); returns both paths. Raises :class:`KeyFileError`."""
    if not protocol.valid_topic(name):
        raise KeyFileError(f"{name!r} is no name for keys: use letters, digits, . _ -")
    public, secret = directory / f"{name}.key", directory / f"{name}.key_secret"
    for path in (public, secret):
        if path.exists():
            raise KeyFileError(f"{path} exists: remove it first, or choose another name")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Nobody else can open the secret, not even between its creation and a later chmod.
        before = os.umask(0o077)
        try:
            zmq.auth.create_certificates(directory, name)
            while not _fits_command_lines(public):
                zmq.auth.create_certificates(directory, name)
        finally:
            os.umask(before)
        public.chmod(0o644)
    except OSError as e:
        raise KeyFileError(f"cannot write keys to {directory}: {e.strerror}") from None
    return public, secret


def _fits_command_lines(public: Path) -> bool:
    """Whether the key can be pasted anywhere: one in 85 begins with ``-`` and would be taken for an option."""
    return not _load(public)[0].startswith(b"-")


def load_secret(path: Path) -> KeyPair:
    """The pair in a NAME.key_secret file. Raises :class:`KeyFileError`, also where others may read the file."""
    public, secret = _load(path)
    if secret is None:
        raise KeyFileError(f"{path} holds no secret key: give the NAME.key_secret file")
    # A group that may read it is let pass: that is how Kubernetes hands a secret to a user that is not root (fsGroup).
    if path.stat().st_mode & 0o027:
        raise KeyFileError(f"{path} can be read by others: chmod 600 {path}")
    return KeyPair(public, secret)


def load_public(path_or_key: str) -> bytes:
    """A public key: the 40 characters themselves, or a NAME.key file. Raises :class:`KeyFileError`."""
    if len(path_or_key) == 40 and not os.path.exists(path_or_key):
        return _checked(path_or_key.encode(), "the key")
    return _load(Path(path_or_key))[0]


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as e:
        raise KeyFileError(f"cannot read the key {path}: {e.strerror or e}") from None
    except ValueError:
        raise KeyFileError(f"{path} is no key file: make one with `zmqbroker keygen`") from None
    return _checked(public, str(path)), None if secret is None else _checked(secret, str(path))


def _checked(key: bytes, source: str) -> bytes:
    try:
        if len(key) == 40 and len(zmq.utils.z85.decode(key)) == 32:
            return key
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    raise KeyFileError(f"{source}: a CURVE key has 40 characters of Z85")


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs: its own pair and the broker's public key. Give it to Producer and Consumer as ``keys``."""

    own: KeyPair
    server: bytes

    @classmethod
    def load(cls, secret_file: Path, server: str) -> ClientKeys:
        """``server``: the broker's public key, or a file that holds it. Raises :class:`KeyFileError`."""
        return cls(load_secret(Path(secret_file)), load_public(server))

    def secure_client(self, socket: zmq.Socket[Any]) -> None:
        """Before ``connect``."""
        socket.curve_publickey = self.own.public
        socket.curve_secretkey = self.own.secret
        socket.curve_serverkey = self.server


class AllowList:
    """Public keys and their roles, from a file that is read again when it changes. For any thread."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`KeyFileError`."""
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._entries: dict[str, tuple[frozenset[str], str]] = {}
        self.error = ""
        """Why the last change of the file was not taken; the entries before it stand."""
        self._read()

    def roles(self, key: str) -> frozenset[str]:
        """Of a public key (Z85); empty for one that is not listed."""
        self.refresh()
        return self._entries.get(key, (frozenset(), ""))[0]

    def name(self, key: str) -> str:
        return self._entries.get(key, (frozenset(), ""))[1]

    def entries(self) -> list[tuple[str, frozenset[str], str]]:
        """(key, roles, name) of every client."""
        self.refresh()
        return [(key, roles, name) for key, (roles, name) in self._entries.items()]

    def refresh(self) -> None:
        """Read the file again if it has changed; a damaged one is not taken."""
        with self._lock:
            try:
                if self._stamp != self._stamp_now():
                    self._read()
                    self.error = ""
            except (KeyFileError, OSError) as e:
                self.error = str(e)

    def _stamp_now(self) -> tuple[int, int, int]:
        stat = self.path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> None:
        try:
            self._stamp = self._stamp_now()
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
            raise KeyFileError(f"cannot read the allow-list {self.path}: {reason}") from None
        self._entries = parse_allow_list(lines, str(self.path))


def parse_allow_list(lines: list[str], source: str) -> dict[str, tuple[frozenset[str], str]]:
    """Key -> (roles, name). Raises :class:`KeyFileError` that names the line."""
    found: dict[str, tuple[frozenset[str], str]] = {}
    for number, line in enumerate(lines, 1):
        # Z85 uses '#' itself: a comment begins a line without being a key, or stands behind the roles.
        words = line.strip().split()
        for i, word in enumerate(words):
            if word.startswith("#") and (i > 1 or (i == 0 and len(word) != 40)):
                words = words[:i]
                break
        if not words:
            continue
        where = f"{source}, line {number}"
        if len(words) < 2:
            raise KeyFileError(f"{where}: a line is PUBLIC-KEY ROLE[,ROLE…] [NAME]")
        key = _checked(words[0].encode(), where).decode()
        roles = frozenset(words[1].split(","))
        if not roles or roles - ROLES:
            raise KeyFileError(f"{where}: {words[1]!r} are not roles: use {', '.join(sorted(ROLES))}")
        found[key] = (roles, " ".join(words[2:]))
    return found


class ServerKeys:
    """The broker's side: its keys, the allow-list, and the ZAP handler of a ZeroMQ context."""

    def __init__(self, own: KeyPair, allow: AllowList) -> None:
        self.own = own
        self.allow = allow
        self.denied = 0
        """Conversations refused because the key lacks the role; handshakes refused are counted by ``refused``."""
        self.refused = 0
        self._authenticator: ThreadAuthenticator | None = None

    @classmethod
    def load(cls, secret_file: Path, allow_file: Path) -> ServerKeys:
        """Raises :class:`KeyFileError`."""
        return cls(load_secret(Path(secret_file)), AllowList(Path(allow_file)))

    def start(self, context: zmq.Context[Any]) -> None:
        """Answer ZAP requests of this context, before anything binds in it."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(DATA_DOMAIN, _Provider(self, frozenset({PRODUCE, CONSUME})))
        authenticator.configure_curve_callback(ADMIN_DOMAIN, _Provider(self, frozenset({ADMIN})))
        self._authenticator = authenticator

    def stop(self) -> None:
        """Before the context is closed."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None

    def secure_server(self, socket: zmq.Socket[Any], domain: str) -> None:
        """Before ``bind``."""
        socket.zap_domain = domain.encode()
        socket.curve_secretkey = self.own.secret
        socket.curve_publickey = self.own.public
        socket.curve_server = True

    def receiver(
        self, socket: zmq.Socket[Any], refuse: Callable[[bytes, list[bytes]], None]
    ) -> Callable[[], list[bytes]]:
        """As :func:`zmqbroker.sockets.receiver`, but a conversation that its key has no role for is refused here."""
        recv: Callable[..., Any] = super(zmq.Socket, socket).recv

        def receive() -> list[bytes]:
            while True:
                frame = recv(_NOBLOCK, False)
                frames = [frame.bytes]
                while frame.more:
                    frame = recv(_NOBLOCK, False)
                    frames.append(frame.bytes)
                if len(frames) < 2 or len(frames[1]) < HEADER_BYTES:
                    return frames
                needed = _NEEDS.get(frames[1][4])
                if needed is None or needed in self.allow.roles(_user(frame)):
                    return frames
                self.denied += 1
                header = protocol.HEADER.unpack_from(frames[1])
                answer = protocol.pack(Type.ERROR, header[5], e=Code.DENIED)
                refuse(frames[0], [answer, f"this key has no role {needed}: see the broker's allow-list".encode()])

        return receive


def _user(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except (zmq.ZMQError, UnicodeDecodeError):
        return ""


class _Provider:
    """pyzmq's interface for deciding about a key."""

    def __init__(self, keys: ServerKeys, roles: frozenset[str]) -> None:
        self._keys = keys
        self._roles = roles

    def callback(self, domain: str, key: bytes) -> bool:
        allowed = bool(self._keys.allow.roles(key.decode()) & self._roles)
        self._keys.refused += not allowed
        return allowed
