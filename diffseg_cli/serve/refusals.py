"""How errors leave over HTTP: a status and the two sentences of a `DiffsegError` as JSON."""

import errno
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from diffseg_cli.errors import DiffsegError, InputError, MissingDependency, UsageError
from diffseg_cli.files import OF_THE_PLACE
from diffseg_cli.labelling.review_log import Outdated

LOG = logging.getLogger("uvicorn.error")  # what the person who runs the server sees
OF_THE_MACHINE = OF_THE_PLACE | {errno.EACCES, errno.EPERM}  # nothing a client sends could mend them
OPTION = re.compile(r"--([a-z][a-z-]+)")


class Refusal(DiffsegError):
    """A request that is not answered for a reason of the server's own; `headers` are the response's."""

    def __init__(
        self, status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status, self.headers = status, headers


def status_of(error: DiffsegError) -> int:
    """Bad input is 422, bad use 400; what the caller cannot mend is 500."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, Outdated):
        return HTTPStatus.CONFLICT
    if isinstance(error, InputError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, UsageError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, MissingDependency):
        return HTTPStatus.NOT_IMPLEMENTED
    return HTTPStatus.INTERNAL_SERVER_ERROR


def refusal_response(error: DiffsegError) -> JSONResponse:
    """The response to a request that cannot be answered; options are called as the fields of a request."""
    message, hint = (text and OPTION.sub(_as_field, text) for text in (error.message, error.hint))
    headers = error.headers if isinstance(error, Refusal) else None
    return JSONResponse({"error": message, "hint": hint}, status_of(error), headers)


def _as_field(option: re.Match[str]) -> str:
    return option[1].replace("-", "_")


def without_paths(error: DiffsegError, private: Sequence[Path]) -> DiffsegError:
    """An error as whoever asked may see it; the log gets all of what is the server's own fault.

    Args:
        error: its texts are changed.
        private: folders; files in them keep their names, without the way there.
    """
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in OF_THE_MACHINE:
        return _of_this_machine(cause)
    if status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
        LOG.error("%s", error)
    for folder in filter(lambda each: each.name, private):
        start = f"(?<![\\w./-]){re.escape(str(folder))}"  # at the beginning of a path
        for end, put in (("/", ""), ("(?!\\w)", folder.name)):
            error.message = put.join(re.split(start + end, error.message))
            error.hint = error.hint and put.join(re.split(start + end, error.hint))
    return error


def _of_this_machine(error: OSError) -> Refusal:
    """What is said where the server's own files fail; their paths are for its log alone."""
    LOG.error("%s", error)
    reason = error.strerror or "unknown reason"
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"The server cannot use its own files: {reason}.")


def add_error_handlers(app: FastAPI, private: Sequence[Path] = ()) -> None:
    """Every error leaves as `ErrorBody`, without the way to the private folders it may name."""

    @app.exception_handler(DiffsegError)
    async def known(_: Request, error: DiffsegError) -> Response:
        return refusal_response(without_paths(error, private))

    @app.exception_handler(OSError)
    async def of_this_machine(_: Request, error: OSError) -> Response:
        return refusal_response(_of_this_machine(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = next((str(part) for part in reversed(first["loc"]) if isinstance(part, str)), "body")
        if "UploadFile" in first["msg"]:
            wrong = UsageError(f"{field}: this must be a file.", f"With curl: -F {field}=@image.jpg")
        else:
            wrong = UsageError(f"{field}: {first['msg']}.", "See /openapi.json for the fields.")
        return refusal_response(wrong)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, DiffsegError):  # raised while the body was read
            return refusal_response(error.__cause__)
        if isinstance(error.__cause__, OSError):  # where a large body is kept
            return refusal_response(_of_this_machine(error.__cause__))
        return refusal_response(
            Refusal(error.status_code, f"{error.detail.rstrip('.')}.", None, dict(error.headers or {}))
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return refusal_response(
            Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: this should not happen.")
        )
