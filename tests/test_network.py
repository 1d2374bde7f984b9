"""The guard of conftest.py: other machines are out of reach, this one is not."""

import socket

import pytest


def test_other_machines_are_out_of_reach() -> None:
    with pytest.raises(OSError, match="must not use the network"), socket.socket() as client:
        client.connect(("192.0.2.1", 80))  # an address reserved for documentation
    with pytest.raises(OSError, match="must not use the network"):
        socket.create_connection(("example.com", 80))


def test_this_machine_can_be_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        client.sendall(b"x")
        with server.accept()[0] as peer:
            assert peer.recv(1) == b"x"
