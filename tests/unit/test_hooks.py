"""Hooks: what they decide, and that nothing they do wrong hurts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from broker.access import Access
from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, SUBSCRIBE, BackendError, ConnectRequest, Principal
from broker.config import Settings, load
from broker.errors import ConfigError, PeerError
from broker.hooks.running import Hooks
from broker.message import Message
from broker.metrics import Metrics
from broker.options import read_options
from broker.options.hooks import Hook
from broker.peer import Peer

ANN = Principal("ann", "c1", Peer("10.0.0.1"), "ann")
REQUEST = ConnectRequest("c1", "ann", b"sesame", Peer("10.0.0.1"))

Make = Callable[..., Hooks]

_numbers = count()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: Metrics) -> Make:
    """Hooks whose class has these methods: `make("async def connect(self, request): return False")`."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(*methods: str, **options: object) -> Hooks:
        name = f"made_{next(_numbers)}"
        body = "\n".join(f"    {line}" for method in methods for line in method.splitlines())
        head = "import time, trio\nfrom broker.hooks import *\n\nclass Made:\n    def __init__(self, options):\n"
        (tmp_path / f"{name}.py").write_text(f"{head}        self.options = options\n{body}\n")
        return Hooks([read_options(Hook, {"target": f"{name}:Made", "name": "h", **options})], metrics)

    return make


def message(**more: Any) -> Message:
    return Message(b"a/b", b"payload", 1, False, **more)


async def refusal(hooks: Hooks) -> int:
    with pytest.raises(PeerError) as caught:
        await hooks.connect(REQUEST)
    return caught.value.reason_code


async def test_connect(make: Make) -> None:
    assert not Hooks([]).connects
    hooks = make("async def connect(self, request): return None")
    assert hooks.connects and not hooks.publishes and not hooks.delivers and not hooks.disconnects
    assert hooks.authenticators() == [] and hooks.sources() == []
    await hooks.connect(REQUEST)


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("return False", 0x87),
        ("raise Refused", 0x87),
        ("raise Refused(0x97, 'enough')", 0x97),
        ("raise Refused(0x00, 'no such code')", 0x87),
        ("raise ValueError", 0x88),
        ("raise SystemExit", 0x88),
        ("raise ExceptionGroup('a', [ValueError()])", 0x88),
        ("return 'yes'", 0x88),
        ("await trio.sleep_forever()", 0x88),
    ],
)
async def test_connect_refuses(make: Make, metrics: Metrics, does: str, code: int) -> None:
    hooks = make(f"async def connect(self, request): {does}", timeout="20ms")
    assert await refusal(hooks) == code
    kind = {"await trio.sleep_forever()": "timeout"}.get(does, "error")
    assert dict(metrics.hooks) == ({f"h,connect,{kind}": 1} if code == 0x88 else {})
    if code == 0x88:
        await make(f"async def connect(self, request): {does}", timeout="20ms", on_error="ignore").connect(REQUEST)


@pytest.mark.parametrize(
    ("does", "decision"),
    [
        ("None", IGNORE),
        ("True", ALLOW),
        ("False", DENY),
        ("Verdict(ALLOW, 'bob', superuser=True)", ALLOW),
        ("Verdict(DENY)", DENY),
    ],
)
async def test_authenticate(make: Make, does: str, decision: int) -> None:
    [subject] = make(f"async def authenticate(self, request): return {does}").authenticators()
    found = await subject.authenticate(REQUEST)
    assert found.decision == decision and subject.name == "h"
    assert found.username == ("bob" if "bob" in does else None)


UNSOUND = [
    "'a\\0b'",
    "'a' * 65536",
    "'\\ud800'",
    "7",
    "'a', client_id=''",
    "'a', client_id='a\\0b'",
    "'a', client_id='a' * 65536",
    "'a', client_id='\\ud800'",
    "'a', client_id=7",
    "'a', superuser='no'",
    "'a', expires_at_s='soon'",
    "'a', expires_at_s=True",
    "'a', expires_at_s=float('nan')",
    "'a', expires_at_s=float('inf')",
    "'a', expires_at_s=-1",
    "'a', attributes=None",
    "'a', attributes=[('a', 'b')]",
    "'a', attributes={'a': 1}",
    "'a', rules='allow'",
    "'a', rules=7",
    "'a', credential='text'",
]


@pytest.mark.parametrize(
    "does",
    ["return Verdict(ALLOW, '')", "return Verdict(9)", "return 1", "raise KeyError"]
    + [f"return Verdict(ALLOW, {what})" for what in UNSOUND],
)
async def test_authenticate_fails(make: Make, does: str) -> None:
    [subject] = make(f"async def authenticate(self, request): {does}").authenticators()
    with pytest.raises(BackendError):
        await subject.authenticate(REQUEST)
    [subject] = make(f"async def authenticate(self, request): {does}", on_error="ignore").authenticators()
    assert (await subject.authenticate(REQUEST)).decision == IGNORE


async def test_authorize(make: Make, metrics: Metrics) -> None:
    method = """async def authorize(self, client, action, topic, qos, retain):
    if topic == "wrong":
        raise ValueError
    return {"publish a 1 True": True, "subscribe b/# 0 False": False}.get(f"{action} {topic} {qos} {retain}")"""
    [source] = make(method).sources()
    judge = await source.open(ANN)
    assert await judge.ask(PUBLISH, "a", 1, True) == ALLOW == judge.decide(PUBLISH, "a", 1, True)
    assert await judge.ask(SUBSCRIBE, "b/#", 0, False) == DENY
    assert await judge.ask(PUBLISH, "c", 0, False) == IGNORE
    with pytest.raises(BackendError):
        await judge.ask(PUBLISH, "wrong", 0, False)
    assert metrics.hooks["h,authorize,error"] == 1
    [source] = make(method, on_error="ignore").sources()
    judge = await source.open(ANN)
    assert await judge.ask(PUBLISH, "wrong", 0, False) == IGNORE
    # A failure is no answer to be kept.
    assert judge.decide(PUBLISH, "wrong", 0, False) is None


async def test_answers_of_authorize_grow_old(make: Make, autojump_clock: trio.testing.MockClock) -> None:
    [source] = make("async def authorize(self, *asked): return True", refresh="10s").sources()
    judge = await source.open(ANN)
    await judge.ask(PUBLISH, "a", 0, False)
    await trio.sleep(9)
    assert judge.decide(PUBLISH, "a", 0, False) == ALLOW
    await trio.sleep(2)
    assert judge.decide(PUBLISH, "a", 0, False) is None


async def test_publish(make: Make) -> None:
    given = message(expiry_s=7, message_id=b"id", publisher=b"p")
    for same in ("None", "True", "message", "message.replace()"):
        assert await make(f"async def publish(self, client, message): return {same}").publish(ANN, given) is given
    assert await make("async def publish(self, client, message): return False").publish(ANN, given) is None
    changed = await make(
        "async def publish(self, client, message):\n"
        "    assert (client.username, message.topic, message.qos) == ('ann', 'a/b', 1)\n"
        "    return message.replace(topic='é', payload=b'x', retain=True, user_properties=(('k', 'v'),))"
    ).publish(ANN, given)
    assert changed is not None
    assert (changed.topic, changed.payload, changed.qos, changed.retain) == ("é".encode(), b"x", 1, True)
    assert changed.properties == b"\x26\0\1k\0\1v"
    assert (changed.expiry_s, changed.message_id, changed.publisher) == (7, b"id", b"p")
    # What a hook does not touch stays byte for byte, properties that it does not see included.
    kept = await make("async def publish(self, client, message): return message.replace(payload=b'y')").publish(
        ANN, changed
    )
    assert kept is not None and kept.properties == changed.properties and kept.payload == b"y"


@pytest.mark.parametrize(
    "does",
    [
        "return 'text'",
        "return message.replace(payload='text')",
        "return message.replace(topic='')",
        "return message.replace(topic='\\ud800')",
        "return message.replace(user_properties=((1, 2),))",
        "import dataclasses; return dataclasses.replace(message, qos=2)",
        "raise ValueError",
        "await trio.sleep_forever()",
    ],
)
async def test_publish_fails(make: Make, metrics: Metrics, does: str) -> None:
    given = message()
    method = f"async def publish(self, client, message): {does}"
    assert await make(method, timeout="20ms").publish(ANN, given) is None
    assert await make(method, timeout="20ms", on_error="ignore").publish(ANN, given) is given
    assert sum(metrics.hooks.values()) == 2


async def test_deliver_and_disconnect_are_told_in_order(make: Make, nursery: trio.Nursery) -> None:
    hooks = make(
        "seen = []",
        "done = trio.Event()",
        "async def deliver(self, client, message):\n    await trio.sleep(0)\n    self.seen.append(message.payload)",
        "async def disconnect(self, client, reason):\n    self.seen.append(reason)\n    self.done.set()",
    )
    await nursery.start(hooks.serve)
    for number in range(100):
        hooks.delivered(ANN, Message(b"t", b"%d" % number, 0, False))
    hooks.disconnected(ANN, "bye")
    [running] = hooks.running
    made: Any = running.methods["deliver"].__self__  # type: ignore[attr-defined]
    with trio.fail_after(10):
        await made.done.wait()
    assert made.seen == [b"%d" % number for number in range(100)] + ["bye"]


async def test_what_is_not_told_is_counted(make: Make, metrics: Metrics, nursery: trio.Nursery) -> None:
    hooks = make(
        "async def deliver(self, client, message): raise ValueError",
        "async def disconnect(self, client, reason): pass",
        queue=10,
    )
    for _ in range(15):
        hooks.delivered(ANN, message())
    assert metrics.hooks == {"h,deliver,dropped": 5}
    await nursery.start(hooks.serve)
    await trio.testing.wait_all_tasks_blocked()
    assert metrics.hooks == {"h,deliver,dropped": 5, "h,deliver,error": 10}
    for _ in range(3):
        hooks.delivered(ANN, Message(b"t", b"x" * (12 << 20), 0, False))
    assert metrics.hooks["h,deliver,dropped"] == 6
    nursery.cancel_scope.cancel()


async def test_a_failure_is_logged_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = make("async def connect(self, request): raise ValueError('detail')")
    for _ in range(3):
        assert await refusal(hooks) == 0x88
    assert capsys.readouterr().out.count("hook.failed") == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Made = None",
        "class Made:\n    def __init__(self): pass",
        "class Made:\n    def __init__(self, options): 1 / 0",
        "class Made:\n    def __init__(self, o): pass\n    def connect(self, request): pass",
        "import nowhere",
        "1 /",
        "1 / 0",
    ],
)
def test_hooks_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    name = f"lost_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=name):
        Hooks([read_options(Hook, {"target": f"{name}:Made"})])


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packaged.py").write_text(
        "class Made:\n    async def connect(self, request): pass\n"
        "def make(options):\n    return Made()\nready = Made()\n"
    )
    folder = tmp_path / "packaged-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[rookery.hooks]\nfirst = packaged:make\nsecond = packaged:ready\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first", "second"):
        assert Hooks([read_options(Hook, {"target": name})]).connects
    with pytest.raises(ConfigError, match="first"):
        Hooks([read_options(Hook, {"target": "third"})])


def settings(tmp_path: Path, methods: str, listen: str) -> Settings:
    (tmp_path / "gate.py").write_text(f"class Gate:\n    def __init__(self, options): pass\n    {methods}\n")
    return load({"hooks": "hook?target=gate:Gate", "listen": listen}, {}).settings


def test_a_listener_is_open_only_to_those_that_somebody_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    checks = "async def authenticate(self, request): pass"
    only_sees = "async def publish(self, client, message): pass"
    assert Access(settings(tmp_path, checks, "tcp://0.0.0.0:1883"), None).chain.authenticators
    monkeypatch.delitem(__import__("sys").modules, "gate")
    Access(settings(tmp_path, only_sees, "tcp://127.0.0.1:1883"), None)
    with pytest.raises(ConfigError, match="checks"):
        Access(settings(tmp_path, only_sees, "tcp://0.0.0.0:1883"), None)
    with pytest.raises(ConfigError, match="without authenticate"):
        Access(settings(tmp_path, only_sees, "tcp://127.0.0.1:1883?authentication=gate:Gate"), None)


def test_hooks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="name 'gate:Gate'"):
        load({"hooks": "hook?target=gate:Gate hook?target=gate:Gate"}, {})
