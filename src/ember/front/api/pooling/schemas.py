"""The bodies of the routes for embeddings, classification, scores, rerank and pooling.

As in `api/schemas.py`, `null` means the same as leaving a field out, unknown fields are kept, every list has a longest
length, and ranges are checked where a field is read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ember.front.api.schemas import MAX_ITEMS, Int64, Items, Messages, OpenModel, TokenIds
from ember.front.errors import bad_request

MAX_TEXTS = 2**17  # of one request


def _few_texts(field: str) -> BeforeValidator:
    """Refuse too many texts before validation, which takes long with millions of them."""

    def check(given: Any) -> Any:
        if isinstance(given, list) and len(given) > MAX_TEXTS and not isinstance(given[0], int):
            raise bad_request(f"{field} must have at most {MAX_TEXTS} items, got {len(given)}.", field)
        return given

    return BeforeValidator(check)


Texts = Annotated[list[str], Field(max_length=MAX_TEXTS, fail_fast=True)]
ManyTokenIds = Annotated[list[TokenIds], Field(max_length=MAX_TEXTS, fail_fast=True)]


class Part(OpenModel):
    """One part of a text's content. Only text is supported."""

    type: str
    text: str | None = None


class Content(OpenModel):
    """A text as an object: `{"text": ...}`, or its content in parts."""

    text: str | None = None
    content: Items[Part] | None = None


Contents = Annotated[list[str | Content], Field(max_length=MAX_TEXTS, fail_fast=True)]


Conversations = Annotated[list[Messages], Field(max_length=MAX_ITEMS, fail_fast=True)]


def kind_of_input(given: Any) -> str:
    """What `input` has: texts (or token ids), a conversation, or conversations. Faults are reported of what was meant
    alone."""
    if not isinstance(given, list) or not given:
        return "texts"
    first = given[0]
    if isinstance(first, list):
        return "conversations" if first and isinstance(first[0], dict) else "texts"
    return "conversation" if isinstance(first, dict) and "role" in first else "texts"


def _kind_of_messages(given: Any) -> str:
    is_list = isinstance(given, list) and bool(given) and isinstance(given[0], list)
    return "conversations" if is_list else "conversation"


_OneConversation = Annotated[Messages, Tag("conversation")]
_ManyConversations = Annotated[Conversations, Tag("conversations")]
_Texts = Annotated[str | TokenIds | Texts | ManyTokenIds | Contents, Tag("texts")]
Input = Annotated[_Texts | _OneConversation | _ManyConversations, Discriminator(kind_of_input)]
OneOrMoreConversations = Annotated[_OneConversation | _ManyConversations, Discriminator(_kind_of_messages)]


class PoolingRequest(OpenModel):
    """The fields that all bodies share."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[Int64, Field(ge=-1)] | None = None
    truncation_side: Annotated[str, Field(pattern="^(left|right)$")] | None = None
    padding: Literal["do_not_pad"] | None = None
    use_activation: bool | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class InputRequest(PoolingRequest):
    """A body with texts, token ids or conversations. The options of the chat template are those of a chat."""

    input: Annotated[Input | None, _few_texts("input")] = None
    messages: OneOrMoreConversations | None = None
    add_special_tokens: bool | None = None
    prompt_name: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class EncodedRequest(InputRequest):
    """A body that says how vectors are written."""

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] | None = None
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] | None = None
    endianness: Literal["native", "little", "big"] | None = None
    dimensions: Int64 | None = None


class EmbeddingRequest(EncodedRequest):
    """POST /v1/embeddings. The last fields are Jina's."""

    embedding_type: Literal["float", "base64", "binary", "ubinary"] | None = None
    normalized: bool | None = None
    truncate: bool | None = None
    task: str | None = None


class PoolRequest(EncodedRequest):
    """POST /pooling."""

    task: str | None = None


class ClassifyRequest(InputRequest):
    """POST /classify."""

    raw_scores: bool | None = None


class PairRequest(PoolingRequest):
    """What scores and rerank share."""

    max_tokens_per_query: Annotated[Int64, Field(ge=0)] | None = None
    max_tokens_per_doc: Annotated[Int64, Field(ge=0)] | None = None
    raw_scores: bool | None = None
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreRequest(PairRequest):
    """POST /score. The two sides have one of four pairs of names."""

    text_1: Annotated[str | Content | Contents | None, _few_texts("text_1")] = None
    text_2: Annotated[str | Content | Contents | None, _few_texts("text_2")] = None
    queries: Annotated[str | Content | Contents | None, _few_texts("queries")] = None
    documents: Annotated[str | Content | Contents | None, _few_texts("documents")] = None
    items: Annotated[str | Content | Contents | None, _few_texts("items")] = None
    data_1: Annotated[str | Content | Contents | None, _few_texts("data_1")] = None
    data_2: Annotated[str | Content | Contents | None, _few_texts("data_2")] = None


class RerankRequest(PairRequest):
    """POST /rerank, in Jina's and Cohere's forms."""

    query: str | Content
    documents: Annotated[str | Content | Contents, _few_texts("documents")]
    top_n: Annotated[Int64, Field(ge=0)] | None = None
    return_documents: bool | None = None


class CohereInput(OpenModel):
    """One input of POST /v2/embed in parts."""

    content: Items[Part]


class CohereEmbedRequest(OpenModel):
    """POST /v2/embed, and /v1/embed."""

    model: str | None = None
    input_type: str | None = None
    texts: Annotated[Texts | None, _few_texts("texts")] = None
    inputs: Annotated[list[CohereInput] | None, _few_texts("inputs")] = None
    images: Items[Any] | None = None
    embedding_types: Items[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None = None
    output_dimension: Int64 | None = None
    max_tokens: Annotated[Int64, Field(ge=1)] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: str | None = None
