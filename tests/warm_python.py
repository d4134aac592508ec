"""A Python that has imported torch and transformers already: a test that needs a process of its own gets it at once.

In: what `python` takes: [-u] then `-c CODE`, `-m MODULE` or a script, and arguments. Out: an ordinary process with its
own environment, folder, pipes, signals, exit status and end, forked from one that imported the libraries once (several
seconds each time else). `visgraft` itself is not among them: each process imports it afresh.

    subprocess.run([*warm_python(), "-m", "visgraft", "show", recipe], capture_output=True)

The command is a small client: it hands its file descriptors, environment and arguments to the server over a socket,
passes signals on, and ends as the forked process ended. The server ends with the tests.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

LIBRARIES = (
    "accelerate", "altair", "datasets", "jinja2", "numpy", "peft", "PIL.Image", "torch._dynamo",
    "torch.distributed.fsdp", "transformers.generation.utils", "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto", "transformers.trainer_utils",
)  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def warm_python() -> list[str]:
    """Give the command to use in place of [sys.executable]; the first call of a test session starts the server."""
    if not _started:
        import atexit
        import subprocess
        import tempfile

        folder = tempfile.TemporaryDirectory(prefix="warm-python-")
        address = f"{folder.name}/socket"
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the warm Python did not start"
        atexit.register(folder.cleanup)
        _started.append((server, address))
    return [sys.executable, "-S", "-E", __file__, "--ask", _started[0][1]]


_started: list[tuple[object, str]] = []  # the server lives as long as its standard input is open


def ask(address: str, arguments: list[str]) -> None:
    """Have the arguments run by a fork of the server, and end as it ended."""
    request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        with connection.makefile("r") as answers:
            pid = int(answers.readline())
            for number in SIGNALS:
                signal.signal(number, lambda number, _: os.kill(pid, number))
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):  # whoever closes the other end of a pipe closes it for the forked process
                os.dup2(nothing, descriptor)
            status = int(answers.readline())
    if status < 0:
        if -status in SIGNALS:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(address: str) -> list[str]:
    """Fork for every request; returns in the forked process alone, with the arguments that it has to run."""
    import gc
    import importlib
    import select
    import threading

    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    while listener in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
        pid = os.fork()
        if pid:
            threading.Thread(target=end_with_client, args=(connection, pid), daemon=True).start()
            connection.sendall(f"{pid}\n".encode())
            for descriptor in (0, 1, 2, *descriptors):
                os.close(descriptor)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            connection.sendall(f"{status}\n".encode())
            os._exit(0)
        with connection, connection.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(size, "big")))
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        return request["arguments"]
    os._exit(0)


def end_with_client(connection: socket.socket, pid: int) -> None:
    """Kill the forked process once the client is gone, which a SIGKILL may have ended."""
    import select

    gone = select.poll()
    gone.register(connection, 0)  # 0: tell of nothing but the other end's closing
    gone.poll()
    os.kill(pid, signal.SIGKILL)


def become(arguments: list[str]) -> None:
    """Do what `python` does with these arguments."""
    import runpy

    if os.environ.get("VISGRAFT_TESTS_ELSEWHERE"):
        runpy.run_path(str(Path(__file__).with_name("elsewhere.py")))
    if arguments[0] == "-u":
        arguments = arguments[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    kind, *rest = arguments
    sys.path[:1] = [str(Path.cwd() if kind in ("-c", "-m") else Path(kind).resolve().parent)]
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        ask(sys.argv[2], sys.argv[3:])
    else:
        become(serve(sys.argv[2]))
