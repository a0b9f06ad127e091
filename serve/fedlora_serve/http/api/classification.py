"""POST /v1/classify: the labels of texts; /classify is the same, as vLLM names it."""

from __future__ import annotations

import time
import uuid

import numpy as np
from fastapi import Request, Response
from fedlora.counted import counted
from numpy.typing import NDArray

from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.classification import Classifier
from fedlora_serve.http.api.encoded_texts import AT_ONCE, Compute, Rows, computed, done, tokens_of_texts
from fedlora_serve.http.api.guarded_route import counted_router, described
from fedlora_serve.http.protocol.classification import Classification, ClassificationBody, Classifications
from fedlora_serve.http.protocol.envelope import EmbeddingUsage
from fedlora_serve.http.protocol.errors import ApiError
from fedlora_serve.http.protocol.written import written
from fedlora_serve.http.service.served_model import served_model
from fedlora_serve.http.service.state import ServiceState, caller_of, service_of
from fedlora_serve.http.transport.client_connection import while_connected

router = counted_router()


@router.post("/v1/classify", response_model=None, responses=described(Classifications))
@router.post("/classify", response_model=None, responses=described(Classifications))
async def create_classification(body: ClassificationBody, request: Request) -> Response:
    """The label of each text, and the probabilities of all labels."""
    state, caller, began = service_of(request), caller_of(request), time.perf_counter()
    async with served_model(state, caller, body.model, body.adapters or ()) as model:
        classifier = _classifier(state)
        rows = await tokens_of_texts(state, caller, classifier, body.input)
        tokens = sum(map(len, rows))
        caller.take(tokens)
        state.metrics.request_started(model.label)
        compute = _bounded(classifier, len(rows), state.limits.max_logprobs)
        probabilities = await while_connected(
            request.receive, computed(state, caller, classifier, compute, model, rows)
        )
    state.metrics.embedded(model.label, time.perf_counter() - began, tokens)
    labels = classifier.labels(probabilities.shape[1])

    def content() -> bytes:
        data = [
            Classification(index=index, label=labels[int(each.argmax())], probs=each.tolist(), num_classes=len(labels))
            for index, each in enumerate(probabilities)
        ]
        return written(
            Classifications(
                id=f"classify-{uuid.uuid4().hex}", object="list", created=int(time.time()), model=model.name,
                labels=list(labels), data=data, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
            )
        )  # fmt: skip

    answer = await done(state, caller, content, at_once=probabilities.size <= AT_ONCE)
    return Response(answer, media_type="application/json", headers=model.headers)


def _bounded(classifier: Classifier, texts: int, most: int) -> Compute:
    """What computes, once it is known that the answer has at most so many numbers: an adapter's head may have any labels.

    Raises ApiError for more.
    """

    def compute(rows: Rows, adapter: LoadedAdapter | None) -> NDArray[np.float64]:
        labels = classifier.label_count(adapter)
        if texts * labels > most and texts > 1:
            raise ApiError(
                400,
                f"input: expected at most {counted(max(1, most // labels), 'text')} in one request of this model, which "
                f"has {labels} labels, got {texts}",
                param="input",
            )
        return classifier.probabilities(rows, adapter)

    return compute


def _classifier(state: ServiceState) -> Classifier:
    if state.classifier is None:
        does = "gives embeddings: use /v1/embeddings" if state.embedder else "generates text: use /v1/completions"
        raise ApiError(
            400,
            f"{state.base_name} has no labels ({state.base.model.model_type} without a classification head); it {does}, or "
            "serve an encoder with a head",
            code="unsupported_model",
            param="model",
        )
    return state.classifier
