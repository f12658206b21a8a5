"""What Ray runs in place of Python for a worker: see `workers`. Imports as little as it can; runs without `site`.

Its first argument is the path of a socket, the others are what Python would have been given.
"""

import json
import os
import socket
import sys


def main() -> None:
    """Hands the command over and waits for its end, or becomes the command."""
    path, words = sys.argv[1], sys.argv[2:]
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        command = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 (pathlib is slow to import)
        text = json.dumps(command).encode() + b"\n"
        socket.send_fds(connection, [text[:1]], [0, 1, 2])
        connection.sendall(text[1:])
        taken = connection.recv(1)
    except OSError:
        taken = b""
    if not taken:
        os.execv(sys.executable, [sys.executable, *words])
    connection.recv(1)  # until the worker ends


if __name__ == "__main__":
    main()
