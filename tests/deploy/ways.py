"""The ways in through a load balancer, each taken by a real client from an address that only it has."""

from __future__ import annotations

import itertools
import ssl
from typing import Any, NamedTuple

from tests.deploy.composed import USER, Balancer, World
from tests.integration.paho_client import Paho
from tests.kit.certificates import Issued

#: Not the balancer's own.
SOURCE = "127.0.0.77"

_numbers = itertools.count(1)


class Way(NamedTuple):
    """A port in the file of the balancer, and the transport that the node sees."""

    port: str
    seen: str
    tls: bool = False
    web: bool = False


MQTT = Way("1883", "tcp")
MQTTS = Way("8883", "tcp", tls=True)
PASSED = Way("8885", "tls", tls=True)
WS = Way("8083", "ws", web=True)
WSS = Way("8084", "ws", tls=True, web=True)


class _Place(NamedTuple):
    host: str
    port: int


def client(
    world: World, balancer: Balancer, way: Way, name: str = "", *, certificate: Issued | None = None, **options: Any
) -> Paho:
    """One that is not connected yet, with the password of the user."""
    place = _Place("127.0.0.1", balancer.ports[way.port])
    name = name or f"way-{next(_numbers)}"
    made = Paho(place, client_id=name, transport="websockets" if way.web else "tcp", **options)
    made.client.username_pw_set(*USER)
    if way.tls:
        context = ssl.create_default_context(cafile=str(world.chain.ca))
        if certificate is not None:
            context.load_cert_chain(certificate.certfile, certificate.keyfile)
        made.client.tls_set_context(context)
    return made


def enter(world: World, balancer: Balancer, way: Way, certificate: Issued | None = None) -> dict[str, Any]:
    """Connect, send a message there and back, and leave; what the cluster said of the client."""
    with client(world, balancer, way, certificate=certificate).connect(source=SOURCE) as found:
        assert found.reason is not None and not found.reason.is_failure, found.reason
        topic = f"ways/{found.client._client_id.decode()}"
        found.subscribe(topic, 1)
        found.publish(topic, b"there and back", 1)
        assert found.take().payload == b"there and back"
        return world.seen(found.client._client_id.decode())


def check(world: World, balancer: Balancer, way: Way) -> None:
    """Clients get in, and the node knows where they are."""
    seen = enter(world, balancer, way)
    assert (seen["ip"], seen["transport"]) == (SOURCE, way.seen), seen
