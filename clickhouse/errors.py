"""What can go wrong with the store, and the one table that says what each ClickHouse error code means.

    StoreError                       message, code (0 where the server gave none)
    ├── StoreUnavailable             nothing of this request reached the server: try again later, elsewhere, unchanged
    ├── OutcomeUnknown               it was sent and no answer tells what became of it: look first (R13)
    ├── StoreRefused                 the server answered "no", and nothing was stored
    │     .permanent is True         the data itself is at fault: trying again cannot help, isolate it
    │     .permanent is False        the server's state is at fault (full, busy, misconfigured): wait, then try again
    └── StoreNotReady                reachable, but a setting or the schema is not what the guarantees need

Only codes that blame *the data* are permanent. A missing table, a wrong password or an unknown setting is a
mistake of whoever runs the server: rows must wait for the repair, never be thrown away because of it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Outcome(Enum):
    """What an error code says about the request that met it."""

    TRANSIENT = "transient"
    """Refused whole for a reason that passes (or that an operator repairs); nothing was stored."""
    PERMANENT = "permanent"
    """The data is refused; the same data will be refused again."""
    UNKNOWN = "unknown"
    """It may have been stored: cut short, timed out, or a code that this table does not know."""


_PERMANENT = {
    6: "CANNOT_PARSE_TEXT",
    20: "NUMBER_OF_COLUMNS_DOESNT_MATCH",
    26: "CANNOT_PARSE_QUOTED_STRING",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    32: "ATTEMPT_TO_READ_AFTER_EOF",
    33: "CANNOT_READ_ALL_DATA",
    38: "CANNOT_PARSE_DATE",
    41: "CANNOT_PARSE_DATETIME",
    50: "UNKNOWN_TYPE",
    53: "TYPE_MISMATCH",
    69: "ARGUMENT_OUT_OF_BOUND",
    70: "CANNOT_CONVERT_TYPE",
    72: "CANNOT_PARSE_NUMBER",
    117: "INCORRECT_DATA",
    128: "TOO_LARGE_ARRAY_SIZE",
    131: "TOO_LARGE_STRING_SIZE",
    190: "SIZES_OF_ARRAYS_DONT_MATCH",
    271: "CANNOT_DECOMPRESS",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    469: "VIOLATED_CONSTRAINT",
    517: "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING",
}

_TRANSIENT = {
    # The server's state: it passes by itself.
    3: "UNEXPECTED_END_OF_FILE",  # the embedded server: a body that did not come whole is refused (R12)
    74: "CANNOT_READ_FROM_FILE_DESCRIPTOR",
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    76: "CANNOT_OPEN_FILE",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    225: "NO_ZOOKEEPER",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    252: "TOO_MANY_PARTS",
    285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    373: "SESSION_IS_LOCKED",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    598: "ASYNC_LOAD_WAIT_FAILED",
    # The set-up: it passes when an operator repairs it.
    16: "NO_SUCH_COLUMN_IN_TABLE",
    36: "BAD_ARGUMENTS",
    44: "ILLEGAL_COLUMN",
    46: "UNKNOWN_FUNCTION",
    47: "UNKNOWN_IDENTIFIER",
    48: "NOT_IMPLEMENTED",
    60: "UNKNOWN_TABLE",
    62: "SYNTAX_ERROR",
    73: "UNKNOWN_FORMAT",
    81: "UNKNOWN_DATABASE",
    115: "UNKNOWN_SETTING",
    164: "READONLY",
    192: "UNKNOWN_USER",
    193: "WRONG_PASSWORD",
    194: "REQUIRED_PASSWORD",
    195: "IP_ADDRESS_NOT_ALLOWED",
    392: "QUERY_IS_PROHIBITED",
    452: "SETTING_CONSTRAINT_VIOLATION",
    457: "BAD_QUERY_PARAMETER",
    497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED",
}

_UNKNOWN = {
    159: "TIMEOUT_EXCEEDED",
    160: "TOO_SLOW",
    173: "CANNOT_ALLOCATE_MEMORY",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    236: "ABORTED",
    319: "UNKNOWN_STATUS_OF_INSERT",
    394: "QUERY_WAS_CANCELLED",
    425: "SYSTEM_ERROR",
    735: "QUERY_WAS_CANCELLED_BY_CLIENT",
    999: "KEEPER_EXCEPTION",
    1000: "POCO_EXCEPTION",
    1001: "STD_EXCEPTION",
    1002: "UNKNOWN_EXCEPTION",
}

ERROR_CODES: Final[dict[int, tuple[str, Outcome]]] = (
    {code: (name, Outcome.PERMANENT) for code, name in _PERMANENT.items()}
    | {code: (name, Outcome.TRANSIENT) for code, name in _TRANSIENT.items()}
    | {code: (name, Outcome.UNKNOWN) for code, name in _UNKNOWN.items()}
)
"""ClickHouse error code -> (its name, what it says about an insert)."""


def outcome_of(code: int) -> Outcome:
    """What the code says; a code that is not in the table says nothing for certain."""
    return ERROR_CODES.get(code, ("", Outcome.UNKNOWN))[1]


class StoreError(Exception):
    """Anything that went wrong with the store."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StoreUnavailable(StoreError):
    """Nothing of this request reached the server. The connection is of no further use: open another."""


class OutcomeUnknown(StoreError):
    """The request was sent and its outcome is not known. The connection is of no further use."""


class StoreRefused(StoreError):
    """The server refused the request; nothing of it was stored. The connection goes on."""

    def __init__(self, message: str, code: int, permanent: bool) -> None:
        super().__init__(message, code)
        self.permanent = permanent


class StoreNotReady(StoreError):
    """The server is there, but its settings or schema are not what the guarantees need; the message says what to do."""


def from_code(message: str, code: int) -> StoreError:
    """The exception for an error that the server reported."""
    outcome = outcome_of(code)
    if outcome is Outcome.UNKNOWN:
        return OutcomeUnknown(message, code)
    return StoreRefused(message, code, permanent=outcome is Outcome.PERMANENT)
