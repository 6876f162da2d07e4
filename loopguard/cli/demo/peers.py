"""What the demo's app waits for: a slow HTTP service and a PostgreSQL server, in a process of their own.

A process, not a thread, for a stalled app must not slow down what it waits for. It is a script that needs only the
standard library. It reads one line of JSON, answers with one, and ends, together with the database and its directory,
when its input ends: so nothing is left behind, however the demo died.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECONDS = 0.3
STARTUP = 5.0

# PostgreSQL's word for "now, whoever is connected"; initdb would first wait for the step that it is at.
_AT_ONCE = getattr(signal, "SIGQUIT", signal.SIGTERM)
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

_ended = threading.Event()


def main() -> None:
    question = sys.stdin.readline()
    if not question:
        return
    asked = json.loads(question)
    threading.Thread(target=_notice_end, daemon=True).start()
    with contextlib.ExitStack() as stack:
        answer = {"url": stack.enter_context(slow_service())}
        try:
            if asked["postgresql"]:
                answer["dsn"] = stack.enter_context(postgresql(Path(asked["postgresql"])))
        except (OSError, LookupError) as error:
            answer["failure"] = str(error)
        print(json.dumps(answer), flush=True)
        _ended.wait()


def _notice_end() -> None:
    sys.stdin.read()
    _ended.set()


class _Slow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(SECONDS)
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo has enough to say."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing: who asked was killed in the middle, and hears no answer."""


@contextlib.contextmanager
def slow_service() -> Iterator[str]:
    """Serve any path on loopback, after a while; gives the address."""
    server = _Server(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"


@contextlib.contextmanager
def postgresql(home: Path) -> Iterator[str]:
    """Run the PostgreSQL whose programs lie in `home`/bin with a database of its own; gives how to connect.

    Raises:
        OSError, LookupError: it cannot be started here.
    """
    with _directory() as directory:
        owner = _owner(directory)
        if owner and not _open_to_all(home):
            home = _copied(home, directory, owner)
        password, port = secrets.token_hex(16), _free_port()
        _create(home, directory, password, owner)
        serve = ["-D", "data", "-h", "127.0.0.1", "-p", str(port), "-c", "unix_socket_directories="]
        spare = ["-c", "fsync=off", "-c", "shared_buffers=8MB"]
        with _running(
            [str(home / "bin" / "postgres"), *serve, *spare], directory, owner, _AT_ONCE
        ) as server:
            _await(server, directory, _takes_connections)
            yield f"host=127.0.0.1 port={port} user=demo dbname=postgres password={password}"


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="loopguard-demo-"))
    try:
        yield path
    finally:
        # More than once, for what initdb had started may outlive it for a moment, and still write.
        for _ in range(100):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(0.02)


def _owner(directory: Path) -> dict[str, Any]:
    """Whom to run it as: PostgreSQL refuses to run as root, so root runs it as nobody, and makes no new user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _open_to_all(home: Path) -> bool:
    return all(directory.stat().st_mode & 0o001 for directory in (home, *home.parents))


def _copied(home: Path, directory: Path, owner: dict[str, Any]) -> Path:
    """The programs where their owner can reach them: root's own directories keep their modes."""
    packages = home.parent.parent
    for source in (home, *packages.glob("*pgserver.libs")):
        target = shutil.copytree(source, directory / source.relative_to(packages))
        for path in (target, *target.rglob("*")):
            os.chown(path, owner["user"], owner["group"], follow_symlinks=False)
    return directory / home.relative_to(packages)


def _create(home: Path, directory: Path, password: str, owner: dict[str, Any]) -> None:
    secret = directory / "password"
    secret.touch(0o600)
    secret.write_text(password)
    if owner:
        os.chown(secret, owner["user"], owner["group"])
    who = ["--username=demo", "--auth=scram-sha-256", "--pwfile=password"]
    spare = ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    initdb = [str(home / "bin" / "initdb"), "--pgdata=data", *who, *spare]
    with _running(initdb, directory, owner, _KILL) as process:
        _await(process, directory, lambda _: process.poll() == 0)


@contextlib.contextmanager
def _running(
    command: list[str], directory: Path, owner: dict[str, Any], last: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it in the directory, with its words in the file `log`; in the end the signal `last` ends it."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - nothing in it is anybody's input
            command, **owner, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.send_signal(last)
        process.wait()


def _await(
    process: subprocess.Popen[bytes], directory: Path, ready: Callable[[Path], bool]
) -> None:
    deadline = time.monotonic() + STARTUP / 2
    while not ready(directory):
        if process.poll():
            lines = (directory / "log").read_text(errors="replace").splitlines()
            raise OSError(lines[-1] if lines else f"exit code {process.returncode}")
        if _ended.wait(0.02) or time.monotonic() > deadline:
            raise OSError("it did not start in time")


def _takes_connections(directory: Path) -> bool:
    try:
        return (directory / "data" / "postmaster.pid").read_text().rstrip().endswith("ready")
    except FileNotFoundError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
