"""Routes that clients of other services ask for, and the one here that does the same, or that none does."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CHAT, _TEXT = "POST /v1/chat/completions", "POST /v1/completions"
_INSTEAD = {
    r"(/v1)?/responses(/.*)?|(/v1)?/messages(/.*)?|/api/chat|/chat|/v1/(threads|assistants|conversations)(/.*)?": _CHAT,
    r"/generate|/generate_stream|/completion|/infill|/invocations|/api/generate|/v1/engines/.*/completions|/inference/.*": (
        f"{_TEXT} or {_CHAT}"
    ),
    r"/embedding|/embed|/embed_all|/api/embed|/api/embeddings|/v1/engines/.*/embeddings": "POST /v1/embeddings",
    r"/predict": "POST /v1/classify",
    r"/models|/info|/v1/info|/get_model_info|/model_info|/props|/api/tags|/api/show|/api/ps|/list_models": "GET /v1/models",
    r"/lora-adapters|/v1/lora_adapters|/lora_adapters|/v1/loras?": "GET /v1/adapters",
    r"/healthz|/livez|/readyz|/ping|/ready|/live|/v1/health|/health/.*|/health_generate": "GET /health",
}
_NOTHING = {
    r"(/v1)?/audio(/.*)?": "speech",
    r"(/v1)?/images(/.*)?|(/v1)?/videos(/.*)?": "pictures",
    r"(/v1)?/moderations": "moderation",
    r"(/v1)?/(files|uploads|batches|vector_stores|containers|evals)(/.*)?": "files and batches",
    r"(/v1)?/fine_tuning(/.*)?": "training: fedlora train does",
    r"(/v\d)?/(rerank|score|pooling)": "ranking",
    r"(/v1)?/realtime(/.*)?": "sound as it comes",
    r"(/v1)?/(tokenize|detokenize|apply-template)": "cutting into tokens: prompts may be lists of token ids",
}


def no_such_route(path: str, routes: Iterable[str]) -> str:
    """What there is instead of a path, where that is known; `routes` are the paths that there are."""
    path = path[:200]
    for pattern, route in _INSTEAD.items():
        if re.fullmatch(pattern, path):
            return f"use {route}"
    for pattern, what in _NOTHING.items():
        if re.fullmatch(pattern, path):
            return f"this service does no {what}; GET /openapi.json lists what it does"
    bare = path.rstrip("/")
    for route in sorted(routes, key=len, reverse=True):  # with something before it, or without its beginning
        if len(route) > 1 and "{" not in route and (bare.endswith(route) or f"/v1{bare}" == route):
            return f"did you mean {route}? A client's base_url ends with /v1"
    return "GET /openapi.json lists those that there are"
