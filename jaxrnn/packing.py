"""Named arrays as a safetensors file: 8 bytes, the length of a JSON header, then array after array.

Written here and not by the library, which joins the arrays in two copies of the whole first; what it would write, to
the byte. Read by the library. `flat` names the arrays of a tree, `filled` makes a tree of them again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def flat(tree: Any) -> dict[str, np.ndarray]:
    """A tree of arrays by name: NamedTuple fields by theirs, positions by number, joined with dots."""
    import jax

    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def filled(template: Any, named: Mapping[str, np.ndarray], where: str) -> Any:
    """`template` (shapes) with its leaves from `named`; ArtefactError names a leaf that is missing, extra or other."""
    import jax

    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in leaves]
    strange = sorted(set(named) - set(names))
    if strange:
        raise ArtefactError(f"{where}: array {strange[0]!r} is not part of the network ({', '.join(names)})")
    values = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in named:
            raise ArtefactError(f"{where}: array {name!r} of the network is missing")
        found = named[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ArtefactError(
                f"{where}: array {name!r} is {found.dtype}{list(found.shape)}, expected {leaf.dtype}{list(leaf.shape)}"
            )
        values.append(found)
    return jax.tree_util.tree_unflatten(structure, values)


def _name(path: Any) -> str:
    parts = (next(getattr(key, kind) for kind in ("name", "idx", "key") if hasattr(key, kind)) for key in path)
    return ".".join(map(str, parts))
