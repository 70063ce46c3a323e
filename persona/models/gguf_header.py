"""The header of a GGUF file, walked through before a reader that believes it opens the file.

"GGUF", version 2 or 3, count of tensors, count of values
values:  key, type, value (a number, a text, or an array: type, count, elements)
tensors: name, count of dimensions, dimensions, type, offset
"""

import mmap
import struct
from pathlib import Path

from persona.errors import BaseError, Message

MAX_TENSORS, MAX_VALUES, MAX_DIMENSIONS = 100_000, 10_000, 4
MAX_KEY = 65_535  # bytes, by the format's definition
MAX_ELEMENTS = 1_000_000_000  # of a tensor's dimension
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its type
_TEXT, _ARRAY = 8, 9


def check_gguf_header(file: Path) -> None:
    """Raises BaseError where the header is cut short, or claims more than the file holds."""
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise _InvalidHeaderError(Message("it is empty"))
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Header(data).check()
    except _InvalidHeaderError as e:
        raise BaseError(
            "{gguf}: this GGUF cannot be opened: {reason}. Download it again.", gguf=file.name, reason=e.args[0]
        ) from None
    except OSError as e:
        raise BaseError("{gguf}: cannot be read ({reason}).", gguf=file.name, reason=e.strerror or e) from e


class _InvalidHeaderError(Exception):
    pass


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def check(self) -> None:
        if self._data[:4] != b"GGUF":
            raise _InvalidHeaderError(Message("it does not begin with GGUF"))
        self._skip(4)
        version = self._number("<I")
        if version not in (2, 3):
            raise _InvalidHeaderError(Message("its version is {version}, not 2 or 3", version=version))
        tensors, values = self._number("<Q"), self._number("<Q")
        for name, count, limit in ((Message("tensors"), tensors, MAX_TENSORS), (Message("values"), values, MAX_VALUES)):
            if count > limit:
                raise _InvalidHeaderError(
                    Message("its header claims {count:,} {name}, where {limit:,} is the limit",
                            count=count, name=name, limit=limit)
                )  # fmt: skip
        for _ in range(values):
            self._text(MAX_KEY)
            self._value()
        for _ in range(tensors):
            self._tensor()

    def _value(self) -> None:
        kind = self._number("<I")
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            kind, count = self._number("<I"), self._number("<Q")
            if kind == _TEXT:
                self._require(8 * count)
                for _ in range(count):
                    self._text()
            else:
                self._skip(self._size_of(kind) * count)
        else:
            self._skip(self._size_of(kind))

    def _tensor(self) -> None:
        self._text(MAX_KEY)
        count = self._number("<I")
        if count > MAX_DIMENSIONS:
            raise _InvalidHeaderError(
                Message("a tensor of {count:,} dimensions, where {limit} is the limit",
                        count=count, limit=MAX_DIMENSIONS)
            )  # fmt: skip
        for _ in range(count):
            if (size := self._number("<Q")) > MAX_ELEMENTS:
                raise _InvalidHeaderError(
                    Message("a tensor with a dimension of {size:,}, where {limit:,} is the limit",
                            size=size, limit=MAX_ELEMENTS)
                )  # fmt: skip
        self._skip(12)  # type and offset

    def _size_of(self, kind: int) -> int:
        if kind not in _SIZES:
            raise _InvalidHeaderError(Message("its header holds a value of type {kind}, which is none", kind=kind))
        return _SIZES[kind]

    def _text(self, longest: int | None = None) -> None:
        length = self._number("<Q")
        if longest is not None and length > longest:
            raise _InvalidHeaderError(
                Message("its header holds a name of {count:,} bytes, where {limit:,} is the limit",
                        count=length, limit=longest)
            )  # fmt: skip
        self._skip(length)

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        self._require(size)
        value: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += size
        return value

    def _skip(self, size: int) -> None:
        self._require(size)
        self._at += size

    def _require(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise _InvalidHeaderError(
                Message("at byte {at:,} it claims {size:,} bytes more, and only {left:,} are there",
                        at=self._at, size=size, left=len(self._data) - self._at)
            )  # fmt: skip
