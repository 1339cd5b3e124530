"""The body of POST /generate and /generate_stream."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ember.front.api.schemas import Int64, Items, OpenModel


class TgiParameters(OpenModel):
    """The options of a request."""

    adapter_id: str | None = None
    best_of: Int64 | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: dict[str, Any] | None = None
    max_new_tokens: Int64 | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: Int64 | None = None
    stop: Items[str] | None = None
    temperature: float | None = None
    top_k: Int64 | None = None
    top_n_tokens: Int64 | None = None
    top_p: float | None = None
    truncate: Annotated[Int64, Field(ge=1)] | None = None
    typical_p: float | None = None
    watermark: bool | None = None


class TgiRequest(OpenModel):
    """POST /generate, /generate_stream and /."""

    model: str | None = None
    inputs: str
    parameters: TgiParameters | None = None
    stream: bool | None = None
