"""A name server that tells addresses, and fails as it is told to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Codes of answers (RFC 1035, 4.1.1), and none at all.
GOOD, BROKEN, UNKNOWN, REFUSED, SILENT = 0, 2, 3, 5, -1

_A = 1


class NameServer:
    """`answer` is how it answers from now on; `wait` returns after so many further questions."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._asked = threading.Condition()
        self._answer, self._count = GOOD, 0

    def now(self, answer: int) -> None:
        """Answer so from now on."""
        with self._asked:
            self._answer = answer

    def wait(self, questions: int) -> None:
        """Until it was asked so often."""
        with self._asked:
            wanted = self._count + questions
            assert self._asked.wait_for(lambda: self._count >= wanted, 30), "nobody asks"

    def serve(self) -> None:
        """Until it is closed."""
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            with self._asked:
                answer = self._reply(question)
                self._count += 1
                self._asked.notify_all()
            if answer:
                self._socket.sendto(answer, sender)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"", ("127.0.0.1", self.port))

    def _reply(self, question: bytes) -> bytes:
        if self._answer == SILENT:
            return b""
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        (kind,) = struct.unpack_from("!H", question, at + 1)
        address = self._addresses.get(".".join(labels)) if self._answer == GOOD else None
        found = b""
        if address is not None and kind == _A:
            found = struct.pack("!HHHIH", 0xC00C, _A, 1, 1, 4) + socket.inet_aton(address)
        head = question[:2] + struct.pack("!HHHHH", 0x8180 | self._answer, 1, bool(found), 0, 0)
        return head + question[12 : at + 5] + found


@contextmanager
def name_server(addresses: Mapping[str, str]) -> Iterator[NameServer]:
    """One that runs."""
    made = NameServer(addresses)
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
        made._socket.close()
