"""A web page to draw on, and a model that reads the drawing.

FastAPI on uvicorn, which MLflow installs, and one HTML file: nothing is loaded from elsewhere.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from errno import EADDRINUSE
from hashlib import sha256
from io import BytesIO
from ipaddress import ip_address
from logging import getLogger
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mnist_exp.errors import BadInput, one_line, print_line
from mnist_exp.inference.classifier import Classifier
from mnist_exp.inference.preprocess import UnreadableImage

PAGE = Path(__file__).with_suffix(".html").read_text("utf-8")
MOST_BYTES = 10_000_000  # of a picture
MOST_SECONDS = 20  # for receiving a picture
MOST_CONNECTIONS = 100  # an idle one counts: uvicorn waits for headers without a limit


def allow(tag: str) -> str:
    """The page's script or style as a content security policy names it: by its digest."""
    content = PAGE.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"{tag}-src 'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {allow('script')}; {allow('style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Demo:
    """Accepts connections from the start, and answers them in `serve`.

    hosts: the address to listen on, then more names that may open the page, such as a proxy's.
    Raises BadInput if it cannot listen there.
    """

    def __init__(self, hosts: Sequence[str], port: int) -> None:
        shown = [f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]]
        try:
            family, *_, address = socket.getaddrinfo(hosts[0], port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(address)
            self.socket.listen()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", "not a host name").lower()
            in_use = getattr(error, "errno", None) == EADDRINUSE
            remedy = "; --port 0 picks a free one" if in_use else ""
            raise BadInput(f"{shown[0]}:{port}: {reason}{remedy}") from None
        bound, port, *_ = self.socket.getsockname()
        self.given = {name.lower() for name in hosts[1:]}
        self.names = {"localhost", "127.0.0.1", "::1", bound, hosts[0].lower()} | self.given
        self.everywhere = ip_address(bound).is_unspecified
        if self.everywhere:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            shown = ["[::1]" if ":" in bound else "127.0.0.1", socket.gethostname()]
        self.addresses = [f"http://{host}:{port}" for host in shown]  # to open in a browser

    async def check(self, request: Request) -> None:
        """Refuse a request for a name that is not ours, and a POST from another site's page.

        In DNS rebinding, the owner of a name points it at this machine, so that the browser
        takes our page for theirs; the Host header still has their name. Nobody can do that with an
        address: if we listen on all addresses, any is accepted.
        """
        host, origin, site = map(request.headers.get, ("host", "origin", "sec-fetch-site"))
        name = parse_host(host or "")
        is_address = ":" in name or name.replace(".", "").isdigit()
        if name not in self.names and not (self.everywhere and is_address):
            remedy = "to open the page by this name, start demo.py with it as a second --host"
            raise HTTPException(400, f"Host {name}: not a name of this page; {remedy}")
        # Browsers send Origin with each POST, and over https or to loopback also Sec-Fetch-Site,
        # which stays right behind a proxy that changes Host. What sends neither is not a browser.
        sender = (origin or "").partition("://")[2]
        own = not origin or sender == host or parse_host(sender) in self.given
        if request.method == "POST" and not (site == "same-origin" if site else own):
            raise HTTPException(403, "only the page itself may send a picture")

    def serve(self, names: Sequence[str], load: Callable[[int], Classifier]) -> None:
        """Answer until the process ends. load: the model of a run by its place in `names`."""
        app = FastAPI(openapi_url=None, redirect_slashes=False, dependencies=[Depends(self.check)])
        worker = ThreadPoolExecutor(1)  # one picture at a time: torch's settings are the process's

        @app.exception_handler(HTTPException)
        async def refuse(request: Request, error: HTTPException) -> JSONResponse:
            headers = {**(error.headers or {}), "Connection": "close"}  # do not wait for the body
            return JSONResponse({"error": error.detail}, error.status_code, headers)

        @app.get("/")
        async def page() -> HTMLResponse:
            return HTMLResponse(PAGE)

        @app.get("/runs")
        async def runs() -> JSONResponse:
            return JSONResponse(names)

        @app.post("/classify")
        async def answer(request: Request, run: str = "0") -> JSONResponse:
            if run not in map(str, range(len(names))):
                raise HTTPException(404, "there is no such run")
            picture, loop = await receive(request), asyncio.get_running_loop()
            found = await loop.run_in_executor(worker, classify, picture, load, int(run))
            return JSONResponse(found)

        config = uvicorn.Config(
            app,
            http="h11",  # refuses large headers and lengths of more than 20 digits
            ws="none",
            log_config=None,
            log_level="critical",
            headers=list(HEADERS.items()),
            limit_concurrency=MOST_CONNECTIONS,
        )
        getLogger("asyncio").setLevel("CRITICAL")  # shows what uvicorn raises for malformed bodies
        # In the main thread uvicorn would take the signals, and wait for connections to end.
        thread = Thread(target=uvicorn.Server(config).run, args=([self.socket],), daemon=True)
        thread.start()
        thread.join()


def parse_host(authority: str) -> str:
    """The host of `host:port` in lower case, without brackets; empty if that is malformed."""
    found = re.fullmatch(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d+)?", authority.lower(), re.ASCII)
    return found[1] or found[2] if found else ""


async def receive(request: Request) -> bytes:
    """The body. Raises HTTPException if it is too large, too slow or incomplete."""
    too_large = HTTPException(413, f"at most {MOST_BYTES // 10**6} MB")

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise too_large
        return bytes(body)

    if int(request.headers.get("content-length", 0)) > MOST_BYTES:
        raise too_large
    try:
        return await asyncio.wait_for(read(), MOST_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"not received within {MOST_SECONDS} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "incomplete") from None


def classify(picture: bytes, load: Callable[[int], Classifier], number: int) -> dict[str, Any]:
    """Classify an image file by the model of a run; returns the answer, or an error."""
    try:
        classifier = load(number)
        (found,) = classifier.classify([("", BytesIO(picture))])
    except Exception as error:  # its message may name folders, so it stays on this machine
        print_line(f"error: {one_line(error)}", sys.stderr)
        return {"error": "this run does not work; the terminal of demo.py says why"}
    if isinstance(found, UnreadableImage):
        return {"error": str(found)}
    names = classifier.trained.kind.class_names
    digits = [
        {
            "box": each.found.box,
            "probabilities": [each.probabilities[name] for name in names],
            "pixels": each.found.image.transpose(1, 2, 0).tolist(),
        }
        for each in found
    ]
    return {"names": names, "digits": digits}
