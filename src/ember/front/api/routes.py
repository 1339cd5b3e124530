"""The table of routes, and the router over it that both faces use."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from ember.front.api.anthropic.forms import ANTHROPIC_ERRORS, ANTHROPIC_EVENTS, ANTHROPIC_ID_HEADER
from ember.front.api.batch import create_chat_batch
from ember.front.api.batches.routes import BATCH_ROUTES
from ember.front.api.chat import create_chat_completion
from ember.front.api.completions import create_completion
from ember.front.api.dev.routes import DEV_ROUTES
from ember.front.api.exchange import Request, Response
from ember.front.api.invocations import invoker
from ember.front.api.load import load
from ember.front.api.models import get_model, list_models
from ember.front.api.pooling.routes import POOLING_ROUTES
from ember.front.api.responses.forms import RESPONSES_EVENTS
from ember.front.api.route import Description, Handler, Route, loaded_later
from ember.front.api.router import Router
from ember.front.api.scale_out.routes import SCALE_OUT_ROUTES
from ember.front.api.services import Services
from ember.front.api.status import boot, health, ping, version
from ember.front.api.tgi.forms import TGI_ERRORS, TGI_EVENTS
from ember.front.api.tokenize import detokenize, tokenize
from ember.front.api.tokenizer_info import tokenizer_info
from ember.wire import PoolingTask


def _at_once(answer: Callable[[Services], Response]) -> Handler:
    """A handler that looks at the services alone."""

    async def handler(services: Services, raw_request: Request) -> Response:
        return answer(services)

    return handler


async def _get_model(services: Services, raw_request: Request) -> Response:
    return get_model(services, raw_request.parameters["model"])


async def _metrics(services: Services, raw_request: Request) -> Response:
    from ember.front.api.metrics_page import metrics_page  # the library behind it takes 60 ms of the boot

    return await metrics_page(services)


async def _openapi(services: Services, raw_request: Request) -> Response:
    from ember.front.api.openapi import openapi_page  # its models and their schemas are for this page alone

    return await openapi_page(services, ROUTER.routes)


_CHAT = Route(
    path="/v1/chat/completions",
    methods=("POST",),
    answer=create_chat_completion,
    tasks=("generate",),
    job_field="messages",
    identifying_fields=(("messages",),),
    about=Description(
        summary="Answer a conversation",
        body=("ChatRequest",),
        answer=("ChatCompletion",),
        chunk=("ChatCompletionChunk",),
    ),
)
_COMPLETION = Route(
    path="/v1/completions",
    methods=("POST",),
    answer=create_completion,
    tasks=("generate",),
    job_field="prompt",
    identifying_fields=(("prompt",),),
    about=Description(
        summary="Continue a text",
        body=("CompletionRequest",),
        answer=("Completion",),
        chunk=("CompletionChunk",),
    ),
)
_INVOKED = tuple(route for route in (_CHAT, _COMPLETION, *POOLING_ROUTES) if route.identifying_fields)

ROUTES = (
    _CHAT,
    Route(
        path="/v1/chat/completions/batch",
        methods=("POST",),
        answer=create_chat_batch,
        tasks=("generate",),
        about=Description(summary="Answer many conversations", body=("BatchChatRequest",), answer=("ChatBatch",)),
    ),
    _COMPLETION,
    Route(
        path="/v1/responses",
        methods=("POST",),
        answer=loaded_later("ember.front.api.responses.create", "create_response"),
        tasks=("generate",),
        framing=RESPONSES_EVENTS,
        about=Description(
            summary="OpenAI's Responses",
            body=("ResponsesRequest",),
            answer=("ResponseObject",),
            chunk=("ResponseEvent",),
        ),
    ),
    Route(
        path="/v1/responses/input_tokens",
        methods=("POST",),
        answer=loaded_later("ember.front.api.responses.create", "count_input_tokens"),
        tasks=("generate",),
        about=Description(
            summary="The tokens of a response's prompt", body=("InputTokensRequest",), answer=("InputTokens",)
        ),
    ),
    Route(
        path="/v1/responses/{response_id}",
        methods=("GET",),
        answer=loaded_later("ember.front.api.responses.stored", "get_response"),
        tasks=("generate",),
        framing=RESPONSES_EVENTS,
        about=Description(
            summary="A stored response, or its events",
            answer=("ResponseObject",),
            chunk=("ResponseEvent",),
            errors=(404,),
        ),
    ),
    Route(
        path="/v1/responses/{response_id}",
        methods=("DELETE",),
        answer=loaded_later("ember.front.api.responses.stored", "delete_response"),
        tasks=("generate",),
        about=Description(summary="Delete a stored response", answer=("ResponseDeleted",), errors=(404,)),
    ),
    Route(
        path="/v1/responses/{response_id}/cancel",
        methods=("POST",),
        answer=loaded_later("ember.front.api.responses.stored", "cancel_response"),
        tasks=("generate",),
        about=Description(summary="Stop a response in the background", answer=("ResponseObject",), errors=(404,)),
    ),
    Route(
        path="/v1/responses/{response_id}/input_items",
        methods=("GET",),
        answer=loaded_later("ember.front.api.responses.stored", "list_input_items"),
        tasks=("generate",),
        about=Description(summary="The input of a stored response", answer=("InputItems",), errors=(404,)),
    ),
    *SCALE_OUT_ROUTES,
    Route(
        path="/generative_scoring",
        methods=("POST",),
        answer=loaded_later("ember.front.api.generative_scoring", "score_labels"),
        tasks=("generate",),
        about=Description(
            summary="How likely tokens are after a query and an item",
            body=("GenerativeScoringRequest",),
            answer=("LabelScores",),
        ),
    ),
    *BATCH_ROUTES,
    *POOLING_ROUTES,
    Route(
        path="/v1/messages",
        methods=("POST",),
        answer=loaded_later("ember.front.api.anthropic.messages", "create_message"),
        tasks=("generate",),
        errors=ANTHROPIC_ERRORS,
        id_header=ANTHROPIC_ID_HEADER,
        framing=ANTHROPIC_EVENTS,
        about=Description(
            summary="Anthropic's chat",
            body=("MessagesRequest",),
            answer=("AnthropicAnswer",),
            chunk=(
                "MessageStart",
                "Ping",
                "BlockStartEvent",
                "BlockDeltaEvent",
                "BlockStopEvent",
                "MessageDelta",
                "MessageStop",
            ),
        ),
    ),
    Route(
        path="/v1/messages/count_tokens",
        methods=("POST",),
        answer=loaded_later("ember.front.api.anthropic.messages", "count_tokens"),
        tasks=("generate",),
        errors=ANTHROPIC_ERRORS,
        id_header=ANTHROPIC_ID_HEADER,
        about=Description(
            summary="The tokens of Anthropic's chat", body=("CountTokensRequest",), answer=("AnthropicTokens",)
        ),
    ),
    Route(
        path="/invocations",
        methods=("POST",),
        answer=invoker(_INVOKED),
        tasks=(*get_args(PoolingTask), "generate"),
        job_field="input",
        about=Description(
            summary="SageMaker's route: the body says which of the others is meant",
            body=tuple(dict.fromkeys(name for route in _INVOKED for name in route.about.body)),
            answer=tuple(dict.fromkeys(name for route in _INVOKED for name in route.about.answer or ())),
            chunk=(*_CHAT.about.chunk, *_COMPLETION.about.chunk),
        ),
    ),
    Route(
        path="/generate",
        methods=("POST",),
        answer=loaded_later("ember.front.api.tgi.generate", "generate"),
        tasks=("generate",),
        errors=TGI_ERRORS,
        about=Description(summary="TGI: continue a text", body=("TgiRequest",), answer=("TgiAnswer",), errors=(422,)),
    ),
    Route(
        path="/generate_stream",
        methods=("POST",),
        answer=loaded_later("ember.front.api.tgi.generate", "generate_stream"),
        tasks=("generate",),
        errors=TGI_ERRORS,
        framing=TGI_EVENTS,
        about=Description(
            summary="TGI: continue a text, token by token",
            body=("TgiRequest",),
            answer=("TgiAnswer",),
            chunk=("TgiChunk",),
            errors=(422,),
        ),
    ),
    Route(
        path="/",
        methods=("POST",),
        answer=loaded_later("ember.front.api.tgi.generate", "generate_at_root"),
        tasks=("generate",),
        errors=TGI_ERRORS,
        framing=TGI_EVENTS,
        about=Description(
            summary="TGI: the route of huggingface_hub's client",
            body=("TgiRequest",),
            answer=("TgiAnswers",),
            chunk=("TgiChunk",),
            errors=(422,),
        ),
    ),
    Route(
        path="/tokenize",
        methods=("POST",),
        answer=tokenize,
        about=Description(
            summary="Text or a conversation to token ids",
            body=("TokenizeRequest", "TokenizeChatRequest"),
            answer=("Tokens",),
        ),
    ),
    Route(
        path="/detokenize",
        methods=("POST",),
        answer=detokenize,
        about=Description(summary="Token ids to text", body=("DetokenizeRequest",), answer=("Text",)),
    ),
    Route(
        path="/tokenizer_info",
        methods=("GET",),
        answer=tokenizer_info,
        enabled_by="enable_tokenizer_info_endpoint",
        about=Description(summary="The tokenizer's configuration", answer=("TokenizerInfo",)),
    ),
    Route(
        path="/v1/models",
        methods=("GET",),
        answer=_at_once(list_models),
        about=Description(summary="The names the model is served under", answer=("Models",)),
    ),
    Route(
        path="/v1/models/{model}",
        methods=("GET",),
        answer=_get_model,
        about=Description(summary="One of these names", answer=("Model",), errors=(404,)),
    ),
    Route(
        path="/load",
        methods=("GET",),
        answer=_at_once(load),
        about=Description(summary="Requests in flight", answer=("ServerLoad",)),
    ),
    Route(
        path="/boot",
        methods=("GET",),
        answer=_at_once(boot),
        about=Description(summary="The boot timeline", answer=("BootReport",)),
    ),
    Route(
        path="/metrics",
        methods=("GET",),
        answer=_metrics,
        about=Description(summary="Prometheus metrics", answer="text/plain"),
    ),
    Route(
        path="/openapi.json",
        methods=("GET",),
        answer=_openapi,
        about=Description(summary="This page", answer="application/json"),
    ),
    *DEV_ROUTES,
    Route(
        path="/version",
        methods=("GET", "HEAD"),
        status=version,
        about=Description(summary="The version", answer=("Version",)),
    ),
    Route(
        path="/health",
        methods=("GET", "HEAD"),
        status=health,
        is_health_check=True,
        about=Description(summary="Whether requests are answered", answer=None, empty=(503,)),
    ),
    Route(
        path="/ping",
        methods=("GET", "HEAD", "POST"),
        status=ping,
        is_health_check=True,
        second_path="health_check_path",
        about=Description(summary="Whether requests are answered, or will be", answer=None, empty=(204, 503)),
    ),
)
ROUTER = Router(ROUTES)
