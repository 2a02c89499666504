"""Routes of a labelling project: images with their states, masks, decisions, learning, exports."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import FastAPI, File, Form, Query, UploadFile
from fastapi import Path as FilePath
from fastapi.responses import FileResponse, JSONResponse, Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.labelling.export import instances_of, pack_steps
from diffseg_cli.labelling.growing import ClickGrower, Glance
from diffseg_cli.labelling.project import HIDDEN, Mask, Project
from diffseg_cli.labelling.review_log import Review
from diffseg_cli.labelling.thumbnails import Thumbnails
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.results.outputs import mask_png
from diffseg_cli.results.palette import concept_color, label_map
from diffseg_cli.results.render import jpeg_bytes, png_bytes, shrunk, shrunk_wh
from diffseg_cli.serve.job import BackgroundJob, Step
from diffseg_cli.serve.refusals import Refusal
from diffseg_cli.serve.replies import JSON, PNG, Reply

JPEG = "image/jpeg"
LONGEST = 2048  # side in pixels of an image in the editor; larger ones are corrected at this size
QUALITY = 90
MOST_SHOWN = 255  # instances in the editor

# Runs something in the thread that owns the model, while somebody waits for the answer.
Answered = Callable[[Request, Callable[[], Reply]], Awaitable[Response]]
Key = Annotated[str, Query(max_length=4096, description="An image's path below the folder of images.")]
KeyField = Annotated[str, Form(max_length=4096, description="An image's path below the folder of images.")]
Share = Annotated[float, Form(ge=0, le=1, allow_inf_nan=False)]


def add_project(
    app: FastAPI,
    project: Project,
    job: BackgroundJob,
    teach: Callable[[], Iterator[Step]],
    grower: ClickGrower,
    answered: Answered,
    most_pixels: int,
    packing: BackgroundJob,
) -> None:
    """Add the routes of a project to a server; `teach` begins to learn and propose, as `job`."""
    _add_looking(app, project, job)
    _add_exports(app, project, packing)
    _add_deciding(app, project, most_pixels)
    _add_learning(app, job, teach)
    _add_helping(app, project, grower, answered)


def _add_looking(app: FastAPI, project: Project, job: BackgroundJob) -> None:
    thumbnails = Thumbnails(project)

    @app.get("/v1/project")
    def overview() -> Response:
        """Classes, how many images are in each state, and what learning is at."""
        project.refresh()
        states = Counter(review.state.value for review in project.reviews())
        classes = [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*concept_color(index))}
            for index, name in enumerate(project.classes)
        ]
        return JSONResponse(
            {
                "classes": classes,
                "instances": project.instances,
                "states": states,
                "learning": job.progress,
            }
        )

    @app.get("/v1/project/images")
    def images(
        since: Annotated[int, Query(ge=-1, description="A version to tell what changed since it.")] = -1,
    ) -> Response:
        """Images with state, revision, presence and doubt; with `since` only those decided about later."""
        version, reviews = project.reviews_since(since)
        rows = [_record(review) for review in reviews]
        return JSONResponse({"version": version, "images": rows, "learning": job.progress})

    @app.get("/v1/project/thumbnail", response_class=Response)
    def thumbnail(image: Key) -> Response:
        """A small JPEG of an image with its mask."""
        return Response(thumbnails.get(image), media_type=JPEG)

    @app.get("/v1/project/image", response_class=Response)
    def image(image: Key) -> Response:
        """An image, upright, as a JPEG of 2048 pixels at most."""
        return Response(jpeg_bytes(shrunk(project.read(image), LONGEST), QUALITY), media_type=JPEG)

    @app.get("/v1/project/mask", response_class=Response)
    def mask(image: Key) -> Response:
        """The masks of an image as a grey PNG of its size in the editor: 0, or a class's number from 1."""
        project.item(image)
        masks = project.masks(image)
        if masks is None:
            return Response(status_code=204)
        labels = _shrunk(label_map(masks))
        return Response(png_bytes(labels), media_type=PNG)


def _add_deciding(app: FastAPI, project: Project, most_pixels: int) -> None:
    @app.post("/v1/project/decide")
    def decide(
        image: KeyField,
        revision: Annotated[int, Form(ge=0, description="Of the image when it was looked at.")],
        decision: Annotated[Literal["accept", "correct", "nothing", "reopen"], Form()],
        mask: Annotated[UploadFile | None, File(description="With correct: as GET /v1/project/mask.")] = None,
    ) -> Response:
        """Decide about an image; 409 where it is no longer at that revision."""
        if decision == "accept":
            review = project.accept(image, revision)
        elif decision == "nothing":
            review = project.say_nothing(image, revision)
        elif decision == "reopen":
            review = project.reopen(image, revision)
        elif mask is None:
            raise UsageError("mask: a correction needs one.", "Send a PNG with the values of classes.")
        else:
            labels = _read_labels(mask.file.read(), len(project.classes), most_pixels)
            review = project.correct(image, revision, _at_full_size(project, image, labels))
        return JSONResponse(_record(review))

    @app.post("/v1/project/instances", response_class=Response)
    def instances(mask: Annotated[UploadFile, File(description="As GET /v1/project/mask.")]) -> Response:
        """The objects in a mask told apart: a grey PNG of its size with their numbers, up to 255."""
        labels = _read_labels(mask.file.read(), len(project.classes), most_pixels)
        numbers = np.zeros(labels.shape, dtype=np.uint8)
        masks = [labels == number for number in range(1, len(project.classes) + 1)]
        for each in instances_of(project.classes, masks)[:MOST_SHOWN]:
            numbers[each.window][each.mask] = each.id
        return Response(png_bytes(numbers), media_type=PNG)


def _add_exports(app: FastAPI, project: Project, packing: BackgroundJob) -> None:
    folder = project.out / HIDDEN / "exports"

    @app.post("/v1/project/export")
    def export(
        form: Annotated[Literal["coco", "yolo", "labelme", "voc", "mask"], Form(alias="format")],
        everything: Annotated[bool, Form(alias="all", description="Proposals as well.")] = False,
        instances: Annotated[
            bool | None, Form(description="Objects apart, not classes; by default as in the project.")
        ] = None,
    ) -> Response:
        """Pack what was decided for other tools in the background, as the ZIP `file`."""
        choices = ("all" if everything else "", {None: "", True: "instances", False: "classes"}[instances])
        file = f"{'-'.join(('labels', form, *filter(None, choices)))}.zip"
        steps = pack_steps(project, form, folder / file, everything=everything, instances=instances)
        if not packing.start(steps, "packing"):
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The server is packing another export.",
                "Try again when that is done.",
                {"Retry-After": "2"},
            )
        return JSONResponse({"file": file})

    @app.get("/v1/project/export")
    def progress() -> Response:
        """How far the export is that was asked for last: packing, done, or failed with an error."""
        return JSONResponse(packing.progress)

    @app.get("/v1/project/export/{file}", response_class=FileResponse)
    def download(file: Annotated[str, FilePath(max_length=200)]) -> Response:
        """An export that was packed."""
        if not (folder / file).is_file():
            raise Refusal(HTTPStatus.NOT_FOUND, f"No export is called {file}.", "Pack one first.")
        return FileResponse(folder / file, media_type="application/zip", filename=file)


def _add_learning(app: FastAPI, job: BackgroundJob, teach: Callable[[], Iterator[Step]]) -> None:
    @app.post("/v1/project/learn")
    def learn() -> Response:
        """Learn from what was decided and propose masks for the rest, in the background."""
        job.start(teach(), "learning")
        return JSONResponse(job.progress)

    @app.delete("/v1/project/learn")
    def cancel() -> Response:
        """Stop learning and proposing."""
        job.cancel()
        return JSONResponse(job.progress)


def _add_helping(app: FastAPI, project: Project, grower: ClickGrower, answered: Answered) -> None:
    async def glance_at(request: Request, image: str) -> Glance:
        """From memory; only a look that was not taken yet waits for the model."""
        path = project.item(image).path

        def look_now() -> Reply:
            grower.look(path)
            return Reply(b"{}", JSON)

        while (glance := grower.seen(path)) is None:
            await answered(request, look_now)
        return glance

    @app.post("/v1/project/click", response_class=Response)
    async def click(request: Request, image: KeyField, x: Share, y: Share) -> Response:
        """The region of a click (shares of width and height) as a PNG of the image's size in the editor."""
        glance = await glance_at(request, image)
        return await run_in_threadpool(_mask_response, glance, lambda: grower.grow(glance, x, y))

    @app.post("/v1/project/look", status_code=204)
    async def look(request: Request, image: KeyField) -> Response:
        """Look at an image that is, or will be, open in an editor, so that a click is answered at once."""
        await glance_at(request, image)
        return Response(status_code=204)

    @app.post("/v1/project/box", response_class=Response)
    async def box(
        request: Request, image: KeyField, x: Share, y: Share, width: Share, height: Share
    ) -> Response:
        """What fills a box (shares of width and height) as a PNG of the image's size in the editor."""
        glance = await glance_at(request, image)
        box = (x, y, width, height)
        return await run_in_threadpool(_mask_response, glance, lambda: grower.fill(glance, box))


# --- masks on their way --------------------------------------------------------------------------------


def _record(review: Review) -> dict[str, Any]:
    return {name: value for name, value in vars(review).items() if name != "mask_sha256"}


def _mask_response(glance: Glance, find: Callable[[], Mask]) -> Response:
    """A mask of any size as a PNG of the image's size in the editor."""
    shown_wh = shrunk_wh(glance.size_hw, LONGEST)
    soft = cv2.resize(find().astype(np.float32), shown_wh, interpolation=cv2.INTER_LINEAR)
    return Response(mask_png([soft > 0.5]), media_type=PNG)


def _shrunk(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (H W) at the size (h w) of their image in the editor."""
    shown_wh = shrunk_wh(labels.shape, LONGEST)
    shown: NDArray[np.uint8] = cv2.resize(labels, shown_wh, interpolation=cv2.INTER_NEAREST)
    return shown


def _read_labels(content: bytes, classes: int, most_pixels: int) -> NDArray[np.uint8]:
    """Labels (h w) of a correction.

    Raises:
        InputError: as `read_image`, or it holds numbers of no class.
    """
    labels = read_image(InputFile("mask", content), most_pixels)[:, :, 0]
    if labels.max() > classes:
        raise InputError(f"mask holds the value {labels.max()}, and there are {classes} classes.")
    return labels


def _at_full_size(project: Project, key: str, labels: NDArray[np.uint8]) -> list[Mask]:
    """Labels (h w) of the editor as masks (H W) of the image's own size.

    Where the editor shows an image smaller than it is, what was not changed there keeps its exact border.
    """
    size_hw = project.size_hw(key)
    stored = project.masks(key)
    before = np.zeros(size_hw, dtype=np.uint8) if stored is None else label_map(stored)
    shown = _shrunk(before)
    if labels.shape != shown.shape:
        raise InputError(
            f"mask has {labels.shape[1]} x {labels.shape[0]} pixels.",
            f"In the editor {key} has {shown.shape[1]} x {shown.shape[0]}.",
        )
    changed = cv2.resize((labels != shown).astype(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    drawn = cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    full = np.where(changed > 0, drawn, before)
    return [full == number for number in range(1, len(project.classes) + 1)]
