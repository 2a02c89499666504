"""The pages and their files, and the policy that keeps a browser to them."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

WEB = Path(__file__).with_name("web")  # a folder for each page, and one for what they share
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
# Its own scripts and styles, images it made itself, requests to this server, and nothing else. No answer but
# the files below /page/ has a type that a browser runs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_pages(app: FastAPI, *, labelling: bool) -> None:
    """Add the page that searches images and, for a project, the one that labels them before it."""
    files = {
        path.relative_to(WEB).as_posix(): path.read_bytes()
        for path in WEB.glob("*/*")
        if path.suffix in KINDS
    }
    pages = {"/": "labelling", "/search": "search"} if labelling else {"/": "search"}
    for path, folder in pages.items():
        _add_page(app, path, (WEB / folder / "index.html").read_text(encoding="utf-8"))

    @app.get("/page/{folder}/{name}", include_in_schema=False)
    async def file(folder: str, name: str) -> Response:
        content = files.get(f"{folder}/{name}")
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type=KINDS[Path(name).suffix])


def _add_page(app: FastAPI, path: str, content: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(content, headers={"Content-Security-Policy": POLICY})
