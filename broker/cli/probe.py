"""`rookery probe`: whether clients are served, seen from where it runs."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar
from urllib.parse import urlsplit

import click

from broker.cli.api_client import EXIT_FAILED, EXIT_NO_ANSWER, EXIT_NOT_ALLOWED, Api, ApiFailure, api_options, take_api
from broker.cli.operate import ask, pages
from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    V31,
    V311,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.codec.primitives import read_variable_byte_integer
from broker.errors import PeerError
from broker.reasons import (
    BAD_USER_NAME_OR_PASSWORD,
    NOT_AUTHORIZED,
    QUOTA_EXCEEDED,
    SERVER_UNAVAILABLE,
    UNSUPPORTED_PROTOCOL_VERSION,
)

_PORTS: Final = {"tcp": 1883, "tls": 8883}
#: Between two tries.
_PAUSE_S: Final = 0.5
#: A new user counts on every node within about a second.
_TRIES: Final = 10

#: Users that are made have the time in their names: one so old was left behind by a probe that was killed.
_USER_PREFIX: Final = "rookery-probe-"
_LEFT_S: Final = 1800.0
_LEFT: Final = re.compile(_USER_PREFIX + r"([0-9]{1,12})-[0-9a-f]{16}")

P = TypeVar("P", bound=Packet)


class ProbeFailed(click.ClickException):
    """Clients are not served; `exit_code` as those of `rookery ctl`."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED, reason_code: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]
        self.reason_code = reason_code


class _Client:
    """One connection: packets go out at once, and are waited for until the deadline."""

    def __init__(self, connection: socket.socket, version: int, deadline: float, who: str) -> None:
        self._connection = connection
        self._version = version
        self._deadline = deadline
        self._who = who
        self._rest = b""
        self._passed: list[Packet] = []

    def send(self, packet: Packet) -> None:
        """Write it."""
        self._connection.sendall(encode(packet, self._version))

    def expect(self, kind: type[P]) -> P:
        """The next packet of that kind; others may be asked for later. ProbeFailed if it does not come."""
        for passed in self._passed:
            if isinstance(passed, kind):
                self._passed.remove(passed)
                return passed
        while True:
            packet = self._next()
            if isinstance(packet, kind):
                return packet
            self._passed.append(packet)
            if isinstance(packet, Disconnect):
                raise ProbeFailed(f"{self._who}: disconnected with reason code 0x{packet.reason_code:02x}")

    def _next(self) -> Packet:
        while True:
            taken = self._taken()
            if taken is not None:
                return taken
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            data = self._connection.recv(65536)
            if not data:
                raise ProbeFailed(f"{self._who}: the broker closed the connection", EXIT_NO_ANSWER)
            self._rest += data

    def _taken(self) -> Packet | None:
        data = self._rest
        lengths = data[1:5]
        if not lengths or (len(lengths) < 4 and all(byte & 128 for byte in lengths)):
            return None
        length, taken = read_variable_byte_integer(lengths, 0, len(lengths))
        start = 1 + taken
        if start + length > len(data):
            return None
        self._rest = data[start + length :]
        return decode(data[0], data, start, start + length, self._version, from_client=False)


class _Listener:
    """Where to connect, and as whom."""

    def __init__(self, url: str, timeout_s: float, context: ssl.SSLContext | None) -> None:
        self.url = url
        parts = urlsplit(url)
        try:
            self._address = (parts.hostname or "", parts.port or _PORTS[parts.scheme])
            if parts.scheme not in _PORTS or not parts.hostname:
                raise ValueError
        except (KeyError, ValueError):
            raise click.UsageError(f"{url!r:.80}: write tcp://HOST:PORT or tls://HOST:PORT") from None
        self._context = context if parts.scheme == "tls" else None
        self._version = V5
        self.deadline = time.monotonic() + timeout_s

    @contextmanager
    def client(self, who: str, username: str, password: str) -> Iterator[_Client]:
        """A client that is connected, in the newest version that is spoken there; ProbeFailed if it is refused."""
        with ExitStack() as stack:
            while True:
                try:
                    client = stack.enter_context(self._connected(who, username, password))
                    break
                except ProbeFailed as failure:
                    if failure.reason_code != UNSUPPORTED_PROTOCOL_VERSION or self._version == V31:
                        raise
                    self._version = V311 if self._version == V5 else V31
            yield client

    @contextmanager
    def _connected(self, who: str, username: str, password: str) -> Iterator[_Client]:
        version = self._version
        with self._reached() as plain:
            connection = self._context.wrap_socket(plain, server_hostname=self._address[0]) if self._context else plain
            with connection:
                client = _Client(connection, version, self.deadline, f"{self.url} ({who})")
                client_id = f"probe-{who[:3]}-{secrets.token_hex(4)}"  # MQTT 3.1 has at most 23 characters
                secret = password.encode() if username else None
                client.send(Connect(version, client_id, True, 60, username or None, secret))
                answer = client.expect(Connack).reason_code
                if answer:
                    status = EXIT_NOT_ALLOWED if answer in (BAD_USER_NAME_OR_PASSWORD, NOT_AUTHORIZED) else EXIT_FAILED
                    raise ProbeFailed(f"{self.url}: refused with reason code 0x{answer:02x}", status, answer)
                yield client
                client.send(Disconnect())

    def _reached(self) -> socket.socket:
        """A connection, as soon as there is one. OSError if nobody accepts it before the deadline."""
        while True:
            try:
                return socket.create_connection(self._address, max(0.1, self.deadline - time.monotonic()))
            except TimeoutError:
                raise
            except OSError:
                if not self.pause():
                    raise

    def pause(self) -> bool:
        """Wait a moment before another try; False if there is no time for one."""
        left_s = self.deadline - time.monotonic()
        time.sleep(max(0.0, min(left_s, _PAUSE_S)))
        return left_s > _PAUSE_S


@click.command(context_settings={"max_content_width": 110})
@click.argument("listener")
@click.option("--topic", default="", metavar="TOPIC", help="Topic of the message.  [default: rookery/probe/ID]")
@click.option("--username", envvar="MQTT_USERNAME", default="", show_envvar=True, help="User name of the clients.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File whose first line is the password; without it, the variable MQTT_PASSWORD.",
)
@click.option("--make-user", is_flag=True, help="Make a superuser in the store for this, with the API, and remove it.")
@click.option("--ca", "authorities", metavar="FILE", help="Certificates to trust for tls://, in place of the system's.")
@click.option("--no-verify", is_flag=True, help="tls://: take any certificate.")
@click.option(
    "--wait",
    "wait_s",
    default=15.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="Seconds in all, those included in which nobody answers yet.",
)
@click.option("--password", envvar="MQTT_PASSWORD", default="", hidden=True)
@api_options
def probe(
    listener: str,
    topic: str,
    username: str,
    password_file: Path | None,
    make_user: bool,
    authorities: str | None,
    no_verify: bool,
    wait_s: float,
    password: str,
    **of_api: object,
) -> int:
    """Publish a message at LISTENER (tcp://HOST:PORT or tls://HOST:PORT) and wait until another client gets it.

    Listener and API may come up meanwhile. Where one connection is all that an address may have, one client does both.

    Exit status: 0 it came, 1 failed, 2 wrong usage, 3 not allowed, 5 no answer.
    """
    if password_file is not None:
        from broker.config import first_line  # here: it takes longer to load than all the rest

        password = first_line(password_file)
    where = _Listener(listener, wait_s, _context(authorities, no_verify))
    topic = topic or f"rookery/probe/{secrets.token_hex(8)}"
    try:
        if make_user:
            with _ended_in_order(), _user(take_api(of_api), where) as (username, password):
                took_s = _known(where, topic, username, password)
        else:
            took_s = _round_trip(where, topic, username, password)
    except TimeoutError:
        raise ProbeFailed(f"{listener}: no answer within {wait_s:g} s", EXIT_NO_ANSWER) from None
    except PeerError as error:
        raise ProbeFailed(f"{listener}: {error.text}") from None
    except OSError as error:
        raise ProbeFailed(f"{listener}: {error.strerror or error}", EXIT_NO_ANSWER) from None
    print(f"{listener}: published and received in {took_s * 1000:.1f} ms")
    return 0


def _context(authorities: str | None, no_verify: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"--ca {authorities}: {error}") from None
    if no_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _round_trip(where: _Listener, topic: str, username: str, password: str) -> float:
    """Seconds from PUBLISH to its arrival at another client, at QoS 1."""
    with where.client("subscriber", username, password) as reader, ExitStack() as stack:
        try:
            writer = stack.enter_context(where.client("publisher", username, password))
        except ProbeFailed as failure:
            # The second is one too many; MQTT 3 has no word for that.
            if failure.reason_code not in (QUOTA_EXCEEDED, SERVER_UNAVAILABLE):
                raise
            writer = reader
        reader.send(Subscribe(1, (SubscriptionRequest(topic, 1),)))
        granted = reader.expect(Suback).reason_codes[0]
        if granted != 1:
            raise ProbeFailed(f"{where.url}: SUBSCRIBE answered by 0x{granted:02x}", EXIT_NOT_ALLOWED)
        payload = secrets.token_bytes(16)
        began = time.monotonic()
        writer.send(Publish(topic, payload, 1, packet_id=1))
        answer = writer.expect(Puback).reason_code
        if answer >= 0x80:
            raise ProbeFailed(f"{where.url}: PUBLISH answered by 0x{answer:02x}", EXIT_NOT_ALLOWED)
        while (message := reader.expect(Publish)).payload != payload:
            reader.send(Puback(message.packet_id))
        reader.send(Puback(message.packet_id))
        return time.monotonic() - began


def _known(where: _Listener, topic: str, username: str, password: str) -> float:
    """The same for a new user, whom not all nodes know at once."""
    for _ in range(_TRIES):
        try:
            return _round_trip(where, topic, username, password)
        except ProbeFailed as failure:
            if failure.reason_code not in (BAD_USER_NAME_OR_PASSWORD, NOT_AUTHORIZED):
                raise
            time.sleep(_PAUSE_S)
    return _round_trip(where, topic, username, password)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside as exceptions do. Once: the second does not end the tidying up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _user(api: Api, where: _Listener) -> Iterator[tuple[str, str]]:
    """Name and password of a superuser that there is meanwhile; waits for a node that makes it."""
    name, password = f"{_USER_PREFIX}{int(time.time())}-{secrets.token_hex(8)}", secrets.token_urlsafe(24)
    made = refused = False
    try:
        while not made:
            try:
                ask(api, "users.put", {"username": name, "password": password, "superuser": True})
                made = True
            except ApiFailure as failure:
                refused = failure.exit_code != EXIT_NO_ANSWER
                if refused or not where.pause():
                    raise
        _remove_left(api)
        yield name, password
    finally:
        if not refused:  # it may be there even if nobody said so
            try:
                ask(api, "users.delete", {"username": name})
            except ApiFailure as failure:
                if made:
                    print(f"rookery: the user {name} is still there: {failure.message}", file=sys.stderr)


def _remove_left(api: Api) -> None:
    """Users that nobody could remove: a probe was killed, or its node was away."""
    with suppress(ApiFailure):
        found = [
            user["username"]
            for page in pages(api, "users.list", {"prefix": _USER_PREFIX}, None)
            for user in page["items"]
        ]
        for name in found:
            match = _LEFT.fullmatch(name)
            if match and time.time() - int(match[1]) > _LEFT_S:
                ask(api, "users.delete", {"username": name})
