"""The nodes of the cluster: how they are, and whether they take clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from broker import __version__
from broker.admin.api import CONFLICT, OPERATOR, VIEWER, AdminError
from broker.admin.operations import Nothing, operation
from broker.admin.questions import question
from broker.errors import ConfigError

if TYPE_CHECKING:
    from broker.admin.office import Office


class Node(msgspec.Struct, kw_only=True):
    """One live node. `status` is `ready` or says why clients should go elsewhere. `listeners` are URLs with the ports
    that they have, of the address that the node listens on."""

    node: str
    status: str
    version: str = ""
    uptime_s: float = 0.0
    listeners: list[str] = []
    member: str = ""
    members: list[str] = []
    pid: int = 0
    store: str = ""
    store_version: str = ""
    durability: str = ""
    store_round_trip_ms: float = 0.0
    connections: int = 0


class Nodes(msgspec.Struct):
    """All of them, by name; one that did not answer in time has the status `does not answer`."""

    items: list[Node]


class NamedNode(msgspec.Struct, frozen=True):
    """Which node."""

    node: Annotated[str, msgspec.Meta(description="The name of the node.")]


@question("nodes.report")
def _report(office: Office, arguments: dict[str, Any]) -> Any:
    node = office.node
    return {
        **node.report().shown(),
        "version": __version__,
        "uptime_s": round(time.time() - node.started_at_s, 1),
        "listeners": node.addresses,
    }


@question("nodes.drain")
def _drain(office: Office, arguments: dict[str, Any]) -> None:
    if arguments["wanted"]:
        office.node.drain()
        return
    try:
        office.node.undrain()
    except ConfigError as error:
        raise AdminError(CONFLICT, "the address is taken", str(error)) from None


@operation("nodes.list", VIEWER, "GET", "/nodes", "List the nodes of the cluster", Nothing, Nodes)
async def list_nodes(office: Office, arguments: Nothing) -> Nodes:
    """Every live node as it is now."""
    answers = await office.everywhere("nodes.report")
    found = [msgspec.convert(shown, Node) for shown in answers.by_node.values()]
    found += [Node(node=name, status="does not answer") for name in answers.missing]
    return Nodes(sorted(found, key=lambda node: node.node))


@operation("nodes.show", VIEWER, "GET", "/nodes/{node}", "Show a node", NamedNode, Node)
async def show_node(office: Office, arguments: NamedNode) -> Node:
    """One node as it is now."""
    return msgspec.convert(await office.at(arguments.node, "nodes.report"), Node)


@operation(
    "nodes.drain", OPERATOR, "POST", "/nodes/{node}/drain", "Send the clients of a node away", NamedNode, Nothing
)
async def drain_node(office: Office, arguments: NamedNode) -> None:
    """The node says in /readyz that it is draining; after its drain_delay it accepts no clients any more, and
    disconnects those it has at its drain rate. It goes on running, and takes clients again after undrain."""
    await office.at(arguments.node, "nodes.drain", {"wanted": True})


@operation(
    "nodes.undrain", OPERATOR, "POST", "/nodes/{node}/undrain", "Let a node take clients again", NamedNode, Nothing
)
async def undrain_node(office: Office, arguments: NamedNode) -> None:
    """The end of a drain."""
    await office.at(arguments.node, "nodes.drain", {"wanted": False})
