"""Lines of a file, as bytes come: plain or gzip, never the whole file, and never a readable prefix as if it were all.

Damage, a bomb, a byte that does not decode: each ends in a DataError that names the path and the place.
"""

import codecs
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError

BLOCK = 1 << 18  # bytes read, and at most unpacked, at once
SMALL = 1 << 24  # bytes: what unpacks to less is no bomb, however well it was packed
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Limits(NamedTuple):
    """How to decode, and what is too much."""

    encoding: str = "utf-8"
    max_characters: int = 1_000_000  # of a field
    max_ratio: int = 200  # unpacked bytes to packed ones
    max_gigabytes: int = 16  # unpacked, of 2^30 bytes
    skip: bool = False  # rows that cannot be used; bytes that do not decode come as halves of surrogate pairs
    ask: str = "set dataset."  # what to do where a column is not there, before text or label


PLAIN = Limits()


def blocks(path: Path, limits: Limits = PLAIN) -> Iterator[bytes]:
    """The bytes of a file in pieces, unpacked where its name ends in .gz."""
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            first = file.read(BLOCK)
            packed = path.suffix.lower() == ".gz"
            if packed and not first.startswith(b"\x1f\x8b"):
                raise DataError(f"{path}: damaged at byte 0: the name says gzip, the content does not")
            if not packed and first.startswith((b"\x1f\x8b", b"PK\x03\x04")):
                raise DataError(f"{path}: is a packed file: unpack it, or name it .gz if it is gzip")
            pieces = _until_empty(first, file)
            yield from _unpack(path, pieces, limits) if packed else pieces
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise DataError(f"{path}: changed while it was read: run again once it is complete")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _until_empty(first: bytes, file) -> Iterator[bytes]:
    while first:
        yield first
        first = file.read(BLOCK)


def _unpack(path: Path, pieces: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """gzip members one after the other, as gzip files may be; zeros may follow the last one."""
    member, read, made = None, 0, 0
    for piece in pieces:
        while piece:
            if member is None:
                if read and not piece.strip(b"\0"):
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                out = member.decompress(piece, BLOCK)
            except zlib.error as error:
                raise DataError(f"{path}: damaged at byte {read:,} of the packed file or soon after: {error}") from None
            rest = member.unused_data if member.eof else member.unconsumed_tail
            read, made, piece = read + len(piece) - len(rest), made + len(out), rest
            if made > limits.max_gigabytes << 30:
                raise DataError(f"{path}: unpacks to more than dataset.max_gigabytes={limits.max_gigabytes}")
            if made > SMALL and made > limits.max_ratio * read:
                raise DataError(f"{path}: unpacks to more than dataset.max_ratio={limits.max_ratio} times its size")
            if member.eof:
                member = None
            yield out
    if member is not None:
        raise DataError(f"{path}: damaged at byte {read:,} of the packed file: it ends in the middle of the data")


def lines(path: Path, limits: Limits = PLAIN) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line, without its line end and without a byte order mark.

    Lines end at b"\\n" or b"\\r\\n" only. A line that is not in the encoding is a DataError with its byte offset, or
    with `skip` one that `sound` tells.
    """
    longest = 8 * limits.max_characters + (1 << 20)
    source, encoding = blocks(path, limits), limits.encoding
    if "\n".encode(encoding) != b"\n":
        source, encoding = _as_utf8(path, source, encoding), "utf-8"
    number, offset, carry = 0, 0, b""
    for block in _without_mark(path, source):
        *whole, last = block.split(b"\n")
        if whole:
            whole[0] = carry + whole[0]
            carry = b""
        for line in whole:
            number += 1
            yield number, _decode(path, line, encoding, number, offset, limits.skip)
            offset += len(line) + 1
        carry += last
        if len(carry) > longest:
            raise DataError(f"{path}: line {number + 1} has more than {longest:,} bytes; see dataset.max_characters")
    if carry:
        yield number + 1, _decode(path, carry, encoding, number + 1, offset, limits.skip)


def _without_mark(path: Path, source: Iterator[bytes]) -> Iterator[bytes]:
    block = next(source, b"")
    for mark, name in MARKS.items():
        if block.startswith(mark):
            raise DataError(f"{path}: starts with the byte order mark of {name}; set dataset.encoding={name}")
    yield block.removeprefix(codecs.BOM_UTF8)
    yield from source


def sound(text: str) -> bool:
    """False for half of a surrogate pair: bytes that did not decode, or what JSON can write and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(path: Path, line: bytes, encoding: str, number: int, offset: int, skip: bool) -> str:
    line = line.removesuffix(b"\r")
    try:
        return line.decode(encoding)
    except UnicodeError as error:
        if skip:
            return line.decode("utf-8", "surrogateescape")
        place = getattr(error, "start", 0)
        raise DataError(
            f"{path}: line {number}, byte {offset + place:,} of the file ({line[place : place + 1]!r}) is not "
            f"{encoding}; correct it, or set dataset.encoding or dataset.on_bad_row=skip"
        ) from None


def _as_utf8(path: Path, source: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """An encoding whose line ends are not single bytes, such as UTF-16, written as UTF-8."""
    decoder, read = codecs.getincrementaldecoder(encoding)(), 0
    try:
        for block in source:
            yield decoder.decode(block).encode()
            read += len(block)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise DataError(f"{path}: is not {encoding}, at or after byte {read:,}: {error}") from None
