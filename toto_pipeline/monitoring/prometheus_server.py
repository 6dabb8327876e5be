"""A small web server that shows a registry of metrics at /metrics, and knows when it was read."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from toto_pipeline.errors import ConfigError, PipelineError

PATH = "/metrics"
MOST_PORT = 65_535
POLL_SECONDS = 0.1
"""How long `close` may wait for the thread that serves to notice."""


def check_port(port: int, setting: str) -> int:
    """The port itself.

    Raises:
        ConfigError: there is no such port.
    """
    if not 0 <= port <= MOST_PORT:
        raise ConfigError(f"{setting}: {port} is no port. Expected: 1 to {MOST_PORT}, or 0 for any that is free.")
    return port


class MetricsServer:
    """Serves from the moment it is made, in threads of its own.

    Args:
        port: 0 for any that is free; the attribute `port` is the one it came to.

    Raises:
        PipelineError: the port is in use.
        ConfigError: this machine has no such address, or does not let this user have that port.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._reading = threading.Condition()
        self._asked_for = 0
        self._newest_read = -1
        self._app = make_wsgi_app(registry)
        try:
            self._server = make_server(host, port, self._answer, _server_class(host, port), _SilentHandler)
        except OSError as error:
            raise _explained(error, host, port) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True)
        self._thread.start()

    @property
    def was_read(self) -> bool:
        return self._newest_read >= 0

    def wait_for_reading(self, seconds: float) -> bool:
        """Wait until a reading has ended that began after this call; False where there is none in time.

        Does not wait where `seconds` is not above 0.
        """
        with self._reading:
            self._asked_for += 1
            wanted = self._asked_for
            return self._reading.wait_for(lambda: self._newest_read >= wanted, seconds)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked_for = self._asked_for
        body: Iterable[bytes] = self._app(environ, start_response)
        if environ["PATH_INFO"] != PATH or environ["REQUEST_METHOD"] != "GET":
            return body
        return _Body(body, lambda: self._was_read(asked_for))

    def _was_read(self, asked_for: int) -> None:
        with self._reading:
            self._newest_read = max(self._newest_read, asked_for)
            self._reading.notify_all()


def _server_class(host: str, port: int) -> type[WSGIServer]:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

    class Server(ThreadingWSGIServer):
        address_family = family

    return Server


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about each request."""


class _Body:
    """An answer that tells when it has been sent: then a WSGI server calls `close` (PEP 3333)."""

    def __init__(self, parts: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._parts = parts
        self.close = sent

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)


def _explained(error: OSError, host: str, port: int) -> PipelineError | OSError:
    if error.errno == errno.EADDRINUSE:
        return PipelineError(
            f"prometheus: port {port} of {host} is in use. Expected: a free port. What to do: stop what listens there, "
            "or set another port; 0 takes any that is free."
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"prometheus: this machine cannot listen on host {host!r} ({error.strerror}). Expected: one of its own "
            "addresses. What to do: set 127.0.0.1 for this machine only, 0.0.0.0 for whoever reaches it."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"prometheus: this user may not listen on port {port} ({error.strerror}). Expected: a port above 1023. "
            "What to do: set another port; 0 takes any that is free."
        )
    return error
