"""Child processes that need not import PyTorch: a server that has done so forks them.

Importing PyTorch and etude costs a fresh process seconds; a fork of a process that has them starts at once, and is
otherwise a process of its own: it has the environment, the working folder, the pipes and the session that it is given,
and bears signals, ``kill -9`` included, as another would. Where the start of an interpreter is what is tested, or its
memory, a fresh one is used.

``Fork(words, env=..., stdout=subprocess.PIPE, ...)`` is ``subprocess.Popen`` of ``python *words``, where ``words`` are
``["-m", "etude", ...]`` or ``["-c", code]``; so is ``run`` of ``subprocess.run``.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = ("torch", "etude.cli", "etude.studies.protonet.task", "tests.core.toy")


class Fork(subprocess.Popen):
    """A process that the server forks; its parent is the server, which tells how it ended."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
                       c2pread: int, c2pwrite: int, errread: int, errwrite: int, restore_signals: Any, gid: Any,
                       gids: Any, uid: Any, umask: Any, start_new_session: bool, *_: Any) -> None:  # fmt: skip
        del executable, preexec_fn, close_fds, startupinfo, creationflags, restore_signals, gid, gids, uid, umask
        assert not shell
        assert not pass_fds
        request = {
            "words": [str(word) for word in args], "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()), "session": bool(start_new_session),
        }  # fmt: skip
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(_address())
        ends = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        socket.send_fds(self._line, [b"3"], ends)
        self._line.sendall(json.dumps(request).encode())
        self._line.shutdown(socket.SHUT_WR)
        self.pid = int(self._line.makefile().readline())
        self._child_created = True
        devnull = getattr(self, "_devnull", None)
        for own, other in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if own != -1 and other != -1 and own != devnull:
                os.close(own)
        if devnull is not None:
            os.close(devnull)
        self._closed_child_pipe_fds = True

    def _ended(self, timeout: float | None) -> bool:
        if not select.select([self._line], [], [], timeout)[0]:
            return False
        with self._line:
            self.returncode = int(self._line.recv(16))
        return True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self._ended(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None and not self._ended(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def run(words: list[str], *, capture_output: bool = False, check: bool = False, timeout: float | None = None,
        **options: Any) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """``subprocess.run`` of ``python *words``."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Fork(words, **options) as child:
        try:
            out, said = child.communicate(timeout=timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(words, child.returncode, out, said)
    if check:
        done.check_returncode()
    return done


_server: "subprocess.Popen[bytes] | None" = None
_place: str = ""


def _address() -> str:
    """The abstract name that the server listens on; it is started where there is none."""
    global _server, _place  # noqa: PLW0603
    if _server is None or _server.poll() is not None:
        _place = f"\0etude-forks-{os.getpid()}"
        code = f"from tests import forks; forks.become(forks.serve({_place!r}))"
        surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        _server = subprocess.Popen(
            [sys.executable, "-c", code], env=surroundings, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert _server.stdout is not None
        assert _server.stdout.readline() == b"ready\n"
        atexit.register(_stop, _server)
    return _place


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.kill()
    server.communicate()


def serve(place: str) -> list[str]:
    """Fork what is asked for until the standard input ends. Returns, in each fork, the words that it is to be."""
    for module in PRELOADED:
        importlib.import_module(module)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    listening.listen(64)
    heard, rung = os.pipe()
    os.set_blocking(rung, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(rung)
    # Ctrl-C at the terminal is for the tests, and they end the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    callers: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening, heard, 0], [], [])
        if 0 in ready:
            os._exit(0)
        if heard in ready:
            os.read(heard, 4096)
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            # A caller that has gone needs no answer.
            with callers.pop(ended[0]) as line, contextlib.suppress(OSError):
                line.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
        if listening not in ready:
            continue
        line, _ = listening.accept()
        _, ends, _, _ = socket.recv_fds(line, 1, 3)
        request = json.load(line.makefile())
        pid = os.fork()
        if pid:
            for end in ends:
                os.close(end)
            line.sendall(f"{pid}\n".encode())
            callers[pid] = line
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for own, end in enumerate(ends):
            os.dup2(end, own)
            os.close(end)
        os.close(heard)
        os.close(rung)
        if request["session"]:
            os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        return request["words"]


def become(words: list[str]) -> None:
    """Go on as ``python *words``."""
    kind, what, *rest = words
    sys.argv[:] = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
