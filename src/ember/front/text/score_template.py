"""Score templates: how a reranker made of a language model wants a query and a document in one prompt.

A template is rendered with two messages, whose roles are `query` and `document`. It may read an instruction: as
`instruction`, or as a third message of the role `system`, where it names that. A model's own chat template counts as a
score template only if it names the roles of the pair: most models have that of the chat model they were made from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ember.front.text.sentence_files import PairForm
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer

_ROLES = (re.compile(r"""["']query["']"""), re.compile(r"""["']document["']"""))
_SYSTEM = re.compile(r"""["']system["']""")

# The prompts of models whose repositories have no template for them, by the class of the model and a token that only
# tokenizers of its family have.
_QWEN3 = (
    "{% set instruction = instruction | default('Given a web search query, retrieve relevant passages that answer the "
    "query') %}"
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ instruction }}\n<Query>: {{ messages[0]['content'] }}\n<Document>: {{ messages[1]['content'] }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>{{ '\n\n' }}"  # Jinja drops a template's last line break
)
_KNOWN = (("Qwen3For", "<|im_start|>", _QWEN3),)


def score_template(tokenizer: Tokenizer, custom: str | None, architecture: str) -> ChatTemplate | None:
    """The template of the deployment (CUSTOM_CHAT_TEMPLATE), the model's own, or the one known for its class; None if
    pairs are tokenised as pairs. Raises TemplateError for a custom one that is no template."""
    own = tokenizer.chat_template
    source = own if isinstance(own, str) else None
    return _chosen(source, custom, architecture, tokenizer)


def render_pair(
    template: ChatTemplate,
    query: str,
    document: str,
    instruction: str | None,
    variables: Mapping[str, Any],
    form: PairForm | None = None,
) -> str:
    """The prompt of a pair. `form`: what the model's files say of it.

    Raises TemplateError, and TypeError for a variable of a reserved name.
    """
    saved = {"add_generation_prompt": True} if form is None else {"add_generation_prompt": False, **form.variables}
    variables = {**saved, **variables}
    texts = [("query", query), ("document", document)]
    if instruction is not None:
        variables = {**variables, "instruction": instruction}
        if _SYSTEM.search(template.source):
            # Without a form it is last, as some templates count messages.
            texts.insert(2 if form is None else 0, ("system", instruction))
    is_structured = form is not None and form.is_structured
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if is_structured else text} for role, text in texts
    ]
    return template.render(messages, **variables)


@lru_cache(maxsize=4)
def _chosen(own: str | None, custom: str | None, architecture: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    if custom is not None:
        return ChatTemplate.choose(None, tokenizer.special_tokens, custom)
    if own is not None and all(role.search(own) for role in _ROLES):
        return ChatTemplate(own, tokenizer.special_tokens)
    for prefix, token, source in _KNOWN:
        if architecture.startswith(prefix) and tokenizer.token_id(token) is not None:
            return ChatTemplate(source, tokenizer.special_tokens)
    return None
