"""What can go wrong in a streamer, named by what went wrong.

::

    SourceError                a source cannot be read at all: exit code 2
    ├── SourceMissing          no such file, not readable, a folder
    ├── HeaderError            the first line lacks what is needed
    ├── MappingError           a --map file that says something impossible
    └── LineTooLong            no line end within LINE_BYTES_MAX
    BadRow                     --strict met a bad row: exit code 2
"""

from __future__ import annotations


class SourceError(Exception):
    """A source cannot be used; the message is one line that names it and what to do."""


class SourceMissing(SourceError):
    """The file is not there, may not be read, or is no file."""


class HeaderError(SourceError):
    """The header line lacks columns that are needed."""


class MappingError(SourceError):
    """The mapping file cannot be used."""


class LineTooLong(SourceError):
    """The file has no line end where one must be: it is no CSV."""


class BadRow(SourceError):
    """A row is bad and ``--strict`` asks to stop at the first."""
