"""Use the viewer as an annotator does: the command, a real browser on its page, and the mouse."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

COMMAND = Path(sys.executable).with_name("labelrounds")
START_S, PATIENCE_S = 180, 60
VIEWS = ("Green", "Yellow", "ThreeD", "Red")  # from above, the left column first; Red is axial


class Viewer:
    """The running command.

    Args:
        server: address of the LabelRounds server.
        log: file for what it prints.
        options: further ones of the command.
    """

    def __init__(self, server: str, log: Path, *options: str) -> None:
        self._log = log
        command = [COMMAND, "viewer", "--server", server, "--port", "0", *options]
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"(https?://\S+)/\?key=(\S+)", self.printed())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"the viewer did not start:\n{self.printed()}")
            time.sleep(0.1)
        self.url, self.key = found.groups()

    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class ViewerUser:
    """An annotator at the viewer's page."""

    def __init__(self, page: Page, viewer: Viewer) -> None:
        self.page, self._viewer = page, viewer
        self.asked: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_S * 1000)
        expect.set_options(timeout=PATIENCE_S * 1000)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.enter()

    def enter(self) -> None:
        """Open the address that the command has printed."""
        self.page.goto(f"{self._viewer.url}/?key={self._viewer.key}")
        self.page.locator(".next").wait_for()

    def click(self, button: str) -> None:
        """Click one of the page's buttons: next, segment, submit, cancel, train, open, defer, skip, connect."""
        self.page.locator(f"button.{button}").click()

    def answer(self, choice: str) -> None:
        """Click a button of the question that is asked."""
        self.page.locator(".v-dialog button", has_text=choice).click()

    def says(self, text: str) -> None:
        """Wait until a text is the last thing that was done."""
        expect(self.page.locator(".sentence")).to_contain_text(text)

    def warns(self, text: str) -> None:
        """Wait until a text is shown as what went wrong, then close it."""
        expect(self.page.locator(".trouble")).to_contain_text(text)
        self.page.locator(".trouble button").click()
        expect(self.page.locator(".trouble")).to_have_count(0)

    def shown(self, part: str) -> str:
        return self.page.locator(f".{part}").first.inner_text()

    def image(self) -> str:
        return self.shown("image")

    def next_case(self) -> str:
        self.click("next")
        self.says("is yours")
        return self.image()

    def segment(self) -> None:
        self.click("segment")
        self.says("has segmented")

    def submit(self) -> None:
        self.click("submit")
        self.says("is submitted")

    def log_in(self, name: str, key: str) -> None:
        self.page.get_by_label("User name").fill(name)
        self.page.get_by_label("Key or password").fill(key)
        self.page.locator(".v-dialog button", has_text="Log in").click()

    def use(self, model: str) -> None:
        """Choose the model."""
        self.page.locator(".v-select", has=self.page.get_by_label("Model", exact=True)).click()
        self.page.locator(".v-overlay .v-list-item").get_by_text(model, exact=True).click()

    def open(self, image: str) -> None:
        """Open one of the server's images."""
        box = self.page.get_by_label("Or one of these")
        box.fill(image)
        self.page.locator(".v-overlay .v-list-item", has_text=image).first.click()
        self.click("open")
        self.says(f"{image} is open")

    def labels(self) -> list[str]:
        """Return the segments' names, in their order."""
        names = self._segments().locator("input")
        return [names.nth(place).input_value() for place in range(names.count())]

    def choose(self, label: str) -> None:
        """Choose the segment that is drawn on."""
        row = self._segments().nth(self.labels().index(label))
        row.click(position={"x": 12, "y": 12})
        expect(row).to_have_class(re.compile("v-list-item--active"))

    def tool(self, icon: str) -> None:
        """Take a tool, by its icon's name: brush, eraser; or undo or redo."""
        self.page.locator(f".v-navigation-drawer--right button:has(.mdi-{icon})").first.click()

    def can(self, icon: str) -> bool:
        return self.page.locator(f".v-navigation-drawer--right button:has(.mdi-{icon})").first.is_enabled()

    def make_brush_smaller(self) -> None:
        """Make the brush less than half as large as it is at first."""
        thumb = self.page.locator(".v-navigation-drawer--right .v-slider-thumb").first
        for _step in range(3):
            thumb.press("ArrowLeft")

    def dab(self, right: float = 0, down: float = 0) -> None:
        """Click into the axial view, so many pixels from its middle, and wait until the colour there has changed."""
        middle = self.middle("Red")
        x, y = middle[0] + right, middle[1] + down

        def colour() -> np.ndarray:
            shown = self.page.screenshot(clip={"x": x - 2, "y": y - 2, "width": 5, "height": 5})
            return np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).mean(axis=(0, 1))

        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(300)
        before = colour()
        self.page.mouse.down()
        self.page.wait_for_timeout(100)  # the page passes on at most a hundred events a second
        self.page.mouse.up()
        self.wait_until(lambda: np.abs(colour() - before).max() > 15)

    def middle(self, view: str) -> tuple[float, float]:
        box = self._box(view)
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def pixels(self, view: str) -> np.ndarray:
        """Return the colours of a view, (rows, columns, 3)."""
        shown = self.page.screenshot(clip=self._box(view))
        return np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)

    def coloured(self, view: str) -> int:
        """Return how many of a view's pixels are neither black, white nor grey, as those of a segment are."""
        return int((np.ptp(self.pixels(view), axis=2) > 24).sum())

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            self.page.wait_for_timeout(400)

    def _segments(self):
        return self.page.locator(".v-navigation-drawer--right .v-list-item")

    def _box(self, view: str) -> dict:
        return self.page.locator(".layout-grid-item").nth(VIEWS.index(view)).bounding_box()
