"""Follow a session: print its step events and what its wearer is told, until Ctrl-C.

    python follow_session.py --session ses_...        (needs pyzmq and msgpack only)

A server that asks for keys: --key FILE, made there by `keystep device add NAME --follower`.

PUB/SUB drops for slow readers: what must not be lost is read over REST (docs/wire.md).
"""
# ruff: noqa: T201

import argparse
import json
from pathlib import Path

import msgpack
import zmq


def main() -> None:
    """Print one line for each message."""
    parser = argparse.ArgumentParser(description="Follow Keystep sessions over PUB/SUB.")
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:8042", help="the server's PUB")
    parser.add_argument("--session", default="", help="a session's id; by default all sessions")
    parser.add_argument("--key", type=Path, help="key file of a follower")
    arguments = parser.parse_args()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    if arguments.key:
        key = json.loads(arguments.key.read_text())
        socket.curve_serverkey = key["server_public_key"].encode()
        socket.curve_publickey = key["public_key"].encode()
        socket.curve_secretkey = key["secret_key"].encode()
    socket.connect(arguments.endpoint)
    socket.subscribe(f"{arguments.session}/" if arguments.session else "")
    while True:
        topic, body = socket.recv_multipart()
        session, kind = topic.decode().split("/")
        message = msgpack.unpackb(body)
        if kind == "step_event":
            # A step that turns out wrong comes again, with the id it had and `retracted` set.
            what = "retracted" if message["retracted"] else message["kind"]
            sure = f"({message['confidence']:.2f})"
            print(session, "step", what, message["title"], sure, flush=True)
        elif kind == "guidance":
            print(session, "guidance", message["severity"], message["text"], flush=True)
        else:
            print(session, "is", message["state"], flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(0) from None
