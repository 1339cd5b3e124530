"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import hashlib
from typing import Any

from ember.front.api.exchange import Response
from ember.front.api.services import Services


def list_models(services: Services) -> Response:
    """List the names under which the model is served."""
    return Response(
        200, {"object": "list", "data": [_model(services, name) for name in services.settings.served_names]}
    )


def get_model(services: Services, name: str) -> Response:
    """`name` is percent-decoded. Raises ApiError 404."""
    services.check_model(name)
    return Response(200, _model(services, name))


def _model(services: Services, name: str) -> dict[str, Any]:
    engine = services.engine
    return {
        "id": name,
        "object": "model",
        "created": services.created,
        "owned_by": "ember",
        "root": services.settings.model_name or services.model_dir,
        "parent": None,
        "tasks": list(engine.info.tasks) if engine.is_ready else None,
        "max_model_len": engine.info.max_model_len if engine.is_ready else services.settings.max_model_len,
        "permission": [
            {
                "id": f"modelperm-{hashlib.sha256(name.encode()).hexdigest()[:32]}",
                "object": "model_permission",
                "created": services.created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
