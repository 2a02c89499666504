"""The HTTP interface: routes, and what their fields mean."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from diffseg_cli.choices import MIN_AREA, AnswerChoice, MaskChoice
from diffseg_cli.errors import DiffsegError, UsageError
from diffseg_cli.labelling.growing import ClickGrower
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.serve.bodies import ConceptBody, ConceptsBody, ErrorBody, FoundBody, HealthBody, ModelBody
from diffseg_cli.serve.engine import (
    CallOrder,
    ConceptOrder,
    FindOrder,
    InferenceEngine,
    MaskOrder,
    Order,
    key_of,
)
from diffseg_cli.serve.guard import Guard
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.metrics import Metrics
from diffseg_cli.serve.pages import add_pages
from diffseg_cli.serve.project_routes import add_project
from diffseg_cli.serve.refusals import Refusal, refusal_response
from diffseg_cli.serve.replies import Reply
from diffseg_cli.serve.teaching_job import TeachingJob
from diffseg_cli.serve.uploads import SupportUpload, Upload
from diffseg_cli.serve.worker import Worker
from diffseg_cli.supports.concept import Concept, check_name
from diffseg_cli.version import __version__

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in (
        (400, "A field that is missing, or no value for it."),
        (401, "The token is missing or wrong."),
        (403, "Sent under another name, or by the page of another server."),
        (413, "Too large."),
        (422, "A picture or mask that cannot be used."),
        (503, "Too busy; Retry-After says when to try again."),
        (504, "It took too long."),
    )
}
UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody, "description": "No such concept."}}
TAKEN: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The name is taken, all places are, or the concept is fixed."}
}
LOOK_UP = 0.5  # seconds after which to see whether somebody still waits for an answer
CLOSED = 499  # as other servers call it in their counts: the client went away
PICTURE = {"image/png": {"schema": {"type": "string", "format": "binary"}}}

Answered = Callable[[Request, Order], Awaitable[Response]]
Share = Annotated[float, Form(ge=0, le=1, allow_inf_nan=False)]
Files = Annotated[list[UploadFile], File(default_factory=list)]
Short = Annotated[str | None, Form(max_length=200)]
ShortList = Annotated[list[Annotated[str, Field(max_length=200)]] | None, Form()]
Number = Annotated[float, Form(ge=-1e6, le=1e6, allow_inf_nan=False)]


async def _read(file: UploadFile) -> Upload:
    return Upload(await file.read(), PurePosixPath((file.filename or "").replace("\\", "/")).name)


async def _supports(
    support: Files,
    mask: Files,
    label: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]] | None, Form()] = None,
    color: ShortList = None,
    category: Short = None,
    annotation: ShortList = None,
    ignore_crowd: Annotated[bool, Form()] = False,
    invert_mask: Annotated[bool, Form()] = False,
    fit_mask: Annotated[bool, Form()] = False,
) -> SupportUpload | None:
    """The fields that hold supports; None where no picture is among them."""
    if len(support) != len(mask):
        raise UsageError(
            f"The request holds {len(support)} support and {len(mask)} mask pictures.",
            "Send one mask for each support, in the same order.",
        )
    if not support:
        return None
    return SupportUpload(
        tuple([await _read(each) for each in support]),
        tuple([await _read(each) for each in mask]),
        MaskChoice(
            tuple(label or ()),
            tuple(color or ()),
            category,
            tuple(annotation or ()),
            ignore_crowd,
            invert_mask,
            fit_mask,
        ),
    )


Supports = Annotated[SupportUpload | None, Depends(_supports)]


def create_app(
    segmenter: "Segmenter",
    concepts: Sequence[Concept] = (),
    limits: Limits | None = None,
    token: str | None = None,
    project: Project | None = None,
) -> ASGIApp:
    """The server as an ASGI application; its worker ends when the application shuts down.

    Args:
        segmenter: that answers; it belongs to the application from now on.
        concepts: to keep from the start.
        limits: of requests.
        token: that requests must carry, or None to answer this machine alone.
        project: a folder to be labelled, or None.
    """
    limits = limits or Limits()
    metrics = Metrics()
    engine = InferenceEngine(segmenter, concepts, limits, metrics)
    worker = Worker[Order, Any](engine.work, key_of, limits.batch_size)
    job = None
    if project is not None:
        queries = QueryCache(engine.segmenter, project.out / HIDDEN / "encoded")
        job = TeachingJob(
            engine.segmenter, project, queries, concepts, lambda run: worker.submit(CallOrder(run))
        )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if job is not None:
            await asyncio.to_thread(job.cancel)
        await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="diffseg",
        version=__version__,
        summary="Show one masked image of an object, find it in other images.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        responses=REFUSALS,
    )
    _add_error_handlers(app)
    answered = _answerer(worker)
    _add_work(app, engine, answered, limits)
    if project is not None and job is not None:
        grower = ClickGrower(engine.segmenter, job.queries)

        async def called(request: Request, run: Callable[[], Reply]) -> Response:
            return await answered(request, CallOrder(run))

        add_project(app, project, job, grower, called, limits.pixels)
    add_pages(app, labelling=project is not None)
    _add_status(app, engine, limits, metrics)
    return Guard(app, limits, metrics, token)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves as `ErrorBody`."""

    @app.exception_handler(DiffsegError)
    async def known(_: Request, error: DiffsegError) -> Response:
        return refusal_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = next((str(part) for part in reversed(first["loc"]) if isinstance(part, str)), "body")
        if "UploadFile" in first["msg"]:
            wrong = UsageError(f"{field}: this must be a file.", f"With curl: -F {field}=@picture.jpg")
        else:
            wrong = UsageError(f"{field}: {first['msg']}.", "See /openapi.json for the fields.")
        return refusal_response(wrong)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, DiffsegError):  # raised while the body was read
            return refusal_response(error.__cause__)
        return refusal_response(
            Refusal(error.status_code, f"{error.detail.rstrip('.')}.", None, dict(error.headers or {}))
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return refusal_response(
            Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: this should not happen.")
        )


def _answerer(worker: Worker[Order, Any]) -> Answered:
    """Sends an order to the worker, and takes it back where nobody waits for it any more."""

    async def answered(request: Request, order: Order) -> Response:
        future = asyncio.wrap_future(worker.submit(order))
        try:
            while not (await asyncio.wait([future], timeout=LOOK_UP))[0]:
                if await request.is_disconnected():
                    raise Refusal(CLOSED, "Whoever asked has gone.")
        finally:
            future.cancel()  # not begun, it never will be; begun, it ends before its next stage
        reply = future.result()
        return Response(reply.content, 200, reply.headers, reply.media_type)

    return answered


def _add_work(app: FastAPI, engine: InferenceEngine, answered: Answered, limits: Limits) -> None:
    """Routes that the worker answers."""

    def checked(supports: SupportUpload) -> SupportUpload:
        if len(supports.images) > limits.supports:
            raise UsageError(f"A request may hold {limits.supports} supports at most.")
        return supports

    @app.post(
        "/v1/segment",
        response_class=Response,
        responses={200: {"model": FoundBody, "content": PICTURE, "description": "Found."}, **UNKNOWN},
    )
    async def segment(
        request: Request,
        query: Annotated[UploadFile, File(description="Picture to search.")],
        supports: Supports,
        concept: Annotated[str | None, Form(max_length=64, description="Instead of supports.")] = None,
        threshold: Annotated[float, Form(gt=0, lt=1, allow_inf_nan=False)] = 0.5,
        min_presence: Share = 0.0,
        refine: Annotated[bool | None, Form()] = None,
        min_area: Annotated[
            str,
            Form(
                pattern=MIN_AREA,
                max_length=16,
                description="Parts of the mask below this area are dropped, holes below it filled: pixels "
                "(40), or percent of the largest part (1%).",
            ),
        ] = "1%",
        form: Annotated[
            Literal["mask", "overlay", "heatmap", "cutout", "json"], Form(alias="format")
        ] = "mask",
        include: Annotated[
            list[Literal["rle", "polygons", "probability", "score_map"]] | None,
            Form(description="What JSON holds besides the figures; default rle."),
        ] = None,
    ) -> Response:
        """Find a concept, or the object of supports with masks, in a query."""
        what: Concept | SupportUpload
        if concept is not None and supports is None:
            what = engine.concept(concept)
        elif concept is None and supports is not None:
            what = checked(supports)
        else:
            raise UsageError(
                "A request names either a concept or supports with masks.",
                "Send the field concept, or the fields support and mask.",
            )
        extras = tuple(sorted(set(include or ["rle"])))
        answer = AnswerChoice(threshold, min_presence, refine, min_area)
        order = FindOrder(await _read(query), what, answer, form, extras)
        return await answered(request, order)

    @app.post(
        "/v1/mask",
        response_class=Response,
        responses={200: {"content": PICTURE, "description": "Mask of what is in the box."}},
    )
    async def mask(
        request: Request,
        image: Annotated[UploadFile, File(description="Image of the object.")],
        x: Number,
        y: Number,
        width: Number,
        height: Number,
    ) -> Response:
        """Make the mask of the object that fills a box (left, top, width, height in pixels)."""
        return await answered(request, MaskOrder(await _read(image), (x, y, width, height)))

    @app.post("/v1/concepts", response_model=ConceptBody, responses=TAKEN)
    async def make_concept(
        request: Request, supports: Supports, name: Annotated[str, Form(max_length=64, description="Its id.")]
    ) -> Response:
        """Encode supports and keep them in memory under a name."""
        if supports is None:
            raise UsageError("There is no support picture.", "Send the fields support and mask.")
        return await answered(request, ConceptOrder(check_name(name), checked(supports)))


def _add_status(app: FastAPI, engine: InferenceEngine, limits: Limits, metrics: Metrics) -> None:
    """Routes that tell what is there."""

    @app.get("/v1/concepts", response_model=ConceptsBody)
    async def list_concepts() -> Response:
        """The concepts that are kept, in the order in which they came."""
        return JSONResponse({"concepts": [engine.record(each) for each in list(engine.concepts.values())]})

    @app.delete("/v1/concepts/{name}", status_code=204, responses=UNKNOWN | TAKEN)
    async def delete_concept(name: str) -> None:
        """Forget a concept that was made by a request."""
        engine.drop(name)

    @app.get("/v1/model", response_model=ModelBody)
    async def model() -> Response:
        """What answers here, and its limits."""
        segmenter = engine.segmenter
        facts = {"version": __version__, "description": segmenter.description}
        return JSONResponse(
            {**facts, "has_presence": segmenter.trained.presence is not None, "limits": asdict(limits)}
        )

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=HealthBody)
    async def health() -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok", "version": __version__})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """Counters for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")
