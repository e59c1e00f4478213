"""How large the rows of a record batch are as Python values, without decoding them.

A value of a dictionary, a run or a view may stand for any number of rows.
"""

from __future__ import annotations

from typing import Any

from captioner.core.extras import needed

_OBJECT = 64
"""Bytes of a Python object, about."""


def row_sizes(batch: Any, arrow: Any) -> Any:
    """Return the decoded bytes of each row: an int if all are equal, else an Int64Array.

    Args:
        batch: A validated record batch.
        arrow: The module pyarrow.

    Raises:
        ArrowInvalid: A row has more than 2^63 bytes.
    """
    return _sum([_sizes(column, arrow) for column in batch.columns])


def _sum(sizes: list[Any]) -> Any:
    compute = needed("pyarrow.compute")
    total: Any = _OBJECT
    for size in sizes:
        if isinstance(size, int) and isinstance(total, int):
            total += size
        else:
            total = compute.add_checked(total, size)
    return total


def _sizes(array: Any, arrow: Any) -> Any:  # noqa: PLR0911 - one return for each kind of type
    kind, types = array.type, arrow.types
    compute = needed("pyarrow.compute")
    if isinstance(kind, arrow.BaseExtensionType):
        return _sizes(array.storage, arrow)
    if types.is_dictionary(kind):
        return _taken(_sizes(array.dictionary, arrow), array.indices)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        begin = 4 * array.offset
        lengths = memoryview(array.buffers()[1]).cast("i")[begin : begin + 4 * len(array) : 4]
        return compute.add_checked(arrow.array(list(lengths), arrow.int64()), _OBJECT)
    if types.is_fixed_size_binary(kind):
        return kind.byte_width + _OBJECT
    if (
        types.is_string(kind)
        or types.is_binary(kind)
        or types.is_large_string(kind)
        or types.is_large_binary(kind)
    ):
        lengths = compute.binary_length(array).cast(arrow.int64()).fill_null(0)
        return compute.add_checked(lengths, _OBJECT)
    if types.is_struct(kind):
        return _sum([_sizes(array.field(at), arrow) for at in range(kind.num_fields)])
    if types.is_run_end_encoded(kind):
        of_values = _sizes(array.values, arrow)
        if isinstance(of_values, int):
            return of_values
        runs = arrow.RunEndEncodedArray.from_arrays(array.run_ends, of_values)
        return compute.run_end_decode(runs.slice(array.offset, len(array)))
    if types.is_union(kind):
        return _sum(
            [_most(_sizes(array.field(at), arrow), compute) for at in range(kind.num_fields)]
        )
    if types.is_nested(kind):
        return _of_lists(array, arrow, compute)
    return _OBJECT


def _of_lists(array: Any, arrow: Any, compute: Any) -> Any:
    kind, types = array.type, arrow.types
    if types.is_fixed_size_list(kind):
        return _OBJECT + kind.list_size * _most(_sizes(array.values, arrow), compute)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        begins = array.offsets.cast(arrow.int64())
        ends = compute.add_checked(begins, array.sizes.cast(arrow.int64()))
    else:
        offsets = array.offsets.cast(arrow.int64())
        begins, ends = offsets.slice(0, len(array)), offsets.slice(1)
    if not len(array):
        return _OBJECT
    first = compute.min(begins).as_py()
    last = compute.max(ends).as_py()
    parts = [array.keys, array.items] if types.is_map(kind) else [array.values]
    each = _sum([_sizes(part.slice(first, last - first), arrow) for part in parts])
    if isinstance(each, int):
        lengths = compute.subtract_checked(ends, begins)
        return compute.add_checked(compute.multiply_checked(lengths, each), _OBJECT)
    zero = arrow.array([0], arrow.int64())
    sums = arrow.concat_arrays([zero, compute.cumulative_sum_checked(each)])
    upto, before = (sums.take(compute.subtract(at, first)) for at in (ends, begins))
    return compute.add_checked(compute.subtract_checked(upto, before), _OBJECT)


def _taken(sizes: Any, indices: Any) -> Any:
    return sizes if isinstance(sizes, int) else sizes.take(indices).fill_null(0)


def _most(sizes: Any, compute: Any) -> int:
    most = sizes if isinstance(sizes, int) else compute.max(sizes).as_py()
    return most or 0
