"""A page to draw on, and the model that says what was drawn.

The standard library's server and one HTML file: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from errno import EADDRINUSE
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mnist_exp.errors import BadInput, Failure
from mnist_exp.preparing import prepare
from mnist_exp.trained import Trained

PAGE = Path(__file__).with_suffix(".html")
MOST_BYTES = 10_000_000  # of a picture
AT_ONCE = 4  # models that are kept in memory


class Demo(ThreadingHTTPServer):
    """Listens at once; `serve_forever` wants models, see `offer`.

    Raises BadInput where it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        try:
            super().__init__((host, port), Answer)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            remedy = "; --port 0 takes a free one" if error.errno == EADDRINUSE else ""
            raise BadInput(f"{host}:{port}: {reason}{remedy}") from None

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is said of a browser that has gone away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def offer(self, names: Sequence[str], load: Callable[[int], Trained]) -> None:
        """Which models there are to choose from. load: one by its place in `names`."""
        self.names, self.loaded, self.one = list(names), lru_cache(AT_ONCE)(load), Lock()

    def classify(self, picture: bytes, number: int) -> dict[str, Any]:
        """What a model makes of an image file. Raises Failure."""
        with self.one:  # as threads, determinism and memory are
            trained = self.loaded(number)
            image = prepare(BytesIO(picture), trained.kind)
            logits = trained.logits(image[None])[0]
        return {
            "names": trained.kind.class_names,
            "probabilities": logits.softmax(dim=0).tolist(),
            "pixels": image.permute(1, 2, 0).tolist(),
        }


class Answer(BaseHTTPRequestHandler):
    """To one request."""

    server: Demo
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            self.send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/runs":
            self.send_json(200, self.server.names)
        else:
            self.send_json(404, {"error": "there is no such page"})

    def do_POST(self) -> None:
        """/classify?run=N, with an image file as the body."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # with the body in it
            self.send_json(413, {"error": f"at most {MOST_BYTES // 10**6} MB"})
            return
        picture, asked = self.rfile.read(int(length)), urlsplit(self.path)
        number = parse_qs(asked.query).get("run", ["0"])[0]
        known = number.isdecimal() and int(number) < len(self.server.names)
        if asked.path != "/classify" or not known:
            self.send_json(404, {"error": "there is no such page or run"})
            return
        try:
            self.send_json(200, self.server.classify(picture, int(number)))
        except Failure as error:
            self.send_json(200, {"error": str(error)})

    def send_json(self, status: int, content: object) -> None:
        self.send(status, json.dumps(content).encode(), "application/json")

    def send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """A line for each stroke is of no use."""
