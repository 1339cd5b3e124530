"""Vectors from the engine in the forms of an answer: JSON numbers, base64, and bytes of other number formats.

The engine's values are float32, little-endian. Whole vectors are converted by operations of C: an integer of thousands
of bits holds all values of a vector, and its additions and shifts are made on all of them at once.
"""

from __future__ import annotations

import base64
import math
import struct
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache

import orjson

from ember.front.errors import ApiError
from ember.wire import Pooled

_EXPONENT_AND_MANTISSA = {"fp8_e4m3": (4, 3), "fp8_e5m2": (5, 2)}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
_SIGN_BITS = bytes(48 + (byte < 128) for byte in range(256))  # "1" for the top byte of a value that is not negative


def values_of(pooled: Pooled) -> list[float]:
    """All values, row after row. Raises ApiError 500 if one is no number."""
    values = array("f", pooled.data)
    if sys.byteorder == "big":
        values.byteswap()
    numbers = values.tolist()
    check_finite(sum(numbers))
    return numbers


def check_finite(total: float) -> None:
    """Raises ApiError 500 if a sum of values shows that one is no number, which JSON cannot hold and no client
    expects."""
    if not math.isfinite(total):
        raise ApiError(500, "The model's output holds values that are not finite; a dtype of float32 may help.")


def as_json(pooled: Pooled) -> orjson.Fragment:
    """A list of numbers, or one for each row."""
    numbers = values_of(pooled)
    if len(pooled.shape) == 1:
        return orjson.Fragment(orjson.dumps(numbers))
    width = pooled.shape[-1]
    return orjson.Fragment(orjson.dumps([numbers[start : start + width] for start in range(0, len(numbers), width)]))


def as_bytes(pooled: Pooled, dtype: str, endianness: str) -> bytes:
    """The values in a number format, row after row."""
    encoded = _ENCODERS[dtype](pooled)
    if SIZES[dtype] > 1 and (endianness == "big" or (endianness == "native" and sys.byteorder == "big")):
        swapped = array("I" if SIZES[dtype] == 4 else "H", encoded)
        swapped.byteswap()
        return swapped.tobytes()
    return encoded


def as_base64(pooled: Pooled, dtype: str = "float32", endianness: str = "little") -> str:
    return base64.b64encode(as_bytes(pooled, dtype, endianness)).decode()


def as_bits(pooled: Pooled, *, signed: bool) -> list[int]:
    """One bit for each value, 1 where it is not negative, eight in a number. Signed numbers are 128 lower."""
    values_of(pooled)
    signs = pooled.data[3::4].translate(_SIGN_BITS)
    packed = int(signs, 2).to_bytes(len(signs) // 8, "big")
    return [byte - 128 for byte in packed] if signed else list(packed)


def as_int8(pooled: Pooled, *, signed: bool) -> list[int]:
    """Each value times 127, rounded. Values beyond 1, which no normalised vector has, are clipped. Unsigned numbers are
    128 higher."""
    shift = 0 if signed else 128
    return [round(min(1.0, max(-1.0, value)) * 127) + shift for value in values_of(pooled)]


def _float32(pooled: Pooled) -> bytes:
    values_of(pooled)
    return pooled.data


def _float16(pooled: Pooled) -> bytes:
    """Values beyond the largest number become infinite."""
    numbers = values_of(pooled)
    if max(map(abs, numbers), default=0.0) >= 65520:
        numbers = [value if abs(value) < 65520 else math.copysign(math.inf, value) for value in numbers]
    return struct.pack(f"<{len(numbers)}e", *numbers)


def _bfloat16(pooled: Pooled) -> bytes:
    """The upper half of each value, rounded to nearest, ties to even."""
    values_of(pooled)
    size = len(pooled.data)
    bits = int.from_bytes(pooled.data, "little")
    bits += _repeated(0x7FFF, size) + ((bits >> 16) & _repeated(1, size))
    return _upper_halves(bits, size).tobytes()


def _float8(pooled: Pooled, dtype: str) -> bytes:
    """The upper half of each value, with its last bit set where the lower half is not zero, says how it is rounded: a
    table has the number for each such half."""
    values_of(pooled)
    size = len(pooled.data)
    bits = int.from_bytes(pooled.data, "little")
    lower = bits & _repeated(0xFFFF, size)
    bits |= (lower + _repeated(0xFFFF, size)) & _repeated(0x10000, size)
    return bytes(map(_float8_table(*_EXPONENT_AND_MANTISSA[dtype]).__getitem__, _upper_halves(bits, size)))


def _upper_halves(bits: int, size: int) -> array[int]:
    """The upper 16 of each 32 bits. The array has its numbers in little-endian order of bytes."""
    halves = array("H")
    halves.frombytes(bits.to_bytes(size, "little"))
    return halves[1::2]


def _repeated(value: int, size: int) -> int:
    """An integer of `size` bytes with the value in each 32 bits."""
    return int.from_bytes(value.to_bytes(4, "little") * (size // 4), "little")


@lru_cache(maxsize=2)
def _float8_table(num_exponent_bits: int, num_mantissa_bits: int) -> bytes:
    """The 8-bit number for each upper half of a float32. A value beyond the largest is infinite in e5m2, and the
    largest in e4m3, which has no infinity."""
    bias = 2 ** (num_exponent_bits - 1) - 1
    largest, beyond = (448.0, 0x7E) if num_mantissa_bits == 3 else (57344.0, 0x7C)
    positive = bytearray()
    for half in range(2**15):
        (value,) = struct.unpack("<f", struct.pack("<I", half << 16))
        if not math.isfinite(value):
            positive.append(0x7F)
            continue
        exponent = max(math.frexp(value)[1] - 1, 1 - bias) if value else 1 - bias
        steps = round(math.ldexp(value, num_mantissa_bits - exponent))  # ties to even
        if math.ldexp(steps, exponent - num_mantissa_bits) > largest:
            positive.append(beyond)
            continue
        # A mantissa that was rounded up to the next power of two carries into the exponent.
        positive.append(((exponent + bias - 1) << num_mantissa_bits) + steps)
    return bytes(positive) + bytes(number | 0x80 for number in positive)


_ENCODERS: dict[str, Callable[[Pooled], bytes]] = {
    "float32": _float32,
    "float16": _float16,
    "bfloat16": _bfloat16,
    "fp8_e4m3": lambda pooled: _float8(pooled, "fp8_e4m3"),
    "fp8_e5m2": lambda pooled: _float8(pooled, "fp8_e5m2"),
}
