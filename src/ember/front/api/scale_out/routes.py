"""The records of these routes. Their modules are imported at the first request, so that no boot waits for them."""

from __future__ import annotations

from ember.front.api.route import Description, Route, loaded_later

_ROOM = "ember.front.api.scale_out"
_GATE = "enable_scale_out"


def _route(path: str, handler: str, about: Description) -> Route:
    module, name = handler.split(".")
    return Route(
        path=path,
        methods=("POST",),
        answer=loaded_later(f"{_ROOM}.{module}", name),
        tasks=("generate",),
        enabled_by=_GATE,
        is_forbidden_without=True,
        about=about,
    )


SCALE_OUT_ROUTES = (
    _route(
        "/v1/chat/completions/render",
        "render.render_chat",
        Description(summary="The token ids of a chat", body=("ChatRequest",), answer=("Rendered",), errors=(403,)),
    ),
    _route(
        "/v1/completions/render",
        "render.render_completion",
        Description(
            summary="The token ids of a completion, a list with one entry for each prompt",
            body=("CompletionRequest",),
            answer=("RenderedList",),
            errors=(403,),
        ),
    ),
    _route(
        "/v1/messages/render",
        "render.render_message",
        Description(
            summary="The token ids of Anthropic's chat", body=("MessagesRequest",), answer=("Rendered",), errors=(403,)
        ),
    ),
    _route(
        "/v1/responses/render",
        "render.render_response",
        Description(
            summary="The token ids of a response", body=("ResponsesRequest",), answer=("Rendered",), errors=(403,)
        ),
    ),
    _route(
        "/inference/v1/generate",
        "generate.generate_tokens",
        Description(
            summary="Continue token ids",
            body=("TokensRequest",),
            answer=("TokensAnswer",),
            chunk=("TokensChunk",),
            errors=(403,),
        ),
    ),
    _route(
        "/v1/chat/completions/derender",
        "derender.derender_chat",
        Description(
            summary="The answer of a chat from its token ids",
            body=("DerenderChatRequest", "DerenderChatChunkRequest"),
            answer=("ChatCompletion", "DerenderedChatChunk"),
            errors=(403,),
        ),
    ),
    _route(
        "/v1/completions/derender",
        "derender.derender_completion",
        Description(
            summary="The answer of a completion from its token ids",
            body=("DerenderCompletionRequest", "DerenderCompletionChunkRequest"),
            answer=("Completion", "DerenderedCompletionChunk"),
            errors=(403,),
        ),
    ),
)
