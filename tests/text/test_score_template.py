"""The prompt of a query and a document for rerankers made of language models."""

from __future__ import annotations

from ember.front.text.score_template import score_template
from tests.support.byte_tokenizer import byte_tokenizer


def test_the_prompt_of_qwen3_reranker_ends_where_the_answer_begins() -> None:
    """The last token decides the score: Jinja drops the last line break of a template's text."""
    tokenizer = byte_tokenizer(("<|im_start|>",))
    template = score_template(tokenizer, None, "Qwen3ForSequenceClassification")
    assert template is not None
    messages = [{"role": "query", "content": "what?"}, {"role": "document", "content": "that"}]
    text = template.render(messages, instruction="Judge.")
    assert "<Instruct>: Judge.\n<Query>: what?\n<Document>: that<|im_end|>\n" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
