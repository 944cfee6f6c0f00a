"""Named arrays as a safetensors file: 8 bytes, the length of a JSON header, then array after array.

Written here and not by the library, which joins the arrays in two copies of the whole first; what it would write, to
the byte. Read by the library.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxrnn.errors import ArtefactError

LARGEST_HEADER = 1 << 20  # bytes, about 100 an array: ours have some dozens
KINDS = {"<u8": "U64", "<i8": "I64", "<f8": "F64", "<f4": "F32", "<u4": "U32", "<i4": "I32"}  # in the order of the file
KINDS |= {"<f2": "F16", "<u2": "U16", "<i2": "I16", "|i1": "I8", "|u1": "U8", "|b1": "BOOL"}

Piece = bytes | memoryview  # of a file


def packed(named: Mapping[str, np.ndarray]) -> list[Piece]:
    """The file in pieces, which are the arrays' own memory."""
    order = list(KINDS)
    held = [(name, np.asarray(array, order="C")) for name, array in named.items()]
    held.sort(key=lambda pair: (order.index(pair[1].dtype.str), pair[0]))
    header, end = {}, 0
    for name, array in held:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": KINDS[array.dtype.str], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(array.reshape(-1).view(np.uint8).data for _, array in held)]


def arrays(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """What a safetensors file holds; nothing else is tried."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    size = int.from_bytes(content[:8], "little")
    if size > LARGEST_HEADER:
        raise ArtefactError(f"{path} is not a safetensors file: its header would be {size:,} bytes")
    try:
        named = load(content)
        once = len(json.loads(content[8 : 8 + size], object_pairs_hook=list)) == len(named)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise ArtefactError(f"{path} is not a safetensors file: {error}") from None
    if not once:
        raise ArtefactError(f"{path} is not a safetensors file of ours: a name stands twice, or is no array's")
    return named
