"""The prompt of a query and a document for rerankers made of language models."""

from __future__ import annotations

import json
from pathlib import Path

from ember.front.text.score_template import render_pair, score_template
from ember.front.text.sentence_files import PairForm, read_sentence_files
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


def test_pairs_are_messages_as_the_files_say(tmp_path: Path) -> None:
    """The instruction is the first message, and the answer begins only where the files or the request ask for it, as in
    sentence-transformers."""
    source = (
        "{% for message in messages %}{{ message.role }}={{ message.content if message.content is string "
        "else message.content[0].text ~ '!' }};{% endfor %}{% if add_generation_prompt %}go{% endif %}"
    )
    template = ChatTemplate(f"{source}{{# 'system' #}}", {})
    assert render_pair(template, "a", "b", "c", {}) == "query=a;document=b;system=c;go"
    assert render_pair(template, "a", "b", "c", {}, PairForm()) == "system=c;query=a;document=b;"
    saved = PairForm(is_structured=True, variables={"add_generation_prompt": True})
    assert render_pair(template, "a", "b", None, {}, saved) == "query=a!;document=b!;go"
    assert render_pair(template, "a", "b", None, {"add_generation_prompt": False}, saved) == "query=a!;document=b!;"

    def form(**text: object) -> PairForm | None:
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps(text))
        return read_sentence_files(tmp_path).pairs

    assert form(max_seq_length=9) is form(modality_config={"text": {}}) is form(modality_config={"message": 1}) is None
    kwargs = {"chat_template": {"add_generation_prompt": True}}
    assert form(modality_config={"message": {"format": "structured"}}, processing_kwargs=kwargs) == saved
    assert form(modality_config={"message": {"format": "flat"}}, processing_kwargs=None) == PairForm()
