"""`rookery ctl rules`: rules in the cluster's store, for the rule source `store`; and which rule decides."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar, cast

import click

from broker.cli.documents import WITHOUT_CONFIGURATION, Opened, documents, is_given, store_options
from broker.cli.settings import load_options
from cluster.registry import RULES, Registry

if TYPE_CHECKING:
    from broker.auth.api import Principal
    from broker.config import Settings

F = TypeVar("F", bound=Callable[..., object])

#: Options that say who a rule is about, and their keys in it.
_WHO = {
    "--username": "User name; repeatable, as the others.",
    "--username-match": "Regular expression for the whole user name.",
    "--client-id": "Client id.",
    "--client-id-match": "Regular expression for the whole client id.",
    "--ip": "Address or network of the client.",
    "--listener": "Name of the listener.",
    "--cert-common-name": "Common name of the client's certificate.",
    "--cert-subject": "Subject of the client's certificate, such as CN=d1,O=Example.",
    "--cert-fingerprint": "SHA-256 of the client's certificate.",
}


@click.group()
def rules() -> None:
    """Rules in the cluster's store, for the rule source `store`; and which rule decides.

    They count in the order of their names: 10-admins before 20-devices. Changes count on every node within a second.
    """


def _who_options(command: F) -> F:
    for option, text in reversed(_WHO.items()):
        command = click.option(option, multiple=True, metavar="TEXT", help=text)(command)
    return command


_name = click.argument("name")


@rules.command()
@store_options
@_who_options
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="A client attribute.")
@click.option("--anonymous/--proved", default=None, help="Only clients without, or with, an identity that was proved.")
@click.option("--qos", multiple=True, type=click.IntRange(0, 2), help="QoS of a PUBLISH, or asked for in SUBSCRIBE.")
@click.option("--retain/--no-retain", default=None, help="Only messages with, or without, the retain flag.")
@click.option("--comment", help="Text for those who read it.")
@click.option("--replace", is_flag=True, help="Instead of the rule of that name, if there is one.")
@_name
@click.argument("permission", type=click.Choice(["allow", "deny"]))
@click.argument("action", type=click.Choice(["publish", "subscribe", "all"]))
@click.argument("topics", nargs=-1, required=True)
def add(
    name: str,
    permission: str,
    action: str,
    topics: tuple[str, ...],
    attributes: tuple[str, ...],
    anonymous: bool | None,
    qos: tuple[int, ...],
    retain: bool | None,
    comment: str | None,
    replace: bool,
    **rest: object,
) -> None:
    """Make a rule: rookery ctl rules add 20-devices allow publish 'up/${clientid}/#'

    Without options about clients it is about all of them. Topics may have placeholders, and `eq TOPIC` is that very
    text.
    """
    table: dict[str, object] = {"permission": permission, "action": action, "topics": list(topics)}
    for option in _WHO:
        key = option.removeprefix("--").replace("-", "_")
        given = rest.pop(key)
        if given:
            table[key] = list(cast(Iterable[str], given))
    if attributes:
        table["client_attrs"] = _attributes(attributes)
    for key, value in (("anonymous", anonymous), ("retain", retain), ("comment", comment)):
        if value is not None:
            table[key] = value
    if qos:
        table["qos"] = list(qos)
    document = _checked(name, table)
    with documents(rest) as opened:
        if not replace and opened.document(RULES, name) is not None:
            raise click.ClickException(f"there is a rule {name!r} already; --replace puts this in its place")
        opened.change(RULES, {name: document})


def _checked(name: str, table: Mapping[str, object]) -> bytes:
    from broker.auth.stored_rules import rule_document

    try:
        return rule_document(name, table)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _attributes(pairs: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"--attribute {pair!r:.60}: write NAME=VALUE")
        found.setdefault(name, []).append(value)
    return found


@rules.command()
@store_options
@_name
def remove(name: str, **store: object) -> None:
    """Remove a rule."""
    with documents(store) as opened:
        _existing(opened, name)
        opened.change(RULES, {name: None})


@rules.command("list")
@store_options
def list_rules(**store: object) -> None:
    """Print all rules in the order in which they count, one per line."""
    with documents(store) as opened:
        for line in rule_lines(opened.documents(RULES)):
            print(line)


def rule_lines(found: Mapping[str, bytes]) -> list[str]:
    """What `list` prints."""
    return [
        f"{name if name.isprintable() else repr(name)}: {_summary(name, raw)}" for name, raw in sorted(found.items())
    ]


@rules.command()
@store_options
@_name
def show(name: str, **store: object) -> None:
    """Print one rule as JSON."""
    with documents(store) as opened:
        raw = _existing(opened, name)
    try:
        text = json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = raw.decode("utf-8", "replace")
    print(text)


def _existing(opened: Opened, name: str) -> bytes:
    raw = opened.document(RULES, name)
    if raw is None:
        raise click.ClickException(f"there is no rule {name!r}")
    return raw


def _summary(name: str, raw: bytes) -> str:
    from broker.auth.stored_rules import stored_rule

    try:
        stored_rule(name, raw)
    except ValueError as error:
        return f"cannot be understood, so everything after it is denied: {error}"
    table: dict[str, object] = json.loads(raw)
    first = [str(table.pop("permission")), str(table.pop("action", "all"))]
    topics = table.pop("topics")
    first += [topics] if isinstance(topics, str) else [str(each) for each in cast(Iterable[object], topics)]
    return " ".join([*first, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in table.items())])


# -- asking


@rules.command()
@store_options
@click.option("--username", help="User name of the client. [default: none]")
@click.option("--claimed", is_flag=True, help="Nobody checked the user name.")
@click.option("--superuser", is_flag=True, help="The client is a superuser.")
@click.option("--client-id", default="client", show_default=True, help="Client id.")
@click.option("--ip", default="127.0.0.1", show_default=True, help="Address of the client.")
@click.option("--listener", default="", help="Name of the listener.")
@click.option("--cert-common-name", default="", help="Common name of the client's certificate.")
@click.option("--cert-subject", default="", help="Subject of the client's certificate.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="A client attribute.")
@click.option("--qos", default=0, type=click.IntRange(0, 2), help="QoS. [default: 0]")
@click.option("--retain", is_flag=True, help="The message is a retained one.")
@click.argument("action", type=click.Choice(["publish", "subscribe", "read"]))
@click.argument("topic")
def test(
    username: str | None,
    claimed: bool,
    superuser: bool,
    client_id: str,
    ip: str,
    listener: str,
    cert_common_name: str,
    cert_subject: str,
    attributes: tuple[str, ...],
    qos: int,
    retain: bool,
    action: str,
    topic: str,
    **store: object,
) -> int:
    """Say which rule decides: rookery ctl rules test --config rookery.toml --username ann publish a/b

    Asks the rule sources of the configuration as a node would, `read` for a message that is to be delivered. The exit
    status is 0 for allow, 1 for deny, 2 if there is no configuration to ask. `rookery ctl api rules test` asks a node.
    """
    from broker.auth.api import ANONYMOUS, Principal
    from broker.peer import Certificate, Peer

    loaded = load_options(store)
    if not is_given(loaded, "config", "authorization", "hooks"):
        # The settings by default have no rules: that everything is allowed is no answer about any node.
        raise click.UsageError(
            f"there are no rules to ask {WITHOUT_CONFIGURATION}, or ask a node: rookery ctl api rules test"
            f" --action {action} --topic {shlex.quote(topic)}"
        )
    settings = loaded.settings
    certificate = Certificate(cert_common_name, cert_subject) if cert_common_name or cert_subject else None
    identity = ANONYMOUS if claimed or username is None else username
    principal = Principal(
        identity,
        client_id,
        Peer(ip, 0, _listener(settings, listener), certificate=certificate),
        username,
        superuser=superuser,
        attributes={name: values[-1] for name, values in _attributes(attributes).items()},
    )
    return _tested(settings, principal, action, topic, qos, retain, store)


def _listener(settings: Settings, name: str) -> str:
    """The listener by which the client came, where rules are for some listeners only."""
    from broker.access import listeners_of

    known = [each.name for each in settings.listen]
    if name and name not in known:
        raise click.UsageError(f"--listener {name!r:.80}: there are {', '.join(known)}")
    if name or len(known) == 1:
        return name or known[0]
    if any(listeners_of(each) for each in settings.authorization):
        raise click.UsageError(
            f"some rules are for clients of some listeners only: give --listener ({', '.join(known)})"
        )
    return name


def _tested(
    settings: Settings,
    principal: Principal,
    action: str,
    topic: str,
    qos: int,
    retain: bool,
    store: Mapping[str, object],
) -> int:
    import trio

    from broker.access import Access
    from broker.auth.api import PUBLISH, READ, SUBSCRIBE, BackendError
    from broker.auth.explain import explain_once
    from broker.errors import PeerError
    from broker.topics.names import check_topic_filter, check_topic_name, split_shared

    try:
        if action == "subscribe":
            check_topic_filter(topic)
            topic = split_shared(topic)[1]
        else:
            check_topic_name(topic)
    except PeerError as error:
        raise click.UsageError(str(error)) from None
    number = {"publish": PUBLISH, "subscribe": SUBSCRIBE, "read": READ}[action]
    with ExitStack() as stack:
        registry: Registry | None = None
        if any(each.TYPE == "store" for each in settings.authorization):
            registry = cast(Registry, _Reading(stack.enter_context(documents(store))))
        access = Access(settings, registry)
        try:
            found = trio.run(explain_once, access.authorization, principal, number, topic, qos, retain)
        except BackendError as error:
            raise click.ClickException(f"a rule source cannot be asked: {error}") from None
    print(found)
    for note in found.notes:
        print(f"  {note}")
    if not access.sources:
        print(
            f"  {settings.config or 'this configuration'} names no authorization, so a node with it allows everything"
        )
    return 0 if found.allowed else 1


class _Reading:
    """As much of a `Registry` as rule sources need."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def documents(self, kind: str) -> dict[str, bytes]:
        """All documents of a kind."""
        return self._opened.documents(kind)
