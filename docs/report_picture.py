"""Draw docs/report.png: the page of a run that was killed and resumed, in a browser, on a screen and on a phone.

    python docs/report_picture.py                       # needs Chromium; trains for some minutes
    python docs/report_picture.py --runs FOLDER         # keeps the runs, and uses them if they are there

Two runs of the built-in model are made, one with each engine; the first is killed in the middle and resumed. The pages
of each and of both are opened at 1280 and 400 pixels, light and dark. The script fails if the browser's console has an
entry, if a page asks for anything but itself, or if a page is wider than its window.
"""

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder

FIRST, SECOND = "first", "second"
COMMON = ["--launcher", "local", "--tp-size", "1", "--dp-size", "2", "--max-steps", "40", "--log-interval", "1"]
COMMON += ["--save-interval-steps", "10", "--eval-interval-steps", "20"]
SIZES = {"screen": 1280, "phone": 400}
SCHEMES = ("light", "dark")
PICTURE = Path(__file__).with_name("report.png")
CROP = 1850  # pixels of the page's top that the picture shows


class Browser:
    """Headless Chromium, spoken to by its DevTools protocol over two pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars"]
        switches += [f"--user-data-dir={profile}", "--no-first-run", "--disable-background-networking", "about:blank"]
        # The browser reads commands from descriptor 3 and writes answers to 4, each ended by a zero byte.
        command = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", program, *switches]
        self._process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def call(self, method: str, *, session: str | None = None, **values: Any) -> dict[str, Any]:
        """Sends a command and returns its result; what the browser says meanwhile is added to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise SystemExit(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            found = os.read(self._in, 1 << 20)
            if not found:
                raise SystemExit("the browser has ended")
            self._rest += found
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)


@contextmanager
def opened(browser: Browser, path: Path, *, width: int, scheme: str) -> Iterator[str]:
    """A tab with the page of so many pixels, of which the id is given."""
    browser.events.clear()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log"):
        browser.call(f"{domain}.enable", session=session)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", session=session, **metrics)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", session=session, features=media)
    browser.call("Page.navigate", session=session, url=path.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    yield session
    browser.call("Target.closeTarget", targetId=target)


def look(browser: Browser, path: Path, *, width: int, scheme: str) -> Image.Image:
    """The whole page as a picture; ends the script where the page is not in order."""
    with opened(browser, path, width=width, scheme=scheme) as session:
        size = browser.call("Page.getLayoutMetrics", session=session)["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = browser.call("Page.captureScreenshot", session=session, captureBeyondViewport=True, clip=clip)
    problems = list(find_problems(browser.events, path))
    if size["width"] > width:
        problems.append(f"the page is {size['width']} pixels wide")
    if problems:
        raise SystemExit(f"{path.name} at {width} pixels, {scheme}: {'; '.join(problems)}")
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def find_problems(events: list[dict[str, Any]], path: Path) -> Iterator[str]:
    """What the console says, and what the page asks for besides itself."""
    for event in events:
        match event.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                yield f"console: {event['params']}"
            case "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if url != path.resolve().as_uri() and not url.startswith("data:"):
                    yield f"asks for {url}"


def make_runs(storage: Path) -> None:
    """One run that is killed after step 15 and resumed, and one of the other engine."""
    run = RunFolder(storage / FIRST)
    place = ["--storage-path", str(storage)]
    command = [sys.executable, "-m", "tp2d_train"]
    train = [*command, "train", *COMMON, *place]
    with subprocess.Popen([*train, "--name", FIRST], stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while max((line["step"] for line in read_lines(run.metrics)[0]), default=0) < 16:
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode} before it could be killed")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([*command, "resume", FIRST, *place], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*train, "--name", SECOND, "--engine", "autotp"], check=True, stdout=subprocess.DEVNULL)


def make_page(storage: Path, *names: str) -> Path:
    """The page of these runs, by the command."""
    command = [sys.executable, "-m", "tp2d_train", "report", *names, "--storage-path", str(storage)]
    output = storage / f"{'-'.join(names)}.html"
    subprocess.run([*command, "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
    return output


def main(storage: Path, *, program: str) -> None:
    """Makes runs and pages, looks at each, and saves the picture; every screenshot stays in `storage`."""
    if not RunFolder(storage / SECOND).summary.exists():
        make_runs(storage)
    pages = [make_page(storage, *names) for names in ((FIRST,), (SECOND,), (FIRST, SECOND))]
    shots = {}
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, Path(profile))
        for path in pages:
            for (form, width), scheme in ((size, scheme) for size in SIZES.items() for scheme in SCHEMES):
                shot = shots[path.stem, form, scheme] = look(browser, path, width=width, scheme=scheme)
                shot.save(storage / f"{path.stem}-{form}-{scheme}.png")
        browser.close()
    print(f"{len(shots)} pages looked at: no console entry, nothing fetched, none wider than its window")
    _side_by_side(shots[FIRST, "screen", "light"], shots[f"{FIRST}-{SECOND}", "phone", "dark"])


def _side_by_side(screen: Image.Image, phone: Image.Image) -> None:
    picture = Image.new("RGB", (SIZES["screen"] + SIZES["phone"], CROP), "white")
    picture.paste(screen.crop((0, 0, SIZES["screen"], CROP)), (0, 0))
    picture.paste(phone.crop((0, 0, SIZES["phone"], CROP)), (SIZES["screen"], 0))
    picture.save(PICTURE, optimize=True)
    print(f"written: {PICTURE.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="chromium", help="the browser's program")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(options.runs or Path(temporary), program=options.chromium)
