"""Routes of models that look at whole texts: embeddings (OpenAI), score and classify (vLLM), rerank (Jina, Cohere)."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request
from pydantic import AliasChoices, Field
from swift_core.errors import RequestError
from swift_core.protocols import Engine, Message, Sample, TextEngine, Usage

from swift_infer.server.admission import Admission
from swift_infer.server.wire import WireModel

T = TypeVar("T")
Body = TypeVar("Body", bound=WireModel)
Reader = Callable[[Request, type[Any]], Awaitable[Any]]

_TEXTS = 2048
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=_TEXTS)]


class EmbeddingRequest(WireModel):
    """Body of POST /v1/embeddings."""

    model: str = Field(max_length=1024)
    input: Text | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class ScoreRequest(WireModel):
    """Body of POST /v1/score: every text of the second list with the one of the first, or pair by pair."""

    model: str = Field(max_length=1024)
    text_1: Text | Texts = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: Text | Texts = Field(validation_alias=AliasChoices("text_2", "documents"))


class Document(WireModel):
    """A document as an object."""

    text: Text


class RerankRequest(WireModel):
    """Body of POST /v1/rerank."""

    model: str = Field(max_length=1024)
    query: Text
    documents: list[Text | Document] = Field(min_length=1, max_length=_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class ClassifyRequest(WireModel):
    """Body of POST /v1/classify."""

    model: str = Field(max_length=1024)
    input: Text | Texts


def add_text_routes(app: FastAPI, engine: Engine | TextEngine, *, name: str, admission: Admission, read: Reader) -> None:
    """Add the routes to an application.

    Args:
        app: gets them.
        engine: in use; one that answers refuses these requests.
        name: of the model, for the answers.
        admission: one request at a time.
        read: returns the body of a request as a model, the model's name checked.
    """

    async def run(ask: Callable[[TextEngine], T]) -> T:
        if not isinstance(engine, TextEngine):
            raise RequestError("this model answers; it gives no vectors or scores", fix="POST /v1/chat/completions")
        found = engine
        async with admission.turn():
            return await asyncio.to_thread(ask, found)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> dict[str, Any]:
        body: EmbeddingRequest = await read(request, EmbeddingRequest)
        samples = [_sample(text) for text in _listed(body.input)]
        found = await run(lambda texts: texts.embed(samples))
        vectors = [_shortened(vector, body.dimensions) for vector in found.vectors]
        data = [
            {"object": "embedding", "index": index, "embedding": vector if body.encoding_format == "float" else _packed(vector)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": name, "usage": _usage(found.usage)}

    @app.post("/v1/score")
    @app.post("/score")
    async def score(request: Request) -> dict[str, Any]:
        body: ScoreRequest = await read(request, ScoreRequest)
        first, second = _listed(body.text_1), _listed(body.text_2)
        if len(first) not in (1, len(second)):
            raise RequestError(f"{len(first)} texts stand beside {len(second)}", fix="give one text_1, or as many as there are text_2")
        first = first * len(second) if len(first) == 1 else first
        pairs = [(_sample(query), _sample(document)) for query, document in zip(first, second, strict=True)]
        found = await run(lambda texts: texts.score(pairs))
        data = [{"object": "score", "index": index, "score": value} for index, value in enumerate(found.scores)]
        return {**_head("score", name), "object": "list", "data": data, "usage": _usage(found.usage)}

    @app.post("/v1/rerank")
    @app.post("/v2/rerank")
    @app.post("/rerank")
    async def rerank(request: Request) -> dict[str, Any]:
        body: RerankRequest = await read(request, RerankRequest)
        documents = [document if isinstance(document, str) else document.text for document in body.documents]
        pairs = [(_sample(body.query), _sample(document)) for document in documents]
        found = await run(lambda texts: texts.score(pairs))
        order = sorted(range(len(documents)), key=lambda index: -found.scores[index])[: body.top_n]
        # Jina sends documents back unless told otherwise, Cohere's second version never does.
        with_text = body.return_documents if body.return_documents is not None else not request.url.path.startswith("/v2/")
        results = [
            {
                "index": index,
                "relevance_score": found.scores[index],
                **({"document": {"text": documents[index]}} if with_text else {}),
            }
            for index in order
        ]
        return {**_head("rerank", name), "results": results, "usage": _usage(found.usage)}

    @app.post("/v1/classify")
    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        body: ClassifyRequest = await read(request, ClassifyRequest)
        samples = [_sample(text) for text in _listed(body.input)]
        found = await run(lambda texts: texts.classify(samples))
        data = [
            {"index": index, "label": max(range(len(row)), key=row.__getitem__), "probs": row, "num_classes": len(row)}
            for index, row in enumerate(found.scores)
        ]
        return {**_head("classify", name), "object": "list", "data": data, "usage": _usage(found.usage)}


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _sample(text: str) -> Sample:
    return Sample([Message(role="user", content=text)])


def _shortened(vector: list[float], size: int | None) -> list[float]:
    """Return the first numbers of a vector, normalised anew.

    Raises:
        RequestError: when the vector has fewer.
    """
    if size is None:
        return vector
    if size > len(vector):
        raise RequestError(f"dimensions is {size}, and the vectors have {len(vector)} numbers", fix=f"ask for {len(vector)} or fewer")
    part = vector[:size]
    norm = math.sqrt(sum(value * value for value in part)) or 1.0
    return [value / norm for value in part]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(usage: Usage) -> dict[str, int]:
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}


def _head(kind: str, name: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
