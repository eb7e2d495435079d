"""A tiny real HTTP server that answers as a test says: for the SDK's behaviour on the wire (retries, streams, TLS)."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    handler: BaseHTTPRequestHandler


@dataclass
class Script:
    """`answer(request)` gives (status, JSON), or None when it has written to `request.handler` itself."""

    answer: Callable[[Request], tuple[int, Any] | None] = lambda _: (404, {"code": "NOT_FOUND", "message": "?"})
    seen: list[Request] = field(default_factory=list)
    url: str = ""


@contextmanager
def scripted(context: ssl.SSLContext | None = None) -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body, self)
            script.seen.append(request)
            found = script.answer(request)
            if found is None:
                self.close_connection = True
                return
            content = found[1] if isinstance(found[1], bytes) else json.dumps(found[1]).encode()
            self.send_response(found[0])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    script.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def events(request: Request, *lines: tuple[str, Any]) -> None:
    """Begin (and break off) a stream of server-sent events."""
    handler = request.handler
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("connection", "close")
    handler.end_headers()
    for name, data in lines:
        handler.wfile.write(f": a comment\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
