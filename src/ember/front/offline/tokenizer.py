"""The model's tokenizer as a program has it, with the names of transformers' methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.offline.checks import check_argument, plain
from ember.front.offline.errors import raise_for
from ember.front.offline.generation import rendered


class OfflineTokenizer:
    """Texts to token ids and back, and conversations to prompts, without the engine."""

    def __init__(
        self, services: Services, wait: Callable[[Any], Any], with_template: Callable[[str], Services]
    ) -> None:
        self._services = services
        self._wait = wait
        self._with_template = with_template
        self.bos_token_id = services.tokenizer.bos_token_id
        self.eos_token_id = services.tokenizer.eos_token_id
        self.pad_token_id = services.tokenizer.pad_token_id
        self.vocab_size = services.tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. Raises TypeError."""
        check_argument("text", text, isinstance(text, str), "a text")
        return self._services.tokenizer.encode(text, add_special_tokens)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids. Raises TypeError, and ValueError for an id outside the vocabulary."""
        ids = plain(token_ids)
        ids = ids if isinstance(ids, list) else [ids]
        for token_id in ids:
            check_argument("each of token_ids", token_id, type(token_id) is int, "a whole number")
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token_ids must be in 0 .. {self.vocab_size - 1}, got {token_id}.")
        return self._services.tokenizer.decode(ids, skip_special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> str | list[int]:
        """A conversation as the chat template writes it: token ids, or the text where `tokenize` is false. `variables`
        are the template's. Raises ValueError."""
        fields = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": variables,
        }
        services = self._services if chat_template is None else self._with_template(chat_template)
        try:
            text: str = self._wait(rendered(services, conversation, fields))
        except ApiError as error:
            raise_for(error, 0, 1, [None])
        return self.encode(text, add_special_tokens=False) if tokenize else text
