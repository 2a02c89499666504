"""The HTTP interface: routes, and what their fields mean."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from diffseg_cli.choices import MIN_AREA, ZOOM, AnswerChoice, MaskChoice
from diffseg_cli.errors import UsageError
from diffseg_cli.labelling.growing import ClickGrower
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.teaching import teach
from diffseg_cli.serve.bodies import ConceptBody, ConceptsBody, ErrorBody, FoundBody, HealthBody, ModelBody
from diffseg_cli.serve.concepts import KeptConcepts
from diffseg_cli.serve.engine import (
    CallOrder,
    FindOrder,
    InferenceEngine,
    MaskOrder,
    Order,
    key_of,
)
from diffseg_cli.serve.guard import Guard
from diffseg_cli.serve.job import BackgroundJob
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.metrics import Metrics
from diffseg_cli.serve.pages import add_pages
from diffseg_cli.serve.project_routes import add_project
from diffseg_cli.serve.refusals import Refusal, add_error_handlers
from diffseg_cli.serve.replies import Reply, json_reply
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
        (422, "An image or mask that cannot be used."),
        (500, "The server's own fault; its log says why."),
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
PNG_BODY = {"image/png": {"schema": {"type": "string", "format": "binary"}}}

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
    """The fields that hold supports; None where no image is among them."""
    if len(support) != len(mask):
        raise UsageError(
            f"The request holds {len(support)} support and {len(mask)} mask images.",
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
    engine = InferenceEngine(segmenter, limits, metrics)
    worker = Worker[Order, Any](engine.work, key_of, limits.batch_size)

    def submit(run: Callable[[], Any]) -> "Future[Any]":
        return worker.submit(CallOrder(run))

    kept = KeptConcepts(engine.segmenter, concepts, limits, metrics, submit)
    private = (project.images, project.out) if project else ()
    learning, packing = (BackgroundJob(submit, private=private) for _ in range(2))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for end in (kept.close, learning.cancel, packing.cancel, worker.close):
            await asyncio.to_thread(end)

    app = FastAPI(
        title="diffseg",
        version=__version__,
        summary="Show one masked image of an object, find it in other images.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        responses=REFUSALS,
    )
    add_error_handlers(app, private)
    answered = _answerer(worker)
    _add_work(app, kept, answered, limits)
    _add_concepts(app, kept, answered, limits)
    if project is not None:
        queries = QueryCache(engine.segmenter, project.out / HIDDEN / "encoded")

        async def called(request: Request, run: Callable[[], Reply]) -> Response:
            return await answered(request, CallOrder(run))

        begin = partial(teach, engine.segmenter, project, queries, concepts)
        grower = ClickGrower(engine.segmenter, queries)
        add_project(app, project, learning, begin, grower, called, limits.pixels, packing)
    add_pages(app, labelling=project is not None)
    _add_status(app, engine.segmenter, limits, metrics)
    return Guard(app, limits, metrics, token)


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


def _check_count(files: Sequence[Upload], what: str, most: int) -> None:
    if len(files) > most:
        raise UsageError(f"A request may hold {most} {what} at most.")


def _add_work(app: FastAPI, kept: KeptConcepts, answered: Answered, limits: Limits) -> None:
    """Routes that the model answers at once."""

    @app.post(
        "/v1/segment",
        response_class=Response,
        responses={200: {"model": FoundBody, "content": PNG_BODY, "description": "Found."}, **UNKNOWN},
    )
    async def segment(
        request: Request,
        query: Annotated[UploadFile, File(description="Image to search.")],
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
        zoom: Annotated[
            str,
            Form(
                pattern=ZOOM,
                description="Look again, closer, at large images: auto where an object may be small, off, or "
                "the most looks.",
            ),
        ] = "off",
        form: Annotated[
            Literal["mask", "overlay", "heatmap", "cutout", "instances", "json"], Form(alias="format")
        ] = "mask",
        instances: Annotated[
            bool, Form(description="Number the objects in the mask; the format instances is a map of them.")
        ] = False,
        include: Annotated[
            list[Literal["rle", "polygons", "probability", "score_map"]] | None,
            Form(description="What JSON holds besides the figures; default rle."),
        ] = None,
    ) -> Response:
        """Find a concept, or the object of supports with masks, in a query."""
        what: Concept | SupportUpload
        if concept is not None and supports is None:
            what = kept.get(concept)
        elif concept is None and supports is not None:
            _check_count(supports.images, "supports", limits.supports)
            what = supports
        else:
            raise UsageError(
                "A request names either a concept or supports with masks.",
                "Send the field concept, or the fields support and mask.",
            )
        extras = tuple(sorted(set(include or ["rle"])))
        numbered = instances or form == "instances"
        answer = AnswerChoice(threshold, min_presence, refine, min_area, zoom, numbered)
        order = FindOrder(await _read(query), what, answer, form, extras)
        return await answered(request, order)

    @app.post(
        "/v1/mask",
        response_class=Response,
        responses={200: {"content": PNG_BODY, "description": "Mask of what is in the box."}},
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


def _add_concepts(app: FastAPI, kept: KeptConcepts, answered: Answered, limits: Limits) -> None:
    """Routes of the concepts that are kept."""

    @app.get("/v1/concepts", response_model=ConceptsBody)
    async def list_concepts() -> Response:
        """The concepts that are kept, in the order in which they came."""
        return JSONResponse({"concepts": [kept.record(each) for each in kept.all()]})

    @app.post("/v1/concepts", response_model=ConceptBody, responses=TAKEN)
    async def make_concept(
        request: Request,
        supports: Supports,
        name: Annotated[str, Form(max_length=64, description="Its id.")],
        negatives: Annotated[
            list[UploadFile],
            File(alias="not", default_factory=list, description="With adapt: images without the object."),
        ],
        negative_masks: Annotated[
            list[UploadFile],
            File(
                alias="not_mask",
                default_factory=list,
                description="What in an image of `not` is not the object; the rest of it may be. In the "
                "order of the images, of which those after the last mask are without the object as a whole.",
            ),
        ],
        adapt: Annotated[
            bool, Form(description="Adapt the model to the supports, in the background.")
        ] = False,
    ) -> Response:
        """Encode supports and keep them in memory under a name; `adaptation` says how far adapting is."""
        if supports is None:
            raise UsageError("There is no support image.", "Send the fields support and mask.")
        if negatives and not adapt:
            raise UsageError("The field not is for adapting.", "Send adapt=true with it, or leave it out.")
        if len(negative_masks) > len(negatives):
            raise UsageError(
                f"The request holds {len(negatives)} not and {len(negative_masks)} not_mask images.",
                "Send one not for each not_mask, in the same order.",
            )
        absent = [await _read(each) for each in negatives]
        regions = [await _read(each) for each in negative_masks]
        _check_count(supports.images, "supports", limits.supports)
        _check_count(absent, "images without the object", limits.supports)
        checked = check_name(name)

        def make() -> Reply:
            return json_reply(kept.record(kept.make(checked, supports, absent, regions, adapt=adapt)))

        return await answered(request, CallOrder(make))

    @app.get("/v1/concepts/{name}", response_model=ConceptBody, responses=UNKNOWN)
    async def show_concept(name: str) -> Response:
        """A concept, and how far adapting to it is."""
        return JSONResponse(kept.record(kept.get(name)))

    @app.delete("/v1/concepts/{name}", status_code=204, responses=UNKNOWN | TAKEN)
    def delete_concept(name: str) -> None:
        """Forget a concept that was made by a request."""
        kept.drop(name)

    @app.delete("/v1/concepts/{name}/adaptation", response_model=ConceptBody, responses=UNKNOWN)
    def stop_adapting(name: str) -> Response:
        """Stop adapting; the concept stays as it was made."""
        return JSONResponse(kept.record(kept.stop_adapting(name)))


def _add_status(app: FastAPI, segmenter: "Segmenter", limits: Limits, metrics: Metrics) -> None:
    """Routes that tell what is there."""

    @app.get("/v1/model", response_model=ModelBody)
    async def model() -> Response:
        """What answers here, and its limits."""
        return JSONResponse(
            {
                "version": __version__,
                "description": segmenter.description,
                "has_presence": segmenter.trained.presence is not None,
                "can_adapt": segmenter.head == "pam",
                "limits": asdict(limits),
            }
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
