"""Matrices in MATLAB files of version 7 and older (`-v4`, `-v6`, `-v7`).

    matrices = read(content, ("features", "labels"))

SciPy's reader of versions 5 to 7 ends the process on some damaged files (1.17.1), so those are read here, and
it reads version 4 alone. A file is a header of 128 bytes and elements: a type, a size, and so many bytes,
which for a matrix are elements again.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

# Bytes that a compressed element, and numbers that a matrix may have: more than any data set of bags so far.
_MOST_BYTES = 1 << 30
_MOST_NUMBERS = 1 << 28

_HEADER = 128
_SUFFIX = {b"IM": "<", b"MI": ">"}  # at the header's end: the order of bytes
_OF_HDF5 = 2  # the version of files that MATLAB 7.3 writes
_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_SPARSE = 5
_NUMBERS = range(6, 16)  # classes of a dense matrix's content, from double to uint64
_COMPLEX = 0x800


def read(content: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads matrices of numbers, sparse or not, as 2D float64 arrays.

    Args:
      content: of the file.
      names: of the variables that are wanted.

    Returns:
      The arrays by name; a variable that the file lacks is absent.

    Raises:
      NotImplementedError: the file is of version 7.3.
      ValueError: it is damaged, of no version of MATLAB's, too large, or one of `names` is no matrix of
        real numbers.
    """
    if len(content) < 4:
        raise ValueError("it is too short")
    if 0 in content[:4]:
        return _version_4(content, names)
    order = _SUFFIX.get(content[_HEADER - 2 : _HEADER])
    if order is None or len(content) < _HEADER:
        raise ValueError("the header is none of MATLAB's")
    (version,) = struct.unpack(f"{order}H", content[_HEADER - 4 : _HEADER - 2])
    if version >> 8 == _OF_HDF5:
        raise NotImplementedError("version 7.3")
    matrices = {}
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_decompress(data), order), (0, b""))
        if kind != _MATRIX:
            raise ValueError(f"there is an element of type {kind} where a matrix should be")
        name, matrix = _matrix(data, order, names)
        if matrix is not None:
            matrices[name] = matrix
    return matrices


def _version_4(content: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        variables: Mapping[str, Any] = scipy.io.loadmat(
            io.BytesIO(content), variable_names=list(names), spmatrix=False
        )
        return {name: _real(_dense(variables[name]), name) for name in names if name in variables}
    except Exception as error:  # SciPy's reader fails in many ways on a damaged file
        raise ValueError(str(error) or type(error).__name__) from error


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields the types and contents of the elements in `data`."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # of at most four bytes, which stand where the size would
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError(f"a short element has {size} bytes")
            start, after = at + 4, at + 8
        else:
            start = at + 8
            after = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes ends after the file")
        yield kind, data[start : start + size]
        at = after


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"a compressed element is damaged: {error}") from error
    if stream.unconsumed_tail:
        raise ValueError(f"a compressed element has more than {_MOST_BYTES >> 20} MiB")
    if not stream.eof:
        raise ValueError("a compressed element ends too early")
    return content


def _matrix(data: bytes, order: str, names: Sequence[str]) -> tuple[str, np.ndarray | None]:
    """Reads a matrix's name and content.

    Of a matrix that `names` lacks no content is read.
    """
    parts = _elements(data, order)
    try:
        flags, shape = [_array(next(parts), order) for _ in range(2)]
        name = next(parts)[1].decode("latin-1")
        if name not in names:
            return name, None
        kind = int(flags[0]) & 0xFF
        if kind != _SPARSE and kind not in _NUMBERS or int(flags[0]) & _COMPLEX:
            raise ValueError(f"{name!r} is no matrix of real numbers")
        if len(shape) != 2 or min(shape) < 0 or int(shape[0]) * int(shape[1]) > _MOST_NUMBERS:
            raise ValueError(f"{name!r} has the shape {tuple(map(int, shape))}")
        rows, columns = map(int, shape)
        if kind == _SPARSE:
            indices, starts, values = [_array(next(parts), order) for _ in range(3)]
            return name, _fill_sparse(name, (rows, columns), indices, starts, values)
        values = _array(next(parts), order)
    except (StopIteration, IndexError):
        raise ValueError("a matrix lacks a part") from None
    if values.size != rows * columns:
        raise ValueError(
            f"{name!r} has {values.size} numbers for {rows} rows and {columns} columns"
        )
    return name, values.reshape((rows, columns), order="F").astype(np.float64)


def _array(element: tuple[int, bytes], order: str) -> np.ndarray:
    kind, data = element
    if kind not in _DTYPES:
        raise ValueError(f"numbers are of the type {kind}, which does not exist")
    return np.frombuffer(data, np.dtype(order + _DTYPES[kind]))


def _fill_sparse(
    name: str, shape: tuple[int, int], indices: np.ndarray, starts: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Makes a dense matrix of a sparse one.

    Column c has `values[starts[c]:starts[c + 1]]` in the rows `indices[...]`.
    """
    starts = starts.astype(np.int64)
    fits = len(starts) == shape[1] + 1 and starts[0] == 0 and (np.diff(starts) >= 0).all()
    # There may be room for more than is used.
    if not fits or starts[-1] > min(len(indices), len(values)):
        raise ValueError(f"the columns of {name!r} do not fit")
    size = int(starts[-1])
    rows = indices[:size].astype(np.int64)
    if size and not 0 <= rows.min() <= rows.max() < shape[0]:
        raise ValueError(f"{name!r} has an entry outside of it")
    matrix = np.zeros(shape)
    columns = np.repeat(np.arange(shape[1]), np.diff(starts))
    np.add.at(matrix, (rows, columns), values[:size])
    return matrix


def _dense(values: Any) -> np.ndarray:
    if not scipy.sparse.issparse(values):
        return np.asarray(values)
    if int(values.shape[0]) * int(values.shape[1]) > _MOST_NUMBERS:
        raise ValueError(f"a matrix has the shape {values.shape}")
    return values.toarray()


def _real(values: np.ndarray, name: str) -> np.ndarray:
    if np.iscomplexobj(values):
        raise ValueError(f"{name!r} is no matrix of real numbers")
    return values.astype(np.float64)
