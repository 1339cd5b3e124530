"""The prompt of a query and a document for rerankers made of language models."""

from __future__ import annotations

from ember.front.text.score_template import render_pair, score_template
from ember.front.text.template import ChatTemplate
from tests.support.byte_tokenizer import byte_tokenizer


def test_the_prompt_of_qwen3_reranker_ends_where_the_answer_begins() -> None:
    """The last token decides the score: Jinja drops the last line break of a template's text."""
    tokenizer = byte_tokenizer(("<|im_start|>",))
    template = score_template(tokenizer, None, "Qwen3ForSequenceClassification")
    assert template is not None
    text = render_pair(template, "what?", "that", "Judge.", {})
    assert "<Instruct>: Judge.\n<Query>: what?\n<Document>: that<|im_end|>\n" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_an_instruction_may_be_a_message_of_its_own() -> None:
    """As in the templates of sentence-transformers and of vLLM's examples."""
    picked = "(messages | selectattr('role', 'eq', '{}') | map(attribute='content') | first | default('none'))"
    source = "|".join(f"{{{{ {picked.format(role)} }}}}" for role in ("system", "query", "document"))
    template = ChatTemplate(source, {})
    assert render_pair(template, "a", "b", "Judge.", {}) == "Judge.|a|b"
    assert render_pair(template, "a", "b", None, {}) == "none|a|b"
