"""What every request passes first: who asks, how much, and how long it may take.

Without a token the server is for programs and pages of this machine alone. Any web page could still send a
browser here, so the Host header must be a name of this machine (against DNS rebinding) and an Origin must be
the server's own (against requests from other pages). With a token neither matters: other pages lack it.
"""

import hmac
import ipaddress
from http import HTTPStatus
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.metrics import Metrics
from diffseg_cli.serve.refusals import Refusal, refusal_response

OPEN_PATHS = ("/", "/search", "/healthz")  # the pages ask for the token themselves
OPEN_FOLDER = "/page/"  # their scripts and styles
IN_HAND = "diffseg_requests_in_hand"
SAFE_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine; other names are not looked up."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application in front of another.

    Args:
        app: that answers.
        limits: of requests.
        metrics: counts them.
        token: to ask for, or None for this machine only.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str | None) -> None:
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0  # until the answer begins

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += [(name.encode(), text.encode()) for name, text in SAFE_HEADERS.items()]
            await send(message)

        works = scope["method"] == "POST"
        if works:
            self._metrics.add(IN_HAND)
        try:
            self._check(Headers(scope=scope), scope["path"], works=works)
            with anyio.move_on_after(self._limits.seconds) as clock:
                await self._app(scope, self._counted(receive), noted_send)
            if clock.cancelled_caught and not status:
                raise Refusal(
                    HTTPStatus.GATEWAY_TIMEOUT,
                    f"This took longer than {self._limits.seconds:g} seconds.",
                    "Send smaller images, or try again when the server has less to do.",
                )
        except Refusal as refusal:
            if not status:
                await refusal_response(refusal)(scope, receive, noted_send)
        finally:
            if works:
                self._metrics.add(IN_HAND, -1)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.add("diffseg_requests_total", path=route, status=str(status))

    def _check(self, headers: Headers, path: str, *, works: bool) -> None:
        if self._token is None:
            _check_same_machine(headers)
        elif path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            _check_token(headers.get("authorization", ""), self._token)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        if works and self._metrics.total(IN_HAND) > self._limits.requests:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The server is busy with {self._limits.requests} requests.",
                "Try again in a few seconds.",
                {"Retry-After": str(self._wait())},
            )

    def _counted(self, receive: Receive) -> Receive:
        """Receive a body, and stop where it grows larger than allowed."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refusal:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request is larger than {self._limits.body_bytes / 10**6:g} MB.",
            "Send smaller images.",
        )

    def _wait(self) -> int:
        """Seconds after which half of the queue should be done."""
        images = self._metrics.total("diffseg_images_total")
        each = self._metrics.total("diffseg_stage_seconds_total") / max(images, 1)
        return max(1, min(round(each * self._limits.requests / 2), 60))


def _check_same_machine(headers: Headers) -> None:
    host = headers.get("host", "")
    try:
        own = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        own = ""
    if not is_loopback(own):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "Without a token this server answers under the names of this machine only.",
            "Use http://localhost or http://127.0.0.1, or start the server with a token.",
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise Refusal(HTTPStatus.FORBIDDEN, "Pages of other servers may not send requests here.")


def _check_token(authorization: str, token: str) -> None:
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
    if not (scheme.lower() == "bearer" and same):
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "This server asks for a token." if not given else "The token is not the right one.",
            "Send it as the header Authorization: Bearer TOKEN.",
            {"WWW-Authenticate": "Bearer"},
        )
