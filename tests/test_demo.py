"""The page to draw on: what it answers over HTTP, and a digit drawn in a browser."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Clone
from PIL import Image, ImageDraw

from mnist_exp.scripts.demo import called


@contextmanager
def served(clone: Clone, *arguments: str) -> Iterator[str]:
    """The address of a demo that has said that it listens."""
    process = clone.start("demo.py", "--port", "0", *arguments)
    try:
        line = process.stdout.readline()
        assert line.endswith("Ctrl-C ends it\n"), process.communicate()
        yield line.split()[0]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def asked(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def one() -> bytes:
    """A picture of the digit 1."""
    image = Image.new("RGB", (560, 560), "white")
    ImageDraw.Draw(image).line([(290, 80), (280, 480)], "black", 50)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_page_offers_the_runs_and_says_what_was_drawn(trained: Clone) -> None:
    with served(trained, "--run", "latest") as url:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=20) as page:
            text = page.read().decode()
        assert "<canvas" in text
        assert "//" not in text.replace("// One question", "")  # nothing comes from elsewhere
        status, runs = asked(f"{url}/runs")
        assert status == 200
        chosen, best = runs
        assert chosen == "latest"
        assert re.fullmatch(
            r"mlp-adam-lr0.01-.*, 9\d\.\d\d% in validation, [-\d]{10} \d\d:\d\d", best
        )
        for number in (0, 1):
            status, answer = asked(f"{url}/classify?run={number}", one())
            assert status == 200
            assert answer["names"] == list("0123456789")
            assert sum(answer["probabilities"]) == pytest.approx(1)
            assert [len(row) for row in answer["pixels"]] == [8] * 8
            assert answer["probabilities"].index(max(answer["probabilities"])) == 1

        blank = io.BytesIO()
        Image.new("RGB", (560, 560), "white").save(blank, "PNG")
        assert asked(f"{url}/classify", blank.getvalue()) == (200, {"error": "no digit found"})
        assert asked(f"{url}/classify", b"nonsense") == (200, {"error": "no image"})
        for wrong in ("classify?run=2", "classify?run=-1", "elsewhere"):
            assert asked(f"{url}/{wrong}", one())[0] == 404
        assert asked(f"{url}/../demo.py")[0] == 404
        server = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        server.putrequest("POST", "/classify")
        server.putheader("Content-Length", "1000000000")
        server.endheaders()  # the answer does not wait for a gigabyte
        assert server.getresponse().status == 413
        server.close()


def test_a_run_is_called_by_its_name_what_it_is_worth_and_when_it_began() -> None:
    began = datetime(2026, 11, 25, 9, 5).timestamp()
    assert called("resnet", began, 0.98765) == "resnet, 98.77% in validation, 2026-11-25 09:05"
    assert called("resnet", began, None) == "resnet, not validated, 2026-11-25 09:05"


def test_a_port_in_use_and_a_wrong_one_are_told_in_a_line(trained: Clone) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = trained.run("demo.py", "--port", str(port))
        expected = f"error: 127.0.0.1:{port}: address already in use; --port 0 takes a free one\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = trained.run("demo.py", "--host", "no host", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: no host:0: [a-z ]+\n", done.stderr)
    done = trained.run("demo.py", "--port", "70000")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --port 70000: must be an integer from 0 to 65535")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
def test_a_digit_drawn_with_the_mouse_is_read_from_the_page(trained: Clone, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={tmp_path}"):
        options.add_argument(f"--{argument}")
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with served(trained, "--run", "latest") as url, webdriver.Chrome(options, driver) as browser:
        browser.get(url)
        label, said = (browser.find_element("id", name) for name in ("label", "said"))
        awaited(lambda: said.text == "no digit found")
        pad = browser.find_element("id", "pad")
        drag(webdriver, browser, pad, [(10, -100), (5, 100)])
        awaited(lambda: label.text == "1")
        seen = browser.execute_script(
            "const seen = document.getElementById('seen');"
            "const data = seen.getContext('2d').getImageData(0, 0, seen.width, seen.height).data;"
            "return [seen.width, Math.max(...data.filter((_, n) => n % 4 == 0))]"  # of the reds
        )
        assert seen == [8, 255]
        assert len(browser.find_elements("css selector", "#bars .bar")) == 10
        assert len(browser.find_elements("css selector", "#runs option")) == 2
        browser.find_element("css selector", "#runs option:nth-child(2)").click()
        browser.find_element("id", "clear").click()
        awaited(lambda: label.text == "" and said.text == "no digit found")
        assert [entry["message"] for entry in browser.get_log("browser")] == []


def drag(webdriver: Any, browser: Any, pad: Any, places: list[tuple[int, int]]) -> None:
    """One stroke through these places, in pixels from the middle of the pad."""
    mouse = webdriver.ActionChains(browser, duration=50)
    mouse.move_to_element_with_offset(pad, *places[0]).click_and_hold()
    for place in places[1:]:
        mouse.move_to_element_with_offset(pad, *place)
    mouse.release().perform()


def awaited(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
