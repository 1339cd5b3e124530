"""How the values of settings may be written: numbers with a suffix, lists, words for "unset"."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

_WHOLE = re.compile(r"[+-]?[0-9][0-9_]*")
_LEN_SUFFIX = {"k": 1000, "K": 1024, "m": 1_000_000, "M": 1024 * 1024, "g": 1_000_000_000, "G": 1024**3}


def clean(value: Any) -> Any:
    """Strip blanks; 'none' and 'null' mean unset."""
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in ("none", "null", ""):
            return None
    return value


def human_int(value: Any) -> Any:
    """`32k` is 32000, `32K` is 32768, as in vLLM; `auto` and -1 mean: decide for me."""
    value = clean(value)
    if isinstance(value, str):
        if value.lower() == "auto" or value == "-1":
            return None
        if value.isdigit():
            return int(value)
        if value[-1:] in _LEN_SUFFIX:
            try:
                return int(float(value[:-1]) * _LEN_SUFFIX[value[-1]])
            except (ValueError, OverflowError):
                return value
    return None if value == -1 else value


def count(value: Any) -> Any:
    """Raises ValueError for text that is no number in any of these forms."""
    number = human_int(value)
    if isinstance(number, str) and not _WHOLE.fullmatch(number):
        raise ValueError("it must be an integer, also as 32k (32000), 32K (32768) or auto; bytes as 4G")
    return number


def byte_count(value: Any) -> Any:
    number = human_int(value)
    if number is None or (isinstance(number, str) and not _WHOLE.fullmatch(number)):
        raise ValueError("it must be a number of bytes, such as 32M (32 MiB) or 33554432")
    return number


def lower(value: Any) -> Any:
    value = clean(value)
    return value.lower() if isinstance(value, str) else value


def comma_list(value: Any) -> Any:
    value = clean(value)
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


_DTYPES = {"bf16": "bfloat16", "half": "float16", "fp16": "float16", "float": "float32", "fp32": "float32"}


def or_auto(value: Any) -> Any:
    value = lower(value)
    return "auto" if value is None else value


_STREAMED = ("hf", "runai_streamer", "fastsafetensors", "instanttensor")  # vLLM's ways to read the same files


def load_format_name(value: Any) -> Any:
    value = or_auto(value)
    return "auto" if value in _STREAMED else value


def quantization_name(value: Any) -> Any:
    value = lower(value)
    return value.replace("_", "-") if value in ("compressed_tensors", "auto_round") else value


def model_impl_name(value: Any) -> Any:
    """`vllm` is vLLM's name of its own code, in the place of which is Ember's."""
    value = or_auto(value)
    return "ember" if value == "vllm" else value


def convert_name(value: Any) -> Any:
    """`none` is a value of its own here: it forbids a conversion."""
    return value.strip().lower() if isinstance(value, str) and value.strip().lower() == "none" else or_auto(value)


def dtype_name(value: Any) -> Any:
    value = or_auto(value)
    return _DTYPES.get(value, value) if isinstance(value, str) else value


def format_name(value: Any) -> Any:
    """`none` is a value of its own here: it turns the detection off."""
    value = value.strip() if isinstance(value, str) else value
    return None if value in ("", "auto") else value


OptionalStr = Annotated[str | None, BeforeValidator(clean)]
FormatName = Annotated[str | None, BeforeValidator(format_name)]
MAX_INT = 2**63 - 1  # what a message to the engine can carry
DAY_SECONDS = 86_400.0
PositiveInt = Annotated[Annotated[int, Field(ge=1, le=MAX_INT)] | None, BeforeValidator(count)]
NonNegativeInt = Annotated[Annotated[int, Field(ge=0, le=MAX_INT)] | None, BeforeValidator(count)]
CommaList = Annotated[list[str], NoDecode, BeforeValidator(comma_list)]

_KEYS = ("API_KEY", "VLLM_API_KEY", "ADMIN_API_KEY")  # set to blanks they are a mistake that would leave a server open


def is_blank(name: str, value: Any) -> bool:
    """Whether a setting is given as nothing, as forms send what nobody filled in: then it is unset."""
    return isinstance(value, str) and not value.strip() and name.upper() not in _KEYS
