"""The link to Redis against real servers, and against servers that are none."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace

import hiredis
import pytest
import redis
import trio

from broker.errors import ClusterError, ConfigError, StoreFull, StoreUnavailable
from cluster.redis.address import ClusterAddress, SentinelAddress, StoreAddress, parse_store_url
from cluster.redis.link import RedisLink
from tests.kit.link_world import Expected, connected, linked, reactor
from tests.kit.poller import EpollPoller
from tests.kit.ports import free_port
from tests.kit.redis_server import RedisServer, make_certificate, redis_server, valkey_binary


@pytest.fixture(scope="module", params=["redis", "valkey"])
def shared_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = valkey_binary() if request.param == "valkey" else ""
    with redis_server(binary=binary, options=["--enable-debug-command", "yes"]) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    with shared_server.client() as client:
        client.flushall()
    return shared_server


# --- pairing ---


async def test_replies_stay_paired_when_callers_are_cancelled(server: RedisServer) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    outcomes = {"answered": 0, "cancelled": 0}

    async def caller(link: RedisLink, number: int) -> None:
        for i in range(60):
            token = f"{number}.{i}".encode()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, scope, rng.randrange(12))
                    assert await link.call("ECHO", token) == token, f"seed {seed}"
                    outcomes["answered"] += 1
                    nursery.cancel_scope.cancel()
            outcomes["cancelled"] += scope.cancelled_caught

    async def cancel_after(scope: trio.CancelScope, checkpoints: int) -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with linked(server.address) as link:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(caller, link, number)
        assert await link.call("ECHO", "last") == b"last"
        assert link.unanswered == 0
        assert link.pending_bytes == 0
    assert min(outcomes.values()) > 100, (seed, outcomes)


async def test_a_failing_callback_does_not_shift_the_replies(server: RedisServer) -> None:
    def fails(reply: object) -> None:
        raise RuntimeError("a defect")

    async with linked(server.address) as link:
        expected = Expected(20)
        for i in range(20):
            link.command(("ECHO", "x"), fails)
            link.command(("ECHO", i), expected.then)
        link.flush()
        assert await expected.wait() == [str(i).encode() for i in range(20)]


async def test_resp3_false_and_null_are_replies_and_an_error_is_a_value(server: RedisServer) -> None:
    async with linked(server.address) as link:
        assert await link.call("DEBUG", "PROTOCOL", "false") is False
        assert await link.call("GET", "nothing") is None
        expected = Expected(2)
        link.command(("NO-SUCH",), expected.then)
        link.command(("PING",), expected.then)
        link.flush()
        error, pong = await expected.wait()
        assert isinstance(error, hiredis.ReplyError)
        assert pong == b"PONG"
        with pytest.raises(ClusterError, match="unknown command"):
            await link.call("NO-SUCH")


async def test_pushes_do_not_shift_the_replies(server: RedisServer) -> None:
    pushed: list[object] = []
    async with reactor() as poller:
        link = RedisLink(server.address, poller, on_push=pushed.append)
        async with connected(link, poller):
            confirmed = Expected(1)
            link.subscribe("SUBSCRIBE", [b"a", b"b"], confirmed.then)
            assert await link.call("ECHO", "1") == b"1"
            assert confirmed.replies == [[b"subscribe", b"b", 2]]
            assert await link.call("PUBLISH", "a", "hello") == 1
            assert await link.call("ECHO", "2") == b"2"
            assert pushed == [[b"message", b"a", b"hello"]]
            assert link.round_trip_ms > 0


async def test_a_refused_subscribe_gets_the_error(server: RedisServer) -> None:
    async with linked(server.address) as link:
        await link.call("ACL", "SETUSER", "mute", "on", ">secret", "+@all", "~*", "resetchannels")
    async with linked(replace(server.address, username="mute", password="secret")) as link:
        confirmed = Expected(1)
        link.subscribe("SUBSCRIBE", [b"a", b"b"], confirmed.then)
        assert await link.call("ECHO", "1") == b"1"
        assert isinstance(confirmed.replies[0], hiredis.ReplyError)


async def test_more_than_the_socket_takes_waits_for_room(server: RedisServer) -> None:
    async with linked(server.address) as link:
        expected = Expected(80)
        server.pause()
        try:
            for i in range(40):
                link.command(("SET", f"k{i}", bytes([i]) * 1_000_000), expected.then)
            for i in range(40):
                link.command(("GET", f"k{i}"), expected.then)
            link.flush()
            assert link.pending_bytes > 10_000_000
            assert link.unanswered == 80
        finally:
            server.resume()
        replies = await expected.wait()
        assert replies == [b"OK"] * 40 + [bytes([i]) * 1_000_000 for i in range(40)]
        assert link.pending_bytes == 0
        assert link.round_trip_ms > 0


# --- errors of the store ---


async def test_out_of_memory_is_store_full(server: RedisServer) -> None:
    async with linked(server.address) as link:
        await link.call("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StoreFull):
                await link.call("SET", "a", "b")
            with pytest.raises(ClusterError):
                await link.call("NO", "SUCH")
            assert link.counters.errors == {"OOM": 1, "ERR": 1}
        finally:
            await link.call("CONFIG", "SET", "maxmemory", "0")


async def test_a_primary_that_becomes_a_replica_is_left_until_it_is_a_primary_again(server: RedisServer) -> None:
    async with reactor() as poller:
        downs: list[Exception] = []
        down = trio.Event()

        def on_down(error: Exception) -> None:
            downs.append(error)
            down.set()

        link = RedisLink(server.address, poller, on_down=on_down)
        with server.client() as plain:
            async with connected(link, poller):
                plain.replicaof("127.0.0.1", str(free_port()))
                expected = Expected(3)
                for i in range(3):
                    link.command(("RPUSH", "list", i), expected.then, resend=True)
                poller.wake()
                with trio.fail_after(20):
                    await down.wait()
                assert "READONLY" in str(downs[0])
                with pytest.raises(StoreUnavailable, match="read-only replica"):
                    await RedisLink(server.address, poller).connect()
                plain.replicaof("NO", "ONE")
                assert await expected.wait() == [1, 2, 3]
            assert plain.lrange("list", 0, -1) == [b"0", b"1", b"2"]


# --- lost connections ---


async def test_after_kill_9_setup_goes_first_then_what_was_unanswered_then_newer() -> None:
    with redis_server(aof=True, options=("--appendfsync", "always")) as server:
        async with reactor() as poller:
            down = trio.Event()
            order: list[str] = []
            answered: list[int] = []
            done = trio.Event()

            async def on_up(link: RedisLink) -> None:
                await link.setup_call("RPUSH", "list", "up")

            def on_down(error: Exception) -> None:
                order.append("down")
                down.set()

            def then(i: int) -> Callable[[object], None]:
                def stored(reply: object) -> None:
                    answered.append(i)
                    if len(answered) == 200:
                        done.set()

                return stored

            def unknown(reply: object) -> None:
                assert isinstance(reply, StoreUnavailable)
                order.append("unknown")

            link = RedisLink(server.address, poller, on_down=on_down, on_up=on_up)
            async with connected(link, poller):
                await link.call("DEL", "list")
                server.pause()  # what is sent now is never executed
                for i in range(100):
                    link.command(("RPUSH", "list", i), then(i), resend=True)
                    if i % 10 == 0:
                        link.command(("RPUSH", "list", "never"), unknown)
                link.flush()
                server.kill()
                with trio.fail_after(20):
                    await down.wait()
                for i in range(100, 200):
                    link.command(("RPUSH", "list", i), then(i), resend=True)
                link.command(("RPUSH", "list", "never"), unknown)
                assert order == ["down"] + ["unknown"] * 10
                link.flush()
                assert order == ["down"] + ["unknown"] * 11
                with pytest.raises(StoreUnavailable):
                    await link.call("PING")
                assert link.unanswered == 200
                assert link.pending_bytes > 0
                server.start()
                with trio.fail_after(20):
                    await done.wait()
                assert answered == list(range(200))
                stored = await link.call("LRANGE", "list", 0, -1)
                # (the first "up" was deleted with the list)
                assert stored == [b"up"] + [str(i).encode() for i in range(200)]
                assert link.pending_bytes == 0
                assert (link.counters.reconnects, link.counters.failovers) == (1, 0)
                assert link.counters.batch.sum >= 200


async def test_callers_learn_of_a_lost_connection() -> None:
    with redis_server(unix=True) as server:
        async with linked(server.address) as link:
            await link.call("PING")
            server.pause()
            failed: list[str] = []

            async def caller() -> None:
                try:
                    await link.call("SET", "a", "b")
                except StoreUnavailable as error:
                    failed.append(str(error))

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(caller)
                await trio.testing.wait_all_tasks_blocked()
                server.kill()
            assert len(failed) == 10
            assert server.address.path in failed[0]


async def test_a_silent_peer_is_dropped_and_found_again(server: RedisServer) -> None:
    async with reactor() as poller:
        downs: list[Exception] = []
        down = trio.Event()

        def on_down(error: Exception) -> None:
            downs.append(error)
            down.set()

        link = RedisLink(server.address, poller, on_down=on_down, answer_timeout_s=0.4)
        async with connected(link, poller):
            expected = Expected(1)
            server.pause()
            try:
                link.command(("ECHO", "late"), expected.then, resend=True)
                link.flush()
                with trio.fail_after(20):
                    await down.wait()
            finally:
                server.resume()
            assert "no answer" in str(downs[0])
            assert await expected.wait() == [b"late"]


async def test_a_command_that_blocks_on_purpose_may(server: RedisServer) -> None:
    async with linked(server.address, answer_timeout_s=0.2) as link:
        assert await link.call("BLPOP", "empty", 1, allow_s=30.0) is None
        with pytest.raises(StoreUnavailable, match="no answer"):
            await link.call("BLPOP", "empty", 30)


async def test_close_answers_everything_and_refuses_the_rest(server: RedisServer) -> None:
    async with linked(server.address) as link:
        expected = Expected(3)
        server.pause()
        try:
            link.command(("PING",), expected.then)
            link.command(("PING",), expected.then, resend=True)
            link.flush()
            link.close()
        finally:
            server.resume()
        assert link.unanswered == 0
        link.command(("PING",), expected.then, resend=True)
        link.flush()
        assert [type(reply) for reply in expected.replies] == [StoreUnavailable] * 3
        with pytest.raises(StoreUnavailable, match="closed"):
            await link.connect()


async def test_an_on_up_that_fails_leaves_no_connection(server: RedisServer) -> None:
    async with reactor() as poller:

        async def on_up(link: RedisLink) -> None:
            await link.setup_call("NO-SUCH")

        link = RedisLink(server.address, poller, on_up=on_up, name="half")
        with pytest.raises(ClusterError, match="unknown command"):
            await link.connect()
        assert not link.up
        with server.client() as plain:
            assert "half" not in [client["name"] for client in plain.client_list()]
        link.close()


# --- logging in ---


async def error_of(address: StoreAddress, answer_timeout_s: float = 5.0) -> ClusterError:
    with EpollPoller() as poller:
        link = RedisLink(address, poller, answer_timeout_s=answer_timeout_s)
        with pytest.raises(ClusterError) as caught:
            await link.connect()
        link.close()
        assert "\n" not in str(caught.value)
        return caught.value


async def test_password_user_and_database() -> None:
    with redis_server(options=["--requirepass", "open sesame"]) as server:
        address = server.address
        assert "asks for a password" in str(await error_of(address))
        wrong = await error_of(replace(address, password="guess-guess"))
        assert "wrong password for user 'default'" in str(wrong)
        assert "guess-guess" not in str(wrong)
        right = replace(address, password="open sesame")
        assert "no database 99" in str(await error_of(replace(right, db=99)))
        async with linked(right) as link:
            await link.call("ACL", "SETUSER", "rook", "on", ">pawn", "~*", "+@all", "-select")
        assert "'rook'" in str(await error_of(replace(address, username="rook", password="no")))
        async with linked(replace(address, username="rook", password="pawn")) as link:
            assert await link.call("ACL", "WHOAMI") == b"rook"
        async with linked(replace(right, db=3)) as link:
            await link.call("SET", "where", "three")
        async with linked(replace(right, db=3)) as link:
            assert await link.call("GET", "where") == b"three"
        async with linked(right) as link:
            assert await link.call("GET", "where") is None


async def test_unix_socket() -> None:
    with redis_server(unix=True) as server:
        async with linked(server.address) as link:
            assert await link.call("ECHO", "here") == b"here"
        assert "No such file" in str(await error_of(StoreAddress(path=server.address.path + ".not")))


async def test_nobody_listens() -> None:
    error = await error_of(StoreAddress(port=free_port()))
    assert isinstance(error, StoreUnavailable)
    assert "Connection refused" in str(error)


# --- what is not Redis ---

HELLO = b"%2\r\n+server\r\n+redis\r\n+version\r\n+7.4.0\r\n"
PONG = b"+PONG\r\n"


class Impostor:
    """A server that answers each request it reads with the next of `answers`, and hangs up after the last."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.connections = 0
        self.requests: list[bytes] = []
        self.address = StoreAddress()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = StoreAddress(port=listeners[0].socket.getsockname()[1])
        task_status.started()
        await trio.serve_listeners(self._talk, listeners)

    async def _talk(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                for answer in self.answers:
                    self.requests.append(await stream.receive_some())
                    await stream.send_all(answer)
                await stream.receive_some()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not Redis protocol"),
        (b"\x00\xff garbage \r\n", "not Redis protocol"),
        (b"*2\r\n$3\r\nabc\r\n$-7\r\n", "not Redis protocol"),
        (b"$2\r\nOK\r\n", "unexpected answer"),
        (b"-ERR unknown command 'HELLO'\r\n", "too old"),
        (b"%1\r\n+version\r\n+6.2.14\r\n", "6.2.14"),
        (b"%1\r\n+mode\r\n+sentinel\r\n", "Sentinel"),
        (HELLO + PONG, "reply without a request"),
    ],
)
async def test_answers_of_other_servers(answer: bytes, text: str) -> None:
    impostor = Impostor(answer)
    async with trio.open_nursery() as nursery:
        await nursery.start(impostor.serve)
        assert text in str(await error_of(impostor.address))
        nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_up_and_one_that_never_answers() -> None:
    impostor = Impostor()
    async with trio.open_nursery() as nursery:
        await nursery.start(impostor.serve)
        # It reads the greeting and hangs up.
        assert "closed by the store" in str(await error_of(impostor.address))
        nursery.cancel_scope.cancel()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await error_of(StoreAddress(port=silent.getsockname()[1]), answer_timeout_s=0.2)
        assert "no answer" in str(error)


async def test_a_server_that_is_still_loading_is_unavailable() -> None:
    impostor = Impostor(HELLO, b"-LOADING Redis is loading the dataset in memory\r\n")
    async with trio.open_nursery() as nursery:
        await nursery.start(impostor.serve)
        error = await error_of(impostor.address)
        assert isinstance(error, StoreUnavailable)
        assert "LOADING" in str(error)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("garbage", [b"+1\r\n+2\r\n", b"\x00\x00\r\n", b"+1\r\n!x"])
async def test_garbage_later_ends_the_connection(garbage: bytes) -> None:
    impostor = Impostor(HELLO, PONG, garbage)
    async with trio.open_nursery() as nursery:
        await nursery.start(impostor.serve)
        async with reactor() as poller:
            down = trio.Event()
            link = RedisLink(impostor.address, poller, on_down=lambda error: down.set())
            async with connected(link, poller):
                link.command(("GET", "a"))
                link.flush()
                with trio.fail_after(20):
                    await down.wait()
        nursery.cancel_scope.cancel()


async def test_a_request_that_breaks_every_connection_is_given_up() -> None:
    impostor = Impostor(HELLO, PONG, b"\x00\r\n")
    async with trio.open_nursery() as nursery:
        await nursery.start(impostor.serve)
        async with linked(impostor.address) as link:
            with trio.fail_after(30), pytest.raises(StoreUnavailable):
                await link.call("BOOM", resend=True)
        assert sum(b"BOOM" in request for request in impostor.requests) == 5
        nursery.cancel_scope.cancel()


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> StoreAddress:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost")


async def test_tls(certificate: StoreAddress) -> None:
    with redis_server(tls=certificate) as server:
        async with linked(server.address) as link:
            expected = Expected(41)
            body = random.Random(7).randbytes(1_000_000)
            for i in range(20):
                link.command(("SET", f"k{i}", body + bytes([i])), expected.then)
                link.command(("GET", f"k{i}"), expected.then)
            link.command(("DBSIZE",), expected.then)
            link.flush()
            replies = await expected.wait()
            assert replies[1::2] == [body + bytes([i]) for i in range(20)]
            assert replies[-1] == 20
            server.restart()
            assert await retried(link, "PING") == b"PONG"
        async with linked(replace(server.address, ca_file="", verify=False)) as link:
            assert await link.call("PING") == b"PONG"
        assert "certificate not accepted" in str(await error_of(replace(server.address, ca_file="")))
        assert "certificate not accepted" in str(await error_of(replace(server.address, host="127.0.0.1")))
        assert "TLS files" in str(await error_of(replace(server.address, ca_file="/does/not/exist")))
        plain = await error_of(replace(server.address, tls=False), answer_timeout_s=1.0)
        assert "not Redis protocol" in str(plain) or "closed" in str(plain) or "reset" in str(plain)


async def test_tls_to_a_port_without(server: RedisServer) -> None:
    error = str(await error_of(replace(server.address, tls=True), answer_timeout_s=0.3))
    assert "TLS handshake failed" in error or "is it a TLS port?" in error


async def retried(link: RedisLink, *parts: str) -> object:
    """As a caller would who knows the command to be idempotent."""
    with trio.fail_after(20):
        return await link.call(*parts, resend=True)


def test_tls_context_verifies_unless_told_otherwise() -> None:
    assert StoreAddress(tls=True).ssl_context().verify_mode == ssl.CERT_REQUIRED
    assert StoreAddress(tls=True, verify=False).ssl_context().verify_mode == ssl.CERT_NONE


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://10.0.0.1", StoreAddress(host="10.0.0.1")),
        ("redis://", StoreAddress()),
        ("redis://h:7000/3", StoreAddress(host="h", port=7000, db=3)),
        ("redis://:p%40ss@h", StoreAddress(host="h", password="p@ss")),
        ("rediss://u:p@[::1]:6380/1", StoreAddress("::1", 6380, username="u", password="p", db=1, tls=True)),
        ("rediss://h?ssl_ca_certs=/ca&ssl_cert_reqs=none", StoreAddress("h", tls=True, ca_file="/ca", verify=False)),
        ("unix:///run/r%20s.sock?db=2", StoreAddress(path="/run/r s.sock", db=2)),
        ("unix://u:p@/run/r.sock", StoreAddress(path="/run/r.sock", username="u", password="p")),
    ],
)
def test_url(url: str, address: StoreAddress) -> None:
    parsed = parse_store_url(url)
    assert parsed == address
    assert isinstance(parsed, StoreAddress)
    assert parse_store_url(str(parsed), password=parsed.password) == replace(
        parsed, ca_file="", cert_file="", key_file="", verify=True
    )


def test_urls_of_sentinels_and_clusters() -> None:
    sentinels = parse_store_url(
        "rediss+sentinel://u:p%40@h1:1,h2,[::1]:3/main?db=2&sentinel_username=s&sentinel_password=x&ssl_ca_certs=/ca"
    )
    seed = StoreAddress("h1", 1, username="s", password="x", tls=True, ca_file="/ca")
    assert sentinels == SentinelAddress(
        (seed, replace(seed, host="h2", port=26379), replace(seed, host="::1", port=3)),
        "main",
        StoreAddress(username="u", password="p@", db=2, tls=True, ca_file="/ca"),
    )
    assert str(sentinels) == "rediss+sentinel://h1:1,h2:26379,[::1]:3/main"
    assert "p@" not in repr(sentinels)
    cluster = parse_store_url("redis+cluster://u:p@h1:7000,h2", username="v", password="w")
    seed = StoreAddress("h1", 7000, username="v", password="w")
    assert cluster == ClusterAddress((seed, replace(seed, host="h2", port=6379)))
    assert str(cluster) == "redis+cluster://h1:7000,h2:6379"


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis+cluster://u:secret@h1,h2/1",
        "redis+cluster://u:secret@h1,,h2",
        "redis+cluster://u:se/cret@h1,h2",
        "redis+sentinel://u:secret@h1,h2",
        "redis+sentinel://u:secret@h1,h2:0/name",
        "redis+sentinel://u:secret@h1/a/b",
        "unix+cluster:///x",
        "h:6379",
        "redis://u:se/cret@h",
        "redis://u:se#cret@h",
        "redis://u:secret@h:port",
        "redis://u:secret@h:99999",
        "redis://u:secret@h/db",
        "redis://u:secret@h/1?nonsense=1",
        "redis://u:secret@h?ssl_ca_certs=/x",
        "rediss://u:secret@h?ssl_cert_reqs=maybe",
        "unix://u:secret@",
        "redis://u:secret@[::1",
    ],
)
def test_wrong_url_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_store_url(url)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


def test_no_text_of_an_address_holds_the_password() -> None:
    address = parse_store_url("rediss://rook:pawn-e4@h:1/2")
    assert "pawn-e4" not in str(address) + repr(address)
    assert parse_store_url("redis://a:b@h", username="c", password="d") == StoreAddress("h", username="c", password="d")


def test_the_kit_speaks_to_the_same_server(server: RedisServer) -> None:
    with redis.Redis(port=server.address.port) as plain:
        assert plain.ping()
