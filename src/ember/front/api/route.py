"""The record of a route: everything that the router, the faces and the pages about routes ask of it.

A route is added by adding its record to the table in `routes.py`. Whatever differs between two families of routes, such
as OpenAI's and Anthropic's, is data here: no face knows a route by its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.framing import Framing
from ember.front.api.openai_forms import OPENAI_EVENTS, openai_error
from ember.front.errors import ApiError
from ember.settings import Settings
from ember.wire import Task

if TYPE_CHECKING:
    from ember.front.api.services import Services
    from ember.front.link.engine import Engine

# A model of `schemas.py` or `answers.py` may be given by its name: the latter are only loaded for /openapi.json.
Model = type[BaseModel] | str
Handler = Callable[["Services", Request], Awaitable[Response | EventStream]]
StatusHandler = Callable[["Engine"], Response]


def loaded_later(module: str, name: str) -> Handler:
    """A handler whose module is imported at its first request, so that it does not delay a boot."""

    async def handler(services: Services, raw_request: Request) -> Response | EventStream:
        answer: Handler = getattr(import_module(module), name)
        return await answer(services, raw_request)

    return handler


@dataclass(frozen=True)
class ErrorForm:
    """The form of a route's errors: from an error to the JSON body of the answer."""

    body: Callable[[ApiError], Any]
    model: Model  # the body's schema
    models: Mapping[int, Model] = field(default_factory=dict)  # the schemas of statuses with another one


OPENAI_ERRORS = ErrorForm(openai_error, "Error", {401: "Unauthorized"})


@dataclass(frozen=True, kw_only=True)
class Description:
    """A route as /openapi.json tells of it. Several models are alternatives."""

    summary: str
    answer: tuple[Model, ...] | str | None  # text: the media type of a body without a model; None: an empty body
    body: tuple[Model, ...] = ()
    chunk: tuple[Model, ...] = ()  # the data of the events of a stream; none where the route does not stream
    errors: tuple[int, ...] = ()  # further statuses of errors
    empty: tuple[int, ...] = ()  # further statuses without a body


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """One path and the methods that the route answers there; another record may answer others on the same path.

    Either `answer` or `status` is given. `status` needs nothing but the engine's handle: it answers at any time, during
    the boot and when the engine is dead, and its request's body is not read.
    """

    path: str  # with its parameters in braces; the last one of a path may hold slashes
    methods: tuple[str, ...]
    about: Description
    answer: Handler | None = None
    status: StatusHandler | None = None
    errors: ErrorForm = OPENAI_ERRORS
    id_header: str | None = None  # the header in which an answer over HTTP has the request's id, whatever the settings
    framing: Framing = OPENAI_EVENTS  # of its streams, and of the error of a queue job that asked for a stream
    tasks: tuple[Task, ...] = ()  # the model must be able to do one of them; none: the route is for every model
    upload_directory: Callable[[Settings], Path | None] | None = None  # the body over HTTP is a form with files
    is_health_check: bool = False  # needs no key, and answers on PORT_HEALTH too
    enabled_by: str | None = None  # the setting without which the route is not there
    is_forbidden_without: bool = False  # its answer without that setting is 403 in place of 404, as vLLM has it
    is_admin: bool = False  # for the operator: over HTTP with ADMIN_API_KEY, and no queue job
    second_path: str | None = None  # the setting that gives the route another path over HTTP
    job_field: str | None = None  # a queue job that names no route and has this field is a request for this one
    identifying_fields: tuple[tuple[str, ...], ...] = ()  # fields that tell a body of /invocations: all of one group

    @property
    def streams(self) -> bool:
        """Whether its answer can be a stream."""
        return bool(self.about.chunk)


_NOTHING = Description(summary="", answer=None)
NO_ROUTE = Route(path="none", methods=(), about=_NOTHING)  # whose forms answer where there is no route
