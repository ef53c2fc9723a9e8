"""A real headless Chromium, driven over its DevTools protocol with the WebSocket client that dlth already brings.

Neither selenium nor playwright: they would be dependencies for a dozen commands. Collected by `make test-browser`
alone, as `make test` needs nothing but Python.
"""

import asyncio
import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
TEXTS = {"Enter": "\r", " ": " "}


class Tab:
    """One page: commands are sent and answered one at a time, what the page reports meanwhile is kept in `events`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._count = loop, socket, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one DevTools command."""
        self._count += 1
        self._run(self._socket.send_json({"id": self._count, "method": method, "params": params}))
        while True:
            message = self._run(self._socket.receive_json())
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path, width: int = 1280, height: int = 900, mobile: bool = False, dark: bool = False) -> None:
        """Load a file in a window of the given size and wait until it is loaded and drawn."""
        scale = 2 if mobile else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._run(self._socket.receive_json()))
        self.drawn()

    def drawn(self) -> None:
        """Wait until what was asked for before is on the screen."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
        self.evaluate(frame)
        self.evaluate(frame)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression in the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after another, as a person would."""
        for key in keys:
            code = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
            text = {"text": TEXTS.get(key, key)} if len(key) == 1 or key in TEXTS else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)
        self.drawn()

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings that the page caused: exceptions, console, and refusals of its security policy."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, pictures inside the page left out."""
        asked = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, PATIENCE))


@pytest.fixture(scope="session")
def browser_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start Chromium with a fresh profile; gives its DevTools address."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert program, f"the browser tests need one of {', '.join(NAMES)}: apt-get install chromium"
    profile = tmp_path_factory.mktemp("profile")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr
            lines = iter(process.stderr.readline, "")
            yield next(match[1] for line in lines if (match := re.search(r"listening on ws://([^/]+)/", line)))
        finally:
            process.kill()


@pytest.fixture
def tab(browser_address: str) -> Iterator[Tab]:
    """A fresh page, offline."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        async with session.put(f"http://{browser_address}/json/new?about:blank") as answer:
            address = (await answer.json())["webSocketDebuggerUrl"]
        return session, await session.ws_connect(address, max_msg_size=0)

    session, socket = loop.run_until_complete(start())
    yield Tab(loop, socket)
    loop.run_until_complete(socket.close())
    loop.run_until_complete(session.close())
    loop.close()
