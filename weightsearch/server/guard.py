"""Around all routes: who may ask, the headers of every response, and how long it took."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightsearch.server.counts import Counts
from weightsearch.server.options import ServeOptions

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
OPEN = ("/healthz", "/static/")  # to whoever has no token
COUNTED = ["/", "/ask", "/api", "/checkpoints", "/runs", "/search", "/examples", "/healthz", "/metrics", "/static"]
COOKIE = "weightsearch_token"


class Guard:
    """Who may ask, the headers of every response, and how long it took."""

    def __init__(self, app: ASGIApp, options: ServeOptions, counts: Counts) -> None:
        self.app = app
        self.options = options
        self.counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._refused(Request(scope)) or self.app)(scope, receive, send_with_headers)
        finally:
            route = "/" + scope["path"].split("/")[1]
            seconds = time.perf_counter() - started
            self.counts.request(route if route in COUNTED else "other", status, seconds)

    def _refused(self, request: Request) -> Response | None:
        token = self.options.token
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        local = self.options.host in ("127.0.0.1", "localhost", "::1")
        if token is None and local and host.strip("[]") not in ("127.0.0.1", "localhost", "::1"):
            return PlainTextResponse("this server answers to its own machine only", 403)  # a page that renamed itself
        origin = request.headers.get("origin")
        if (
            request.method == "POST"
            and origin is not None
            and origin.rpartition("//")[2] != request.headers.get("host")
        ):
            return PlainTextResponse("a question comes from this server's own page", 403)
        if token is None or request.url.path.startswith(OPEN):
            return None
        given = request.query_params.get("token")
        if given is not None and hmac.compare_digest(given.encode(), token.encode()):
            response = RedirectResponse(request.url.path, 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if any(hmac.compare_digest(one.encode(), token.encode()) for one in (bearer, request.cookies.get(COOKIE, ""))):
            return None
        return PlainTextResponse("a token is needed: Authorization: Bearer TOKEN", 401, {"WWW-Authenticate": "Bearer"})
