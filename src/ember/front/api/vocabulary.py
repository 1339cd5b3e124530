"""Whether the model has the tokens that a request names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ember.front.errors import bad_request
from ember.wire import Ready

MAX_LISTED = 128  # names that one error message lists


def check_token_ids(token_ids: Collection[int], info: Ready, param: str) -> None:
    """Raises ApiError 400, which names those that are wrong, unless the model has all of them."""
    if (problem := out_of_vocabulary(token_ids, info, param)) is not None:
        raise bad_request(problem, param)


def out_of_vocabulary(token_ids: Collection[int], info: Ready, param: str) -> str | None:
    """A message that names the ids that the model does not have; None where it has all of them."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < info.vocab_size):
        return None
    wrong = list(dict.fromkeys(token_id for token_id in token_ids if not 0 <= token_id < info.vocab_size))
    named = listed([str(token_id)[:24] for token_id in wrong])
    return (
        f"token_id(s) [{named}] in {param} contain out-of-vocab token ids. Vocabulary size: {info.vocab_size}. An id "
        f"out of vocabulary cannot be used. (parameter={param}, value=[{named}])"
    )


def listed(names: Sequence[str]) -> str:
    """The names with commas between them, at most `MAX_LISTED`, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join([*names[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])
