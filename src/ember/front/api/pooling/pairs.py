"""From queries and documents to the token ids of pairs for a cross-encoder, or of single texts. Runs in a thread.

A pair has one of three forms: a score template renders it, the tokenizer puts its separators around the two texts, or
the document follows the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from ember.front.api.pooling.schemas import PairRequest
from ember.front.api.pooling.texts import Limits, encoded, requested_limits, text_tokens
from ember.front.api.prompt import check_rows
from ember.front.api.services import Services
from ember.front.errors import bad_request
from ember.front.link.pooling import PoolText
from ember.front.text.layout import Layout, cut, longest_first
from ember.front.text.score_template import render_pair, score_template
from ember.front.text.template import ChatTemplate
from ember.front.text.template_error import TemplateError
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Ready

Query = TypeVar("Query")


@dataclass(frozen=True, slots=True)
class PairLimits:
    """How long a pair and each of its sides may be."""

    whole: Limits
    query_tokens: int | None  # None: no limit
    document_tokens: int | None
    names: tuple[str, str]  # of the two sides in the body
    fits_documents: bool = False  # whether a document is cut further where the pair is longer than the context

    def cut(self, query: list[int], document: list[int], num_special: int) -> tuple[list[int], list[int]]:
        if self.query_tokens is not None:
            query = query[: self.query_tokens]
        if self.document_tokens is not None:
            document = document[: self.document_tokens]
        if self.fits_documents:
            document = document[: self.left(num_special + len(query))]
        return query, document

    def left(self, num_tokens: int) -> int:
        """How many tokens a document may have beside so many others."""
        return max(0, self.whole.info.max_model_len - num_tokens)


def pair_limits(
    request: PairRequest, services: Services, info: Ready, names: tuple[str, str], fits_documents: bool = False
) -> PairLimits:
    """Raises ApiError 400."""
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        value = getattr(request, name)
        if value and value >= info.max_model_len:
            message = f"{name} ({value}) must be less than max_model_len ({info.max_model_len})."
            raise bad_request(message, name)
    whole = requested_limits(request, services.tokenizer, info)
    query_tokens, document_tokens = request.max_tokens_per_query or None, request.max_tokens_per_doc or None
    return PairLimits(whole, query_tokens, document_tokens, names, fits_documents)


def side_texts(
    queries: Sequence[str], documents: Sequence[str], services: Services, limits: PairLimits
) -> list[PoolText]:
    """All queries, then all documents, for a model that embeds each alone. Raises ApiError 400."""
    found = []
    prompt = services.sentences.prompt(None)  # as of texts that are embedded without a name of a prompt
    of_document = limits.document_tokens
    if limits.fits_documents and of_document is not None:
        (of_prompt,) = services.tokenizer.encode_batch([prompt])
        others = services.tokenizer.single_layout.num_special + len(of_prompt)
        of_document = min(of_document, limits.left(others))
    for texts, limit, name in zip((queries, documents), (limits.query_tokens, of_document), limits.names, strict=True):
        cut_texts = _cut_texts(texts, limit, services, limits.whole, name)
        found += text_tokens(cut_texts, services, limits.whole, True, name, prompt)
    return found


def pair_texts(
    queries: Sequence[str],
    documents: Sequence[str],
    request: PairRequest,
    services: Services,
    limits: PairLimits,
) -> list[PoolText]:
    """The pair of each document with its query, or with the only one. Raises ApiError 400."""
    template = score_template(
        services.tokenizer, services.settings.custom_chat_template, limits.whole.info.architecture
    )
    if template is not None:
        return _rendered(queries, documents, template, request, services, limits)
    tokenizer = services.tokenizer
    if request.instruction is not None:
        raise bad_request("instruction needs a score template, which this model does not have.", "instruction")
    # The text before it is guarded is cut on the right, as a pair whose side is too long has no other use.
    sides = [
        encoded(texts, services, limits.whole, name)
        for texts, name in zip((queries, documents), limits.names, strict=True)
    ]
    if has_separator(tokenizer):
        layout = tokenizer.pair_layout
    else:
        single = tokenizer.single_layout
        first, last = single.special[0], single.special[-1]
        layout = Layout((first, (), last), ((0,) * len(first), (), (0,) * len(last)), (0, 0), (0, 1))
    pooling = limits.whole.info.pooling
    with_types = pooling is not None and pooling.has_token_types
    found = []
    for position, (query, document) in enumerate(zip(_for_each(sides[0], sides[1]), sides[1], strict=True)):
        query, document = limits.cut(query, document, layout.num_special)
        query, document = _cut_pair(query, document, layout, limits.whole)
        whole = limits.whole.kept(layout.join(query, document))  # which may cut special tokens, too
        limits.whole.check(whole, limits.names[1], position)
        check_rows(whole, tokenizer, limits.whole.info, limits.names[1])
        types = limits.whole.kept(layout.types(query, document)) if with_types else []
        found.append(PoolText(whole, types if any(types) else []))
    return found


def has_separator(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer separates the texts of a pair, as those of encoders do."""
    between = tokenizer.pair_layout.special[1]
    names = ("sep_token", "eos_token")
    ends = {tokenizer.token_id(token) for name in names if (token := tokenizer.special_tokens.get(name)) is not None}
    return bool(ends.intersection(between))


def _cut_pair(query: list[int], document: list[int], layout: Layout, whole: Limits) -> tuple[list[int], list[int]]:
    """Cut a pair that is too long, its longer text first."""
    if whole.side is None:
        return query, document
    most = max(0, whole.num_kept - layout.num_special)
    num_query, num_document = longest_first((len(query), len(document)), most)
    return cut(query, num_query, whole.side), cut(document, num_document, whole.side)


def _rendered(
    queries: Sequence[str],
    documents: Sequence[str],
    template: ChatTemplate,
    request: PairRequest,
    services: Services,
    limits: PairLimits,
) -> list[PoolText]:
    queries = _cut_texts(queries, limits.query_tokens, services, limits.whole, limits.names[0])
    variables = request.chat_template_kwargs or {}
    form = services.sentences.pairs if services.settings.custom_chat_template is None else None
    instruction = request.instruction
    if instruction is None and "instruction" not in variables:
        instruction = services.sentences.prompt(None) or None  # of the model's files

    def rendered(query: str, document: str) -> str:
        try:
            return render_pair(template, query, document, instruction, variables, form)
        except TypeError:
            message = "chat_template_kwargs has a name that is reserved, such as messages."
            raise bad_request(message, "chat_template_kwargs") from None
        except TemplateError as error:
            raise bad_request(f"The score template failed: {error}", limits.names[1]) from None

    of_document = limits.document_tokens
    if limits.fits_documents and of_document is not None:  # of one query
        (others,) = encoded([rendered(queries[0], "")], services, limits.whole, limits.names[0])
        of_document = min(of_document, limits.left(len(others) + services.tokenizer.single_layout.num_special))
    documents = _cut_texts(documents, of_document, services, limits.whole, limits.names[1])
    of_each = _for_each(queries, documents)
    texts = [rendered(query, document) for query, document in zip(of_each, documents, strict=True)]
    bos = services.tokenizer.special_tokens.get("bos_token")
    has_special = form is not None or (bos is not None and texts[0].startswith(bos))
    found = text_tokens(texts, services, limits.whole, not has_special, limits.names[1])
    if limits.whole.side != "right":
        return found
    layout, most = None if has_special else services.tokenizer.single_layout, limits.whole.num_kept

    @cache
    def end_of(query: str) -> list[int]:
        samples = [rendered(query, document) for document in ("0", "1 2 3 4")]
        tokens = encoded(samples, services, limits.whole, limits.names[1])
        end = _common_end(*(layout.join(each) if layout else each for each in tokens))
        return end[max(0, len(end) - most) :]

    for position, (pair, query) in enumerate(zip(found, of_each, strict=True)):
        if len(pair.token_ids) >= most:  # it was cut
            found[position] = PoolText([*pair.token_ids[: most - len(end_of(query))], *end_of(query)])
    return found


def _for_each(queries: Sequence[Query], documents: Sequence[object]) -> Sequence[Query]:
    """The query of each document, which may be the same for all."""
    return [queries[0]] * len(documents) if len(queries) == 1 else queries


def _common_end(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """What two prompts with different documents end in: the template's tokens behind them, which a reranker's score is
    read from."""
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return list(left[len(left) - count :])


def _cut_texts(
    texts: Sequence[str], num_tokens: int | None, services: Services, whole: Limits, name: str
) -> Sequence[str]:
    """Each text with at most so many tokens, as text again."""
    if num_tokens is None:
        return texts
    tokenizer = services.tokenizer
    return [
        text if len(token_ids) <= num_tokens else tokenizer.decode(token_ids[:num_tokens])
        for text, token_ids in zip(texts, encoded(texts, services, whole, name), strict=True)
    ]
