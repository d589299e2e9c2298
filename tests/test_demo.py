"""The demo page: its answers over HTTP, and a digit drawn in a browser."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from conftest import Clone, Like
from PIL import Image, ImageDraw

from mnist_exp.cli.demo import describe, list_runs
from mnist_exp.tracking import FinishedRun, Score

if TYPE_CHECKING:
    from mnist_exp.inference.classifier import Classifier


@contextmanager
def serve(
    clone: Clone, *arguments: str, patch: str = "", end: int = signal.SIGTERM
) -> Iterator[str]:
    """The addresses of a demo that listens; it ends quickly at a signal, having logged nothing.

    patch: code to run first, with mnist_exp.inference.page as `demo`.
    """
    imports = "from mnist_exp.inference import page as demo"
    code = f"{imports}\n{patch}\nfrom mnist_exp.cli.demo import demo; demo()"
    process = clone.start(*(["-c", code] if patch else ["demo.py"]), "--port", "0", *arguments)
    try:
        line = process.stdout.readline()
        assert line.endswith("   Ctrl-C ends it\n"), process.communicate()
        yield line.removesuffix("   Ctrl-C ends it\n")
        process.send_signal(end)
        out, err = process.communicate(timeout=10)
        assert (out, err.partition(", ")[2]) == ("", "trained on digits\n")
        assert process.returncode == 128 + end
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(trained: Clone) -> Iterator[str]:
    """The address of a demo that offers the latest run, and all runs."""
    with serve(trained, "--run", "latest") as address:
        yield address


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def exchange(url: str, request: str, *headers: str, body: bytes = b"") -> int:
    """The status of the answer to these bytes, with a Host header if there is none."""
    named = any(header.lower().startswith("host:") for header in headers)
    lines = [request, *headers] if named else [request, f"Host: {urlsplit(url).netloc}", *headers]
    with connect(url) as connection:
        with suppress(ConnectionError):  # it need not read all of it
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return int(connection.recv(1000).split()[1])


def one() -> bytes:
    """A picture of the digit 1."""
    image = Image.new("RGB", (560, 560), "white")
    ImageDraw.Draw(image).line([(290, 80), (280, 480)], "black", 50)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_page_offers_the_runs_and_classifies_a_drawing(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=20) as page:
        text = page.read().decode()
    assert "<canvas" in text
    assert "//" not in text.replace("// One question", "")  # nothing comes from elsewhere
    status, runs = ask(f"{url}/runs")
    assert status == 200
    chosen, best = runs
    assert chosen == "digits, latest"
    assert re.fullmatch(
        r"digits, mlp-adam-lr0.01-.*, val/accuracy 0\.9\d+, [-\d]{10} \d\d:\d\d", best
    )
    for number in (0, 1):
        status, answer = ask(f"{url}/classify?run={number}", one())
        assert status == 200
        assert answer["names"] == list("0123456789")
        (digit,) = answer["digits"]
        assert sum(digit["probabilities"]) == pytest.approx(1)
        assert [len(row) for row in digit["pixels"]] == [8] * 8
        assert digit["probabilities"].index(max(digit["probabilities"])) == 1

    blank = io.BytesIO()
    Image.new("RGB", (560, 560), "white").save(blank, "PNG")
    assert ask(f"{url}/classify", blank.getvalue()) == (200, {"error": "no digit found"})
    assert ask(f"{url}/classify", b"nonsense") == (200, {"error": "not an image"})


def encode_chunked(size: int) -> bytes:
    chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    return chunk * (size // 100_000) + b"0\r\n\r\n"


def weights(clone: Clone) -> str:
    return str(clone.folders()[-1] / "checkpoints" / "last.pt")


def test_requests_are_answered_or_refused(url: str) -> None:
    digits, post, get = "9" * 5000, "POST /classify HTTP/1.1", "GET /runs HTTP/1.1"
    short, chunks = "Content-Length: 1", "Transfer-Encoding: chunked"
    port, own = urlsplit(url).port, f"Origin: {url}"
    table: list[tuple[int, str, list[str], bytes]] = [
        (200, "GET / HTTP/1.1", [], b""),
        (200, get, [], b""),
        # the Host header
        (200, get, [f"Host: localhost:{port}"], b""),
        (200, get, ["Host: LocalHost"], b""),
        (200, get, [f"Host: [::1]:{port + 1}"], b""),  # the port of a tunnel
        (400, get, [f"Host: evil.example:{port}"], b""),
        (400, get, ["Host: localhost.evil.example"], b""),
        (400, get, ["Host: 127.0.0.1.evil.example"], b""),
        (400, get, ["Host: 192.0.2.1"], b""),
        (400, get, ["Host: [::1"], b""),
        (400, get, ["Host: ²"], b""),
        (400, get, ["Host: "], b""),
        (400, get, ["Host: localhost", "Host: evil.example"], b""),
        (400, post, ["Host: evil.example", short, "Origin: http://evil.example"], b"x"),
        # where a POST comes from
        (200, post, [short], b"x"),
        (200, post, [short, own], b"x"),
        (200, post, [short, own, "Sec-Fetch-Site: same-origin"], b"x"),
        (200, post, [short, "Origin: https://a.proxy", "Sec-Fetch-Site: same-origin"], b"x"),
        (403, post, [short, "Origin: http://127.0.0.1:1"], b"x"),
        (403, post, [short, "Origin: http://evil.example"], b"x"),
        (403, post, [short, "Origin: null"], b"x"),
        (403, post, [short, own, "Sec-Fetch-Site: same-site"], b"x"),
        (403, post, [short, "Sec-Fetch-Site: cross-site"], b"x"),
        # sizes
        (200, post, ["Content-Length: 10000000"], b"x" * 10_000_000),
        (413, post, ["Content-Length: 10000001"], b""),
        (413, post, ["Expect: 100-continue", "Content-Length: 1000000000"], b""),
        (200, post, [chunks], encode_chunked(10_000_000)),
        (413, post, [chunks], encode_chunked(30_000_000)),
        (400, post, [chunks], b"zz\r\n"),
        (400, post, [chunks], digits.encode() + b"\r\n"),
        (400, post, [f"Content-Length: {digits}"], b""),
        (400, post, ["Content-Length: ²"], b""),
        (400, post, ["Content-Length: -1"], b""),
        (400, get, ["X: " + "x" * 1_000_000], b""),
        # not HTTP
        (400, "\x16\x03\x01\x02", [], b""),
        (400, "GET /", [], b""),
        (400, "GET /é HTTP/1.1", [], b""),
        (400, "POST /classify?run=² HTTP/1.1", [short], b"x"),
        (405, "GET /classify HTTP/1.1", [], b""),
    ]
    for run in ("2", "-1", "%C2%B2", "%FF", "%", "", "00", digits):
        table.append((404, f"POST /classify?run={run} HTTP/1.1", [short], b"x"))
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "FOO"):
        table.append((405, f"{method} / HTTP/1.1", [], b""))
    absolute = ["http://evil.example/runs", f"{url}/runs", "http://[", "//[evil", "*"]
    absent = ["/elsewhere", "/runs/", "/../demo.py", "/%2e%2e/demo.py", "/%", "/%FF", f"/{digits}"]
    for path in (*absolute, *absent, "/docs", "/redoc", "/openapi.json"):
        table.append((404, f"GET {path} HTTP/1.1", [], b""))
    for status, request, headers, body in table:
        found = exchange(url, request, *headers, body=body)
        assert found == status, (request[:50], [header[:50] for header in headers])


def test_answers_keep_other_sites_out(url: str) -> None:
    for path in ("/", "/runs", "/elsewhere"):
        with connect(url) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.slow
def test_a_slow_client_or_model_holds_up_nobody(trained: Clone) -> None:
    patch = """
import time
classify, demo.MOST_SECONDS, demo.MOST_CONNECTIONS = demo.classify, 0.5, 4
demo.classify = lambda *arguments: time.sleep(1) or classify(*arguments)"""
    get, post = "GET /runs HTTP/1.1", "POST /classify HTTP/1.1"
    unfinished = f"{post}\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx".encode()
    waiting = []
    with serve(trained, "--checkpoint", weights(trained), patch=patch, end=signal.SIGINT) as url:
        assert exchange(url, post, "Content-Length: 9", body=b"x") == 408
        assert exchange(url, post, "Transfer-Encoding: chunked", body=b"1\r\nx\r\n") == 408
        with connect(url) as cut:
            cut.sendall(unfinished)
        with connect(url) as late:  # what is malformed after the answer
            late.sendall(f"{get}\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            assert late.recv(12) == b"HTTP/1.1 200"
            late.sendall(b"zz\r\n\r\n")
            while late.recv(10_000):
                pass

        with ThreadPoolExecutor() as threads:  # pictures, one at a time
            began = time.monotonic()
            answers = [threads.submit(ask, f"{url}/classify", one()) for _ in range(2)]
            assert exchange(url, get) == 200
            assert time.monotonic() - began < 1
            assert [answer.result()[0] for answer in answers] == [200, 200]
            assert time.monotonic() - began > 2

        with connect(url), connect(url), connect(url):
            wait_until(lambda: exchange(url, get) == 503)
        wait_until(lambda: exchange(url, get) == 200)
        waiting.append(connect(url))  # does not delay the end
        waiting[0].sendall(unfinished)
    waiting[0].close()


@pytest.mark.slow
def test_no_answer_has_a_path_of_the_machine(trained: Clone) -> None:
    file = Path(weights(trained))
    folder, whole = file.parents[1], file.read_bytes()
    process = trained.start("demo.py", "--port", "0", "--run", str(folder))
    try:
        url = process.stdout.readline().split()[0]
        file.write_bytes(b"nonsense")
        assert ask(f"{url}/runs")[1][0] == f"digits, {folder.name}"
        status, answer = ask(f"{url}/classify?run=1", one())
        assert (status, list(answer)) == (200, ["error"])
        assert str(trained.root) not in answer["error"]
    finally:
        file.write_bytes(whole)
        process.terminate()
        said = process.communicate(timeout=10)[1]
    assert re.fullmatch(rf".*digits\nerror: {re.escape(str(file))}: .*\n", said)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


LOOPBACK, SHOWN = ("::1", r"\[::1\]") if has_ipv6() else ("127.0.0.1", r"127\.0\.0\.1")


@pytest.mark.parametrize(
    ("hosts", "addresses", "accepted", "refused"),
    [
        (
            [LOOPBACK, "A.proxy"],
            rf"http://{SHOWN}:\d+",
            ["localhost", "[::1]", "a.proxy", "a.proxy:80"],
            ["[2001:db8::1]", "192.0.2.1", "b.a.proxy"],
        ),
        (
            ["0.0.0.0"],
            r"http://127\.0\.0\.1:\d+   http://.+:\d+",
            ["localhost", "192.0.2.1", "[2001:db8::1]:80", socket.gethostname()],
            ["evil.example", "192.0.2.1.evil.example"],
        ),
    ],
)
def test_the_page_is_opened_by_the_names_it_was_given(
    hosts: list[str], addresses: str, accepted: list[str], refused: list[str]
) -> None:
    from mnist_exp.inference.page import Demo  # imports torch

    def load(number: int) -> Classifier:
        raise ValueError("this test needs no model")

    page = Demo(hosts, 0)
    threading.Thread(target=page.serve, args=(["a run"], load), daemon=True).start()
    assert re.fullmatch(addresses, "   ".join(page.addresses))
    get, post, short = "GET /runs HTTP/1.1", "POST /classify HTTP/1.1", "Content-Length: 1"
    url = page.addresses[0]
    for host in accepted:
        own = [f"Host: {host}", f"Origin: http://{host}"]
        assert exchange(url, get, f"Host: {host}") == 200
        assert exchange(url, post, *own, short, body=b"x") == 200
    for host in refused:
        assert exchange(url, get, f"Host: {host}") == 400
    # behind a proxy without https that replaces Host by the address it forwards to
    own_host = exchange(url, post, "Origin: http://a.proxy:8000", short, body=b"x")
    assert own_host == (200 if "A.proxy" in hosts else 403)


def test_a_run_is_described_by_data_set_name_accuracy_and_beginning() -> None:
    score = Score("val/accuracy", 0.98765, True)
    run = FinishedRun("1", "resnet", "mnist", "", datetime(2026, 11, 25, 9, 5).timestamp(), score)
    assert describe(run) == "mnist, resnet, val/accuracy 0.9877, 2026-11-25 09:05"
    blind = run._replace(score=None)
    assert describe(blind) == "mnist, resnet, not validated, 2026-11-25 09:05"


def test_the_runs_on_the_data_set_of_the_chosen_one_are_listed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = ("kmnist", "digits", "cifar10", "digits")
    ranked = [FinishedRun(str(n), "mlp", name, "", 0.0, None) for n, name in enumerate(sets)]
    monkeypatch.setattr("mnist_exp.experiment.find.rank_runs", lambda *arguments: ranked)
    assert [word for _, word in list_runs("mnist_exp", "digits")] == ["1", "3", "2", "0"]


def test_a_port_in_use_and_an_invalid_port_are_one_line(trained: Clone) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = trained.run("demo.py", "--port", str(port))
        expected = Like(f"error: 127.0.0.1:{port}: address already in use; --port 0…\n")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = trained.run("demo.py", "--host", "a..b", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: a..b:0: [a-z ]+\n", done.stderr)
    done = trained.run("demo.py", "--port", "70000")
    assert done.returncode == 2
    assert done.stderr == Like("error: --port 70000: …integer from 0 to 65535…\n")


@contextmanager
def proxy(target: str, prefix: str, pass_host: bool) -> Iterator[int]:
    """The port of a reverse proxy that serves `target` below the prefix, as JupyterHub does.

    pass_host: whether the Host header stays as the browser sent it, else it is the target's.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            headers = dict(self.headers)
            if not pass_host:
                del headers["Host"]
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=20)
            connection.request(self.command, self.path.removeprefix(prefix[:-1]), body, headers)
            answer = connection.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
            connection.close()

        do_GET = do_POST = forward  # noqa: N815

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium, for which the names below .example are this machine."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={tmp_path}"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP *.example 127.0.0.1")
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, driver) as chromium:
        yield chromium


needs_chromium = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="needs Chromium and its driver"
)


@pytest.mark.slow
@needs_chromium
def test_a_digit_drawn_with_the_mouse_is_read_from_the_page(url: str, browser: Any) -> None:
    browser.get(url)
    label, said = (browser.find_element("id", name) for name in ("label", "said"))
    wait_until(lambda: said.text == "no digit found")
    draw_one(browser)
    wait_until(lambda: label.text == "1")
    seen = browser.execute_script(
        "const seen = document.querySelector('#seen canvas');"
        "const data = seen.getContext('2d').getImageData(0, 0, seen.width, seen.height).data;"
        "return [seen.width, Math.max(...data.filter((_, n) => n % 4 == 0))]"  # of the reds
    )
    assert seen == [8, 255]
    assert len(browser.find_elements("css selector", "#bars .bar")) == 10
    assert len(browser.find_elements("css selector", "#runs option")) == 2
    browser.find_element("css selector", "#runs option:nth-child(2)").click()
    browser.find_element("id", "clear").click()
    wait_until(lambda: label.text == "" and said.text == "no digit found")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.mark.slow
@needs_chromium
def test_the_page_works_behind_a_proxy_with_a_prefix(trained: Clone, browser: Any) -> None:
    prefix = "/user/ada/proxy/7860/"
    names = ("--host", "127.0.0.1", "--host", "hub.example")
    with serve(trained, "--checkpoint", weights(trained), *names) as url:
        for host, pass_host in (
            ("hub.example", True),
            ("hub.example", False),
            ("127.0.0.1", False),
        ):
            with proxy(url, prefix, pass_host) as port:
                browser.get(f"http://{host}:{port}{prefix}")
                wait_until(lambda: browser.find_element("id", "said").text == "no digit found")
                draw_one(browser)
                wait_until(lambda: browser.find_element("id", "label").text == "1")
                assert [entry["message"] for entry in browser.get_log("browser")] == []
        browser.get(url.replace("127.0.0.1", "rebound.example"))
        assert "not a name" in browser.page_source


def draw_one(browser: Any) -> None:
    """One stroke down the middle of the pad."""
    from selenium.webdriver import ActionChains

    pad = browser.find_element("id", "pad")
    mouse = ActionChains(browser, duration=50)
    mouse.move_to_element_with_offset(pad, 10, -100).click_and_hold()
    mouse.move_to_element_with_offset(pad, 5, 100).release().perform()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
