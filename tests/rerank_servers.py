"""`marcorank serve` on loopback, as a process of its own or in a thread, for tests."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from marcorank.serving.process import ServerProcess
from marcorank.serving.running import Stop, run_server
from marcorank.serving.settings import ProcessSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from marcorank import Reranker

# No test should take as long; a server that hangs must not keep the tests from ending.
TIMEOUT_S = 60.0


class ServerCommand:
    """A running `marcorank serve`.

    Attributes:
        process: The process.
        url: Its address, once it listens.
    """

    url: str

    def __init__(self, *options: str, environment: Mapping[str, str]) -> None:
        self._lines: list[str] = []
        self._read = 0
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "marcorank", "serve", "--port", "0", *options],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """Everything that was logged so far."""
        return "\n".join(self._lines)

    def logged(self, pattern: str) -> re.Match[str]:
        """Return the next match in the log; fails if the process ends before there is one."""
        deadline = time.monotonic() + TIMEOUT_S
        with self._changed:
            while True:
                while self._read < len(self._lines):
                    found = re.search(pattern, self._lines[self._read])
                    self._read += 1
                    if found:
                        return found
                assert not self._ended, self.log
                assert self._changed.wait(deadline - time.monotonic()), self.log

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for the end of the process, and of its log; return the exit status."""
        found = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return found

    def close(self) -> None:
        """End the process if it runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(TIMEOUT_S)
        self.process.stderr.close()


@contextmanager
def server_command(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[ServerCommand]:
    """Run the command until the block ends; it listens, and has loaded its model."""
    server = ServerCommand(*options, environment=environment or {})
    try:
        server.url = server.logged(r"at (http://\S+)")[1]
        server.logged(r"Ready\.")
        yield server
    finally:
        server.close()


class ThreadServer:
    """A server in a thread.

    Attributes:
        url: Its address.
        app: The application, once it listens.
        stop: Stops it.
        opened: Set when it accepts requests.
        error: What ended it, if it failed.
    """

    app: ServerProcess
    stop: Stop

    def __init__(self, reranker: Reranker | None, settings: ProcessSettings) -> None:
        self._reranker = reranker
        self._settings = settings
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._started = threading.Event()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.opened = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._started.wait(TIMEOUT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            self._started.set()
            self._listening.close()

    async def _serve(self) -> None:
        self.app = ServerProcess(self._settings, self._reranker)
        self.stop = Stop()

        def loaded() -> None:
            self.app.open()
            self.opened.set()

        self._started.set()
        await run_server(
            self.app, self._listening, self.stop, loaded=loaded, head_timeout_s=self._settings.body_timeout_s
        )


@contextmanager
def server_thread(
    reranker: Reranker | None = None,
    *,
    wait: bool = True,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[ThreadServer]:
    """Run a server until the block ends; with `wait`, its model is loaded."""
    server = ThreadServer(reranker, ProcessSettings.of(settings, environment or {}))
    try:
        assert not wait or server.opened.wait(TIMEOUT_S), server.error
        yield server
    finally:
        for _ in range(2):  # at once
            server.stop.request()
        server.thread.join(TIMEOUT_S)
        assert not server.thread.is_alive()
