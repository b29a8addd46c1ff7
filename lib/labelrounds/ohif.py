"""OHIF, the viewer that MONAI Label carries, in the browser, on the studies of a DICOMweb server.

Its files hold nothing about patients and are served to anyone; what it shows comes from ``/proxy/dicom``, ``/infer``
and the like, which ask who calls. The page and its configuration are ours: the browser is told to load nothing from
elsewhere and to send nothing elsewhere, and a login is asked for before the viewer starts (``ohif.js``).
"""

import mimetypes
import re
from functools import cache
from pathlib import Path

import labelrounds.host  # noqa: F401 - makes the next import possible

# isort: split
from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse, Response
from monailabel import endpoints

from labelrounds.errors import NotFound

_FOLDER = Path(endpoints.__file__).parent / "static" / "ohif"
_CONFIGURATION = Path(__file__).with_name("ohif.js")
# Replaced by ours, or of no use without the internet.
_LEFT_OUT = {
    "index.html",
    "app-config.js",
    "google.js",
    "init-service-worker.js",
    "oidc-client.min.js",
    "silent-refresh.html",
    "sw.js",
    "_headers",
    "_redirects",
    "serve.json",
}
_POLICY = {
    "default-src": "'none'",
    # Its reader of DICOM SEG makes functions of texts (ndarray's), its decoders are WebAssembly.
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' blob: data:",
    "worker-src": "'self' blob:",
    "manifest-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_ANEW = {**_HEADERS, "Cache-Control": "no-cache"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>OHIF Viewer</title>
<link rel="icon" href="/ohif/assets/favicon.ico">
<link rel="stylesheet" href="/ohif/app.bundle.css">
<script defer src="/ohif/app-config.js" data-viewer="/ohif/{bundle}"></script>
</head>
<body><noscript>OHIF needs JavaScript.</noscript><div id="react-portal"></div><div id="root"></div></body>
</html>
"""

viewer = APIRouter()


@viewer.get("/ohif", include_in_schema=False)
def with_slash() -> Response:
    """Lead to the viewer's page."""
    return RedirectResponse("/ohif/", 307)


@viewer.get("/ohif/{path:path}", include_in_schema=False)
def viewer_file(path: str) -> Response:
    """Return a file of the viewer; its page for each of its own addresses, such as ``/ohif/viewer``."""
    if path == "app-config.js":
        return FileResponse(_CONFIGURATION, media_type="text/javascript", headers=_ANEW)
    if path.endswith(".css") and path in _files():
        return Response(_without_imports(path), media_type="text/css", headers=_HEADERS)
    if path in _files():
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return FileResponse(_FOLDER / path, media_type=kind, headers=_HEADERS)
    if "." in path.rpartition("/")[2] or ".." in path.split("/") or path in _LEFT_OUT:
        raise NotFound(f"{path[:200]!r} is no file of the viewer")
    bundle = next(name for name in sorted(_files()) if name.startswith("app.bundle.") and name.endswith(".js"))
    return Response(_PAGE.format(bundle=bundle), media_type="text/html", headers=_ANEW)


@cache
def _files() -> frozenset[str]:
    """Return the names of the viewer's files; no path that a request names is ever looked for on the disk."""
    names = (str(file.relative_to(_FOLDER)) for file in _FOLDER.rglob("*") if file.is_file())
    return frozenset(names) - _LEFT_OUT


@cache
def _without_imports(path: str) -> str:
    """Return a style sheet that loads no fonts from elsewhere."""
    return re.sub(r"@import url\(['\"]?https?:[^)]*\);", "", (_FOLDER / path).read_text(encoding="utf-8"))
