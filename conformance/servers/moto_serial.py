"""moto's S3 behind one lock.

The stock ``moto_server`` is threaded and checks If-Match before it stores, in two steps: under load two writers can
both pass the check. Here requests are read in parallel but answered one at a time, so that a conditional PUT is atomic.

    moto_serial.py PORT
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

LOCALHOST = "127.0.0.1"


class Handler(WSGIRequestHandler):  # type: ignore[misc]
    protocol_version = "HTTP/1.1"

    def log_request(self, *args: Any) -> None:
        """Say nothing."""


class OneAtATime:
    """A WSGI application, never entered twice at once."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        whole = environ.get("wsgi.input_terminated")
        body = environ["wsgi.input"].read(-1 if whole else int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with self._lock:
            answer = self._application(environ, start_response)
            try:
                return [b"".join(answer)]
            finally:
                getattr(answer, "close", lambda: None)()


def main() -> None:
    application = OneAtATime(DomainDispatcherApplication(create_backend_app))
    make_server(LOCALHOST, int(sys.argv[1]), application, threaded=True, request_handler=Handler).serve_forever()


if __name__ == "__main__":
    main()
