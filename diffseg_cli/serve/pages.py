"""The pages and their files, and the policies that keep a browser to them."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

SEARCH_PAGE = Path(__file__).with_name("page.html")
WEB = Path(__file__).with_name("web")  # a folder for each page, and one for what they share
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
# Of a page: its own script and styles, images it made itself, requests to this server, and nothing else.
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_pages(app: FastAPI, *, labelling: bool) -> None:
    """Add the page that searches images and, for a project, the one that labels them before it."""
    page, policy = _read_search_page()

    @app.get("/search" if labelling else "/", include_in_schema=False)
    async def search() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    if not labelling:
        return
    files = {
        path.relative_to(WEB).as_posix(): path.read_bytes()
        for path in WEB.glob("*/*")
        if path.suffix in KINDS
    }
    label_page = (WEB / "labelling" / "index.html").read_text(encoding="utf-8")
    own = POLICY.format(script="'self'", style="'self'")

    @app.get("/", include_in_schema=False)
    async def label() -> Response:
        return HTMLResponse(label_page, headers={"Content-Security-Policy": own})

    @app.get("/page/{folder}/{name}", include_in_schema=False)
    async def file(folder: str, name: str) -> Response:
        content = files.get(f"{folder}/{name}")
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type=KINDS[Path(name).suffix])


def _read_search_page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run its script and styles and no others."""
    page = SEARCH_PAGE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        content = found[1] if found else ""
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
        allowed[tag] = f"'sha256-{digest}'"
    return page, POLICY.format(**allowed)
