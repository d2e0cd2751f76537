"""Named arrays as bytes on a stream: a small validated header, then the arrays' own memory. Nothing is unpickled or evaluated.

A frame is a prefix of 16 bytes (magic, header length, payload length), a header in MessagePack, and the arrays one after the
other, C-contiguous and little-endian. Reading is sans-io: ``FrameReader`` provides the buffer for the next bytes, which for
most of a large array is the array itself. It knows nothing of sockets.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import Malformed

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""Named arrays of booleans, integers or floats; any shape, any layout in memory."""

Buffer: TypeAlias = bytes | memoryview

DType = Literal["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
Kind = Literal["call", "share", "stop", "joined", "ready", "answer", "failed"]

MAX_BYTES = 1 << 30
"""The default for the largest payload of one frame, bytes."""
AT_ONCE = 256 * 1024
"""Bytes that an event loop reads or writes at a time: about 0.1 ms, so that other tasks run in between."""

_DTYPES: frozenset[str] = frozenset(DType.__args__)  # type: ignore[attr-defined] # typing.get_args loses the type
_PREFIX = struct.Struct("<4sIQ")
_MAGIC = b"BLK1"
_SCRATCH = 64 * 1024
_MAX_HEADER = _SCRATCH - _PREFIX.size
_MAX_ARRAYS = 64
_MAX_NAME = 200
_MAX_DIMENSIONS = 8
_MAX_TEXT = (
    8_000  # characters of a failure's message, and of its traceback: a header has room for them with four bytes each
)

_ShortText = Annotated[str, msgspec.Meta(max_length=_MAX_NAME)]
_LongText = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Layout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Describes one array of a frame. Layouts are in the order of the arrays' bytes."""

    name: _ShortText
    dtype: DType
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=_MAX_DIMENSIONS)]


class Failure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An exception as text."""

    type: _ShortText
    message: _LongText
    traceback: _LongText

    @classmethod
    def of(cls, type_: str, message: str, traceback: str) -> Failure:
        """Truncated to what fits in a header; of a traceback the end is kept."""
        printable = [text.encode("utf-8", "replace").decode() for text in (type_, message, traceback)]
        return cls(printable[0][:_MAX_NAME], printable[1][:_MAX_TEXT], printable[2][-_MAX_TEXT:])


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Describes a frame. ``name`` is the method or the key; in a ``joined`` frame it is the host, and ``ticket`` the pid."""

    kind: Kind
    ticket: _Count = 0
    name: _ShortText = ""
    arrays: Annotated[tuple[Layout, ...], msgspec.Meta(max_length=_MAX_ARRAYS)] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame. The receiver owns the arrays."""

    header: Header
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Message:
    """One frame to send: its buffers, which share memory with contiguous arrays, and their total size in bytes."""

    buffers: tuple[Buffer, ...]
    size: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def encode(
    kind: Kind,
    *,
    ticket: int = 0,
    name: str = "",
    arrays: Arrays | None = None,
    failure: Failure | None = None,
    max_bytes: int = MAX_BYTES,
) -> Message:
    """Encode a frame. Raises ``TypeError`` or ``ValueError``, which names the array, for what cannot be sent: a caller's bug."""
    layouts: list[Layout] = []
    buffers: list[Buffer] = []
    size = 0
    if len(name) > _MAX_NAME:
        raise ValueError(f"{kind}: expected a name of at most {_MAX_NAME} characters, got {len(name)}")
    if arrays is not None and len(arrays) > _MAX_ARRAYS:
        raise ValueError(f"{kind} {name!r}: expected at most {_MAX_ARRAYS} arrays, got {len(arrays)}")
    for key, array in (arrays or {}).items():
        flat = _contiguous(f"{kind} {name!r}: array {key!r}", key, array)
        layouts.append(Layout(key, flat.dtype.str, array.shape))  # type: ignore[arg-type] # _contiguous checks it
        if flat.nbytes:
            buffers.append(flat.view(np.uint8).data)
            size += flat.nbytes
    if size > max_bytes:
        raise ValueError(f"{kind} {name!r}: expected arrays of at most {max_bytes} bytes in total, got {size}")
    header = _encoder.encode(Header(kind, ticket, name, tuple(layouts), failure))
    if len(header) > _MAX_HEADER:
        raise ValueError(f"{kind} {name!r}: expected names that fit in {_MAX_HEADER} bytes, got {len(header)}")
    head = _PREFIX.pack(_MAGIC, len(header), size) + header
    return Message((head, *buffers), len(head) + size)


def _contiguous(what: str, key: str, array: object) -> NDArray[Any]:
    if len(key) > _MAX_NAME:
        raise ValueError(f"{what}: expected a name of at most {_MAX_NAME} characters")
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what}: expected a numpy array, got {type(array).__name__}")
    if array.dtype.str not in _DTYPES:
        raise TypeError(f"{what}: expected little-endian booleans, integers or floats, got dtype {array.dtype}")
    if array.ndim > _MAX_DIMENSIONS:
        raise ValueError(f"{what}: expected at most {_MAX_DIMENSIONS} dimensions, got {array.ndim}")
    return np.asarray(array, order="C").reshape(-1)


class FrameReader:
    """Decodes frames from a stream. Small frames pass through a scratch buffer; most of a large frame does not.

    ``max_bytes`` bounds a frame's payload. Its memory is allocated only after the whole header has been validated.
    ``at_once`` bounds the size of ``buffer`` while a payload is received.
    """

    __slots__ = ("_at_once", "_filled", "_max_bytes", "_partial", "_view")

    def __init__(self, *, max_bytes: int = MAX_BYTES, at_once: int = AT_ONCE) -> None:
        self._max_bytes = max_bytes
        self._at_once = at_once
        self._view = memoryview(bytearray(_SCRATCH))
        self._filled = 0
        self._partial: _Partial | None = None

    @property
    def inside_frame(self) -> bool:
        """Whether a frame has been received in part."""
        return self._partial is not None or self._filled > 0

    def buffer(self) -> memoryview:
        """Where to write the next bytes; never empty."""
        if self._partial is not None:
            return self._partial.buffer(self._at_once)
        return self._view[self._filled :]

    def received(self, count: int) -> list[Frame]:
        """``count`` bytes were written to ``buffer``. Returns the frames that are complete now. Raises ``Malformed``."""
        if (partial := self._partial) is not None:
            partial.received(count)
            if not partial.complete:
                return []
            self._partial = None
            return [partial.frame()]
        self._filled += count
        frames: list[Frame] = []
        at = 0
        while (started := self._start_frame(at)) is not None:
            partial, at = started
            at += partial.fill(self._view[at : self._filled])
            if not partial.complete:
                self._partial = partial
                break
            frames.append(partial.frame())
        rest = self._filled - at
        if at and rest:
            self._view[:rest] = bytes(self._view[at : self._filled])
        self._filled = rest
        return frames

    def _start_frame(self, at: int) -> tuple[_Partial, int] | None:
        """The frame whose prefix is at ``at``, and where its payload begins; ``None`` if its header is incomplete."""
        available = self._filled - at
        if bytes(self._view[at : at + min(available, len(_MAGIC))]) != _MAGIC[:available]:
            raise Malformed(f"expected a frame, got bytes that begin with {bytes(self._view[at : at + 4])!r}")
        if available < _PREFIX.size:
            return None
        _, header_bytes, payload_bytes = _PREFIX.unpack_from(self._view, at)
        if header_bytes > _MAX_HEADER:
            raise Malformed(f"expected a header of at most {_MAX_HEADER} bytes, got {header_bytes}")
        if payload_bytes > self._max_bytes:
            raise Malformed(f"expected a payload of at most {self._max_bytes} bytes, got {payload_bytes}")
        payload_at = at + _PREFIX.size + header_bytes
        if payload_at > self._filled:
            return None
        try:
            header = _decoder.decode(self._view[at + _PREFIX.size : payload_at])
        except msgspec.MsgspecError as error:  # a validation or a decoding error
            raise Malformed(f"a header is invalid: {error}") from error
        except UnicodeDecodeError as error:
            raise Malformed("a header has text that is not UTF-8") from error
        return _Partial(header, payload_bytes), payload_at


class _Partial:
    """A frame whose header is known and whose arrays are being received."""

    __slots__ = ("_arrays", "_current", "_header", "_remaining")

    def __init__(self, header: Header, payload_bytes: int) -> None:
        names = {layout.name for layout in header.arrays}
        if len(names) != len(header.arrays):
            raise Malformed(f"{header.kind} {header.name!r}: expected arrays with different names")
        stated = sum(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize for layout in header.arrays)
        if stated != payload_bytes:
            raise Malformed(
                f"{header.kind} {header.name!r}: expected a payload of {stated} bytes according to the shapes, got {payload_bytes}"
            )
        self._header = header
        try:
            self._arrays = {layout.name: np.empty(layout.shape, layout.dtype) for layout in header.arrays}
        except ValueError as error:  # an empty array whose other dimensions are too large for numpy
            raise Malformed(f"{header.kind} {header.name!r}: an impossible shape: {error}") from error
        views = [array.reshape(-1).view(np.uint8).data for array in self._arrays.values() if array.nbytes]
        self._remaining = views[::-1]
        self._current = self._remaining.pop() if views else memoryview(b"")

    @property
    def complete(self) -> bool:
        return not self._current.nbytes and not self._remaining

    def buffer(self, at_once: int) -> memoryview:
        return self._current[:at_once]

    def received(self, count: int) -> None:
        self._current = self._current[count:]
        if not self._current.nbytes and self._remaining:
            self._current = self._remaining.pop()

    def fill(self, source: memoryview) -> int:
        """Copy this frame's bytes from ``source``; returns how many."""
        taken = 0
        while not self.complete and taken < source.nbytes:
            count = min(self._current.nbytes, source.nbytes - taken)
            self._current[:count] = source[taken : taken + count]
            self.received(count)
            taken += count
        return taken

    def frame(self) -> Frame:
        for name, array in self._arrays.items():
            # numpy does not check this; other bytes in a boolean array make its results undefined.
            if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
                raise Malformed(
                    f"{self._header.kind} {self._header.name!r}: array {name!r} has booleans other than 0 and 1"
                )
        return Frame(self._header, self._arrays)
