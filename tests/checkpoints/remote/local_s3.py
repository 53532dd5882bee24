"""An S3 on this machine, moto's server, whose network can be made as bad as real ones are."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}
REFUSED = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId></Error>"


@dataclass
class Request:
    method: str
    path: str
    query: str
    range: str

    @property
    def is_listing(self) -> bool:
        return "list-type" in self.query


@dataclass
class LocalS3:
    """A server in a thread. What it is asked passes through here first."""

    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0  # of objects
    throttled: int = 0  # the next so many listings and GETs of objects are answered with 503 SlowDown
    cut: int = 0  # and so many end in the middle
    forbidden: Callable[[Request], bool] = lambda request: False
    before_get: Callable[[int], None] = lambda number: None  # called with the number of the GET of an object

    def __post_init__(self) -> None:
        import boto3  # half as long to import as torch
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.client = boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id="local", aws_secret_access_key="local",
            region_name="us-east-1",
        )  # fmt: skip

    def stop(self) -> None:
        self.client.close()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put(self, bucket: str, **objects: bytes) -> None:
        self.client.put_object(Bucket=bucket, **objects)

    @property
    def gets(self) -> list[Request]:
        """Those of objects."""
        return [r for r in self.requests if r.method == "GET" and not r.is_listing and r.path.count("/") > 1]

    @property
    def listings(self) -> list[Request]:
        return [request for request in self.requests if request.is_listing]

    def forget(self) -> None:
        self.requests.clear()
        self.sent_bytes = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], environ.get("HTTP_RANGE", "")
        )
        self.requests.append(request)
        is_object = request in self.gets
        if is_object:
            self.before_get(len(self.gets))
        if self.forbidden(request):
            return refuse(request, start_response, "403 Forbidden", b"AccessDenied", b"Access Denied")
        if (is_object or request.is_listing) and self.throttled:
            self.throttled -= 1
            return refuse(request, start_response, "503 Slow Down", b"SlowDown", b"Please reduce your request rate.")
        body = self.moto(environ, start_response)
        if not is_object:
            return body
        content = b"".join(body)
        if self.cut:
            self.cut -= 1
            return half(content, environ["werkzeug.socket"])
        self.sent_bytes += len(content)
        return [content]


def refuse(
    request: Request, start_response: Callable[..., Any], status: str, code: bytes, message: bytes
) -> list[bytes]:
    body = b"" if request.method == "HEAD" else REFUSED % (code, message)
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def half(content: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    connection.shutdown(socket.SHUT_RDWR)
