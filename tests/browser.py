"""A headless Chromium for tests of pages."""
import base64
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
NO_GRAPHICS = ("--disable-gpu",)
SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


# viser's quads have two coordinates, of which three.js wants to know the extent in three; nothing depends on it.
HARMLESS = "Computed radius is NaN"


@contextmanager
def served(folder): # yields its address
    "A folder over HTTP, on this machine alone."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


class Browser:
    "Spoken to over its DevTools socket; the test is skipped where there is no Chromium."
    def __init__(self, folder, graphics=NO_GRAPHICS, patience=30): # seconds
        websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
        binary = next((found for name in NAMES if (found := shutil.which(name))), None)
        if binary is None: pytest.skip("no Chromium on this machine")
        options = ("--headless", "--no-sandbox", *graphics, "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--remote-debugging-port=0", "--remote-allow-origins=*")
        command = [binary, *options, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        port = folder/"DevToolsActivePort"
        end = time.time() + patience
        while not (port.exists() and port.read_text().count("\n")) and time.time() < end: time.sleep(.1)
        at = port.read_text().split()[0]
        tab = next(t for t in json.load(urllib.request.urlopen(f"http://127.0.0.1:{at}/json")) if t["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=patience)
        self.n, self.events = 0, []
        for domain in ("Page", "Runtime", "Network", "Log"): self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while True:
            m = json.loads(self.socket.recv())
            if m.get("id") == self.n: return m.get("result", m)
            self.events.append(m)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def js(self, code):
        r = self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in r, r
        return r["result"].get("value")

    def visit(self, url):
        "What went wrong on the way, and what was asked for."
        for address in ("about:blank", url): # what the page before has left to say is not this one's
            self.events.clear()
            self("Page.navigate", url=address)
            while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
                self.events.append(json.loads(self.socket.recv()))
        self.js("new Promise(r => setTimeout(r, 30))")
        return self.wrong(), self.asked()

    def asked(self): return [params["request"]["url"] for params in self.params_of("Network.requestWillBeSent")]

    def params_of(self, method): return [event["params"] for event in self.events if event.get("method") == method]

    def wrong(self):
        exceptions = [params["exceptionDetails"] for params in self.params_of("Runtime.exceptionThrown")]
        logged = [p["args"] for p in self.params_of("Runtime.consoleAPICalled") if p["type"] == "error"]
        entries = [p["entry"] for p in self.params_of("Log.entryAdded") if p["entry"]["level"] == "error"]
        failed = [p for p in self.params_of("Network.loadingFailed") if not p.get("canceled")]
        return exceptions + logged + entries + failed

    def screenshot(self) -> bytes: # of a PNG
        return base64.b64decode(self("Page.captureScreenshot")["data"])
