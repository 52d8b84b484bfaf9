"""``GET /probewatch/ui`` and the files it loads. Outside ``/v1``, because a browser that navigates sends no key.

None of it holds data: the page asks ``/v1/probewatch`` for that, with the keys that its user gives it.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, HTTPException, Response

from monitor.ui.assets import Asset, assets
from monitor.ui.case_file import TEMPLATE_NAME, case_template

PAGE: Final = "/probewatch/ui"
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a browser that knows it refuses any text as markup
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_page_router() -> APIRouter:
    """The page, its files, and the empty single-file case that the page fills for an export."""
    router = APIRouter(prefix=PAGE, include_in_schema=False)

    @router.get("")
    async def page() -> Response:
        return _sent(assets()["index.html"])

    @router.get(f"/{TEMPLATE_NAME}")
    async def template() -> Response:
        return _sent(Asset(case_template(), assets()["index.html"].media_type))

    @router.get("/{name}")
    async def file(name: str) -> Response:
        found = assets().get(name)
        if found is None:
            raise HTTPException(404, f"the evidence page has no file {name[:60]!r}; open {PAGE}")
        return _sent(found)

    return router


def _sent(asset: Asset) -> Response:
    return Response(asset.text, media_type=asset.media_type, headers=HEADERS)
