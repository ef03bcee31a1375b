"""The application: what is answered at which path, and how a request is read and checked.

Annotations here are objects and not strings: FastAPI reads them.
"""

import asyncio
from dataclasses import asdict
from typing import Any

import anyio
import torch
from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect

from crafter_pl.cloud.answer import NOUNS, SCHEMAS, to_answers
from crafter_pl.cloud.batching import Batcher, ClassifierError, ClientGoneError
from crafter_pl.cloud.classifier import Facts
from crafter_pl.cloud.metrics import Metrics
from crafter_pl.cloud.middleware import AccessMiddleware
from crafter_pl.cloud.wire import Features, Foreign, Refused, claimed_hash, read_features
from crafter_pl.data.pool import MEDIA_TYPE, Pool
from crafter_pl.errors import UserError

BODIES_HELD = 8  # of the greatest size, together, in requests that are being read or wait
READ_SECONDS = 30.0  # that a body may take to arrive
_HOW = "send the file as it is: curl --data-binary @FILE -H 'Content-Type: application/octet-stream'"
_FULL = "too much is waiting: send it again later"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": why}
    for status, why in {
        400: "no HTTP, a body that ends early, or a header twice that may be there once",
        401: "the token is missing or wrong",
        408: "the body took too long to arrive",
        409: "the features are of another encoder or defence",
        413: "the body is too large",
        415: "the body is compressed, or something else than safetensors",
        422: "the body is malformed, or its features are of another shape or type or not finite",
        500: "the classifier has failed",
        503: "too many requests, or the classifier hangs, or the server ends: send it again later",
        504: "no answer in time",
    }.items()
}


def create_app(
    facts: Facts,
    batcher: Batcher,
    metrics: Metrics,
    token: str | None,
    max_body: int,
    pool: Pool | None = None,
) -> FastAPI:
    """The application around a classifier.

    Args:
        facts: of the classifier.
        batcher: classifies.
        metrics: what is counted.
        token: that requests must bear; None: none.
        max_body: bytes of a request.
        pool: of a certified defence, which looks up features that were sent compactly.
    """
    app = FastAPI(
        title="crafter_pl cloud classifier",
        version="1",
        redirect_slashes=False,  # a redirect would name http:// behind a proxy with TLS, token and all
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.add_middleware(AccessMiddleware, token=token, metrics=metrics)
    bearer = [] if token is None else [Security(HTTPBearer(scheme_name="token", auto_error=False))]

    @app.post(
        "/classify",
        summary=f"{NOUNS[facts.kind].capitalize()} of faces, from their protected features",
        response_model=SCHEMAS[facts.kind],
        responses=_REFUSALS,
        openapi_extra=_request_schema(facts, max_body),
        dependencies=bearer,
    )
    async def classify(request: Request) -> Response:
        if batcher.hangs():
            raise HTTPException(503, "the classifier hangs: send it again later", {"Retry-After": "5"})
        body, headers = await read_body(request, max_body, metrics), request.headers
        # Large bodies are checked, and their answers written, beside the event loop.
        large, kind = len(body) >= 1 << 18, headers.get("content-type", "")
        args = (
            facts,
            body,
            headers.get("x-encoder-sha256"),
            headers.get("x-defense-sha256"),
            kind,
            pool,
            max_body,
        )
        read = await asyncio.to_thread(check_body, *args) if large else check_body(*args)
        # Places and int8 stand for more bytes than they have, and wait as what they stand for.
        more = max(read.array.nbytes - len(body), 0)
        if metrics.held + more > BODIES_HELD * max_body:
            raise HTTPException(503, _FULL, {"Retry-After": "1"})
        metrics.held += more
        try:
            rows = await batcher.submit(torch.from_numpy(read.array), request.state.is_gone)
        except asyncio.TimeoutError:
            late = f"no answer within {batcher.timeout:g} s: send it again later"
            raise HTTPException(504, late, {"Retry-After": "5"}) from None
        except ClientGoneError:
            raise HTTPException(499, "the client has hung up") from None
        except ClassifierError:
            raise HTTPException(500, "the classifier has failed") from None
        finally:
            metrics.held -= more
        answers = rows, read.index, facts
        text = await asyncio.to_thread(to_answers, *answers) if large else to_answers(*answers)
        return Response(text, media_type="application/json")

    @app.get("/health", summary="Whether the classifier works", response_class=PlainTextResponse)
    async def health() -> Response:
        return PlainTextResponse("ok") if batcher.ready() else PlainTextResponse("not ready", 503)

    @app.get(
        "/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse, dependencies=bearer
    )
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/info", summary="What the classifier tells of itself", dependencies=bearer)
    async def info() -> dict[str, Any]:
        return {"model": asdict(facts)}

    return app


async def read_body(request: Request, max_body: int, metrics: Metrics) -> bytes:
    """The body, if it is not too large, too slow, compressed or empty.

    Raises:
        HTTPException: it is (413, 408, 415, 422); it ended early (400); too much is waiting (503).
    """
    too_large = HTTPException(413, f"the body is larger than {max_body} bytes: send smaller shards")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, f"compressed bodies are not taken: {_HOW}")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > max_body:
        raise too_large
    parts: list[bytes] = []
    total = 0
    try:
        with anyio.fail_after(READ_SECONDS):
            async for part in request.stream():
                total += len(part)
                if total > max_body:
                    raise too_large
                if metrics.held > BODIES_HELD * max_body:
                    raise HTTPException(503, _FULL, {"Retry-After": "1"})
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {READ_SECONDS:g} s to arrive") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    if not total:
        raise HTTPException(422, f"the body is empty: {_HOW}")
    return b"".join(parts)


def check_body(
    facts: Facts,
    body: bytes,
    encoder: str | None,
    defense: str | None,
    kind: str = "",
    pool: Pool | None = None,
    max_body: int = 2**24,
) -> Features:
    """The features in a body, of the encoder and the defence that a classifier belongs to.

    Args:
        facts: of the classifier.
        body: of the request.
        encoder: the header X-Encoder-SHA256.
        defense: the header X-Defense-SHA256.
        kind: the header Content-Type. curl calls a file a form by itself, so a sound body is taken under any
            name; `pool.MEDIA_TYPE` are places in the pool.
        pool: of a certified defence.
        max_body: bytes of features that places may stand for.

    Raises:
        HTTPException: the body is malformed (422), something else, as its name says (415), of another
            encoder or defence (409), or places of too many features (413).
    """
    try:
        features = _looked_up(body, kind, pool, max_body) or read_features(body, facts.shape)
        encoder = claimed_hash("encoder_sha256", features.metadata, encoder)
        defense = claimed_hash("defense_sha256", features.metadata, defense)
    except Foreign as foreign:
        named = kind.partition(";")[0].strip().lower() not in ("", "application/octet-stream")
        raise HTTPException(415 if named else 422, f"{foreign}: {_HOW}") from None
    except Refused as refused:
        raise HTTPException(422, str(refused)) from None
    for name, mine, theirs in (
        ("encoder_sha256", facts.encoder_sha256, encoder),
        ("defense_sha256", facts.defense_sha256, defense),
    ):
        if mine is not None and theirs is None:
            raise HTTPException(
                422,
                f"say what made the features: {name} of the store's manifest.json as safetensors metadata or "
                f"as the header X-{name.replace('_', '-')}",
            )
        if mine is not None and theirs != mine:
            raise HTTPException(
                409,
                f"the features' {name} is {theirs:.12}…, this classifier's {mine:.12}…: they do not belong "
                "together; protect with the checkpoint that is served, or serve the other one",
            )
    return features


def _looked_up(body: bytes, kind: str, pool: Pool | None, most: int) -> Features | None:
    """Features sent as places in a pool; None: they were sent as they are."""
    if kind.partition(";")[0].strip().lower() != MEDIA_TYPE:
        return None
    if pool is None:
        raise HTTPException(415, "places are of a certified defence's pool, and this classifier has none")
    if len(body) // pool.width * pool.features[0].nbytes > most:
        raise HTTPException(413, f"the places stand for more than {most} bytes of features: send fewer")
    try:
        return Features("F32", pool.decode(body).numpy(), None, {})
    except UserError as error:
        raise Refused(str(error)) from error


def _request_schema(facts: Facts, max_body: int) -> dict[str, Any]:
    """What FastAPI cannot know of a request for /classify: its body and headers, as OpenAPI has them."""
    shape = ", ".join(map(str, facts.shape))
    return {
        "requestBody": {
            "required": True,
            "description": f"safetensors: `features`, F32, F16 or I8 ({shape}) or (n, {shape}), with I8 also "
            "`scale` and `offset`, F32 (n); optional `index`, I64 (n). One feature, or a shard of a feature "
            f"store as it is; at most {max_body} bytes. Metadata `encoder_sha256`, or the header.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        "parameters": [
            {
                "name": f"X-{name}-SHA256",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": f"`{name.lower()}_sha256` of the manifest",
            }
            for name in ("Encoder", "Defense")
        ],
    }
