"""TLS with real clients: mosquitto, openssl s_client and Python's; chains made by openssl."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from broker.codec.packets import Connect
from tests.integration import mosquitto
from tests.integration.conftest import _running
from tests.kit.broker_process import BrokerFailed, BrokerProcess
from tests.kit.certificates import Chain, Issued
from tests.kit.mqtt_client import MqttClient

DEADLINE_S = 20.0

StartTls = Callable[..., BrokerProcess]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.server()
    return made


def tls_url(server: Issued, **options: object) -> str:
    """A TLS listener on a free port."""
    given = {"certfile": server.certfile, "keyfile": server.keyfile, **options}
    return "tls://127.0.0.1:0?" + "&".join(f"{name}={quote(str(value), safe='/:*=')}" for name, value in given.items())


def port_of(node: BrokerProcess, scheme: str) -> int:
    [url] = [url for url in node.listeners if url.startswith(scheme + "://")]
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartTls]:
    """Starts a node on these listeners, with a plain one as the first."""
    mine: list[BrokerProcess] = []

    def make(*listen: str, arguments: tuple[str, ...] = (), store: str = "memory") -> BrokerProcess:
        process = BrokerProcess(
            tmp_path / f"n{len(mine)}", store, listen=("tcp://127.0.0.1:0", *listen), http="127.0.0.1:0",
            arguments=arguments,
        )  # fmt: skip
        process.start()
        mine.append(process)
        _running.append(process)
        return process

    yield make
    for process in mine:
        _running.remove(process)
        process.stop()
        assert "Traceback" not in process.log()


def secured(node: BrokerProcess, chain: Chain, client: Issued | None = None) -> list[str]:
    """Options of the clients of mosquitto; the name in the certificate is checked. The last port wins."""
    told = ["-h", "localhost", "-p", str(port_of(node, "tls")), "--cafile", str(chain.ca)]
    return [*told, "--cert", str(client.certfile), "--key", str(client.keyfile)] if client is not None else told


def publishes(node: BrokerProcess, chain: Chain, client: Issued | None = None, *arguments: str) -> str:
    """Publish with mosquitto_pub; "" if that went well, else what it said."""
    done = mosquitto.run(
        "mosquitto_pub", node, *secured(node, chain, client), "-t", "t", "-m", "x", "-q", "1", "-d", *arguments
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def shown_by(port: int, *arguments: str) -> str:
    """What `openssl s_client` prints."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=DEADLINE_S)
    return (done.stdout + done.stderr).decode(errors="replace")


def until_log(node: BrokerProcess, text: str, count: int = 1) -> None:
    """Wait for a line of the log."""
    for _ in range(int(DEADLINE_S / 0.02)):
        if node.log().count(text) >= count:
            return
        subprocess.run(["sleep", "0.02"], check=True)
    raise AssertionError(f"no {text!r} in the log")


def client_context(chain: Chain, issued: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(chain.ca))
    if issued is not None:
        context.load_cert_chain(issued.certfile, issued.keyfile)
    return context


# -- the server's side


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("rsa", [False, True])
def test_mosquitto_clients(start: StartTls, tmp_path: Path, version: int, rsa: bool) -> None:
    chain = Chain(tmp_path / "chain", rsa=rsa)
    node = start(tls_url(chain.server()))
    text = "0123456789abcdef" * 20_000
    with mosquitto.Subscriber(node, ["t/#"], *secured(node, chain), version=version) as subscriber:
        for qos in (0, 1, 2):
            done = mosquitto.run(
                "mosquitto_pub", node, *secured(node, chain), "-t", "t/x", "-s", "-q", str(qos), text=text,
                version=version,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            message = subscriber.take()
            assert (message.payload, message.qos) == (text, qos)
        # And to clients without TLS, and from them.
        mosquitto.publish(node, "t/y", "plain", qos=1, version=version)
        assert subscriber.take().payload == "plain"


def test_a_client_that_does_not_know_the_authority_goes_away(start: StartTls, chain: Chain, tmp_path: Path) -> None:
    node = start(tls_url(chain.server()))
    other = Chain(tmp_path / "other")
    assert "certificate verify failed" in publishes(node, other)
    assert publishes(node, chain) == ""


def test_versions(start: StartTls, chain: Chain) -> None:
    node = start(tls_url(chain.server()), tls_url(chain.server(), tls_min="1.3").replace("127.0.0.1", "127.0.0.2"))
    both, new = [int(url.rpartition(":")[2]) for url in node.listeners if url.startswith("tls")]
    assert "Protocol  : TLSv1.2" in shown_by(both, "-tls1_2")
    assert "TLSv1.3, Cipher" in shown_by(both, "-tls1_3")
    old = shown_by(both, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "alert protocol version" in old
    with socket.create_connection(("127.0.0.2", new)) as raw:
        context = client_context(chain)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            context.wrap_socket(raw)


def test_no_tickets_and_no_renegotiation(start: StartTls, chain: Chain) -> None:
    node = start(tls_url(chain.server()))
    port = port_of(node, "tls")
    for version in ("-tls1_2", "-tls1_3"):
        shown = shown_by(port, version)
        assert "TLS session ticket:" not in shown
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"]
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=DEADLINE_S)
    assert b"no renegotiation" in done.stderr
    assert publishes(node, chain) == ""


def test_server_names(start: StartTls, chain: Chain) -> None:
    a, b = chain.server("a.example.org", "DNS:a.example.org"), chain.server("*.example.org", "DNS:*.example.org")
    names = f"a.example.org={a.certfile}:{a.keyfile},*.example.org={b.certfile}:{b.keyfile}"
    node = start(tls_url(chain.server(), sni=names))
    port = port_of(node, "tls")
    for asked, shown in {
        "a.example.org": "a.example.org",
        "A.EXAMPLE.org": "a.example.org",
        "b.example.org": "*.example.org",
        "a.b.example.org": "localhost",
        "example.org": "localhost",
        "other": "localhost",
    }.items():
        assert f"subject=CN = {shown}\n" in shown_by(port, "-servername", asked), asked
    assert "subject=CN = localhost\n" in shown_by(port, "-noservername")


def test_keys_with_a_password(start: StartTls, chain: Chain, tmp_path: Path) -> None:
    server = chain.server()
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", server.keyfile, "-out", locked, "-aes256", "-passout", "pass:s3 cr%t"],
        check=True, capture_output=True,
    )  # fmt: skip
    node = start(tls_url(Issued("x", server.certfile, locked), keyfile_password="s3 cr%t"))
    assert publishes(node, chain) == ""
    assert "cr%t" not in node.log() and "cr%25t" not in node.log()
    with pytest.raises(BrokerFailed, match="wrong password"):
        start(tls_url(Issued("x", server.certfile, locked), keyfile_password="wrong"))


def test_wrong_files_are_told_before_anything_starts(chain: Chain, tmp_path: Path) -> None:
    server, client = chain.server(), chain.client("d1")
    (tmp_path / "empty").touch()
    cases = {
        tls_url(Issued("", tmp_path / "missing.pem", server.keyfile)): "missing.pem: No such file",
        tls_url(Issued("", server.certfile, client.keyfile)): "key values mismatch",
        tls_url(Issued("", tmp_path / "empty", server.keyfile)): f"certfile = {tmp_path}/empty",
        tls_url(server, ca_certs=tmp_path / "empty", client_certificates="required"): f"ca_certs = {tmp_path}/empty",
        tls_url(server, ca_certs=chain.ca, crl_file=chain.ca, client_certificates="required"): "revocation lists",
        tls_url(server, ciphers="NONE-SUCH"): "ciphers",
        tls_url(server, sni=f"a={tmp_path}/no"): f"{tmp_path}/no",
    }
    for url, expected in cases.items():
        node = BrokerProcess(tmp_path / "n", "memory", listen=(url,))
        command = [word if word != "serve" else "check-config" for word in node.command()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 2 and expected in done.stderr, (url, done.stderr)
        assert done.stderr.count("\n") == 1


# -- the client's side


def test_client_certificates(start: StartTls, chain: Chain, tmp_path: Path) -> None:
    good, revoked, expired = chain.client("d1"), chain.client("d2"), chain.expired("d3")
    stranger = Chain(tmp_path / "other").client("d1")
    not_for_clients = chain.server("server")
    chain.revoke(revoked)
    options = {"ca_certs": chain.ca, "crl_file": chain.crl}
    node = start(tls_url(chain.server(), **options, client_certificates="required"))
    assert publishes(node, chain, good) == ""
    assert "certificate required" in publishes(node, chain)
    assert "certificate revoked" in publishes(node, chain, revoked)
    assert "certificate expired" in publishes(node, chain, expired)
    assert "unknown ca" in publishes(node, chain, stranger)
    assert "unsupported certificate" in publishes(node, chain, not_for_clients)
    until_log(node, "reason=tls_handshake", 5)
    optional = start(tls_url(chain.server(), **options, client_certificates="optional"))
    assert publishes(optional, chain, good) == publishes(optional, chain) == ""
    assert "certificate revoked" in publishes(optional, chain, revoked)


# -- files that change


async def test_certificates_are_read_again_and_nobody_is_dropped(start: StartTls, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    server = chain.server()
    shown, key = tmp_path / "shown.pem", tmp_path / "shown.key"
    shown.write_bytes(server.certfile.read_bytes())
    key.write_bytes(server.keyfile.read_bytes())
    client = chain.client("d1")
    url = tls_url(Issued("", shown, key), ca_certs=chain.ca, crl_file=chain.crl, client_certificates="required")
    node = start(url)
    port = port_of(node, "tls")
    context = client_context(chain, client)
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="localhost")
    connected = MqttClient(stream)  # type: ignore[arg-type]
    assert (await connected.connect(Connect(5, "d1", True, 0, None, None, None, None))).reason_code == 0
    await connected.subscribe("t")

    def read_again() -> None:
        other = chain.server("other", "DNS:localhost,DNS:new.example")
        # One after the other, as tools do: in between they do not fit.
        shown.write_bytes(other.certfile.read_bytes())
        os.kill(node.pid, signal.SIGHUP)
        until_log(node, "certificates.not_reloaded")
        assert "subject=CN = localhost\n" in shown_by(port)
        key.write_bytes(other.keyfile.read_bytes())
        until_log(node, "certificates.reloaded")  # without being told
        assert "subject=CN = other\n" in shown_by(port)
        assert publishes(node, chain, client) == ""
        chain.revoke(client)
        before = node.log().count("certificates.reloaded")
        os.kill(node.pid, signal.SIGHUP)
        until_log(node, "certificates.reloaded", before + 1)
        assert "certificate revoked" in publishes(node, chain, client)

    await trio.to_thread.run_sync(read_again)
    assert (await connected.take()).payload == b"x"
    mosquitto.publish(node, "t", "still here", qos=1)
    assert (await connected.take()).payload == b"still here"
    await connected.close()


# -- abuse


async def test_noise_at_the_port_touches_nobody(start: StartTls, chain: Chain) -> None:
    node = start(tls_url(chain.server(), handshake_timeout="1s"))
    port = port_of(node, "tls")
    noise = [b"\x10\x0c\x00\x04MQTT\x05\x02\x00<\x00\x00", b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"\x16\x03\x01"]
    quiet = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
    for data in noise:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(data)
        quiet.append(stream)
    assert await trio.to_thread.run_sync(publishes, node, chain) == ""
    with trio.fail_after(DEADLINE_S):
        for stream in quiet:  # all are closed in time
            with pytest.raises((trio.BrokenResourceError, StopAsyncIteration)):
                while True:
                    if not await stream.receive_some(1000):
                        raise StopAsyncIteration
            await stream.aclose()
    assert await trio.to_thread.run_sync(publishes, node, chain) == ""


def test_key_updates_and_renegotiations_without_end(start: StartTls, chain: Chain) -> None:
    node = start(tls_url(chain.server()))
    port = port_of(node, "tls")
    for version, command in (("-tls1_3", b"K\n"), ("-tls1_2", b"R\n")):
        subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", version],
            input=command * 500, capture_output=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert publishes(node, chain) == ""


async def test_a_flood_of_handshakes(start: StartTls, tmp_path: Path) -> None:
    """Hundreds at a time, with RSA keys; a plain client is served meanwhile, and so are they in the end."""
    chain = Chain(tmp_path / "chain", rsa=True)
    node = start(tls_url(chain.server()))
    port = port_of(node, "tls")
    context = client_context(chain)
    shaken = 0
    answered = 0

    async def flood() -> None:
        nonlocal shaken
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="localhost")
        await stream.do_handshake()
        shaken += 1
        await trio.aclose_forcefully(stream)

    async with await MqttClient.open("127.0.0.1", node.port) as client:
        await client.connect(Connect(5, "by", True, 0, None, None, None, None))
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(flood)
            while shaken < 200:
                await client.publish("t", b"x", qos=1)
                answered += 1
    assert answered > 1
