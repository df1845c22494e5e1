"""Rules in the cluster's store, for the rule source `store`; and which rule decides a question."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import trio

from broker.admin.api import ADMIN, BAD_REQUEST, NOT_FOUND, OPERATOR, TIMED_OUT, UNAVAILABLE, VIEWER, AdminError
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import LIMIT, Cursor, Limit, Part, Text, cursor_of, key_of, merged
from broker.auth.api import ANONYMOUS, PUBLISH, READ, SUBSCRIBE, BackendError, Principal
from broker.auth.explain import explain
from broker.auth.stored_rules import rule_document, stored_rule
from broker.errors import PeerError
from broker.peer import Certificate, Peer
from broker.topics.names import check_topic_filter, check_topic_name, split_shared
from cluster.registry import RULES

if TYPE_CHECKING:
    from broker.admin.office import Office

#: How long rule sources that have to be asked may take.
_PATIENCE_S: Final = 10.0

_ACTIONS: Final = {"publish": PUBLISH, "subscribe": SUBSCRIBE, "read": READ}
_Short = Annotated[str, msgspec.Meta(max_length=1000)]


class RuleFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the list."""

    limit: Limit = LIMIT
    cursor: Cursor = ""


class Rule(msgspec.Struct, kw_only=True):
    """A rule by its name; `rule` has the keys of a [[rule]] table. `error`: what is wrong with it, so that everything
    after it is denied; null if it is understood."""

    name: str
    rule: dict[str, Any]
    error: str | None = None


class NamedRule(msgspec.Struct, frozen=True):
    """Which rule."""

    name: Annotated[Text, msgspec.Meta(description="The name of the rule.")]


class RuleChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule, for instance {"permission": "allow", "action": "publish", "topics": ["up/${clientid}/#"]}."""

    name: Annotated[Text, msgspec.Meta(description="The name of the rule: they count in the order of their names.")]
    rule: Annotated[dict[str, Any], msgspec.Meta(description="The keys of a [[rule]] table.")]


class RuleTest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question: may this client do this? `read`: get a message that is delivered. `topic` is a filter to subscribe
    to. `claimed`: nobody checked the user name."""

    action: Annotated[Literal["publish", "subscribe", "read"], msgspec.Meta(description="What the client wants to do.")]
    topic: Annotated[
        str, msgspec.Meta(min_length=1, max_length=65535, description="The topic name, or the filter to subscribe to.")
    ]
    client_id: Annotated[Text, msgspec.Meta(description="Client id.")] = "client"
    username: Annotated[Text | None, msgspec.Meta(description="User name.")] = None
    claimed: Annotated[bool, msgspec.Meta(description="Nobody checked the user name.")] = False
    superuser: Annotated[bool, msgspec.Meta(description="The client is a superuser.")] = False
    ip: Annotated[str, msgspec.Meta(max_length=64, description="Address of the client.")] = "127.0.0.1"
    listener: Annotated[_Short, msgspec.Meta(description="Name of the listener.")] = ""
    cert_common_name: Annotated[_Short, msgspec.Meta(description="Common name of the client's certificate.")] = ""
    cert_subject: Annotated[_Short, msgspec.Meta(description="Subject of the client's certificate.")] = ""
    attributes: Annotated[dict[str, _Short], msgspec.Meta(description="Client attributes.")] = {}
    qos: Annotated[int, msgspec.Meta(ge=0, le=2, description="QoS.")] = 0
    retain: Annotated[bool, msgspec.Meta(description="The message is a retained one.")] = False


class RuleAnswer(msgspec.Struct, kw_only=True):
    """The answer, which rule or source gives it, and what else there is to know."""

    allowed: bool
    reason: str
    notes: list[str]


def _rule(name: str, raw: bytes) -> Rule:
    error = None
    try:
        stored_rule(name, raw)
    except ValueError as problem:
        error = str(problem)
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        table = None
    return Rule(name=name, rule=table if isinstance(table, dict) else {}, error=error)


async def _document(office: Office, name: str) -> bytes:
    raw = await office.registry.document(RULES, name)
    if raw is None:
        raise AdminError(NOT_FOUND, "no such rule", f"there is no rule {name!r:.200} in the store")
    return raw


@operation("rules.list", VIEWER, "GET", "/rules", "List the rules in the store", RuleFilter, Page[Rule])
async def list_rules(office: Office, arguments: RuleFilter) -> Page[Rule]:
    """Rules of the source `store`, in the order in which they count: that of their names."""
    after = key_of(arguments.cursor)
    documents = await office.registry.documents(RULES)
    rules = [((name,), name) for name in documents if after is None or (name,) > after]
    names, until = merged([Part(rules, None)], arguments.limit)
    return Page(items=[_rule(name, documents[name]) for name in names], cursor=cursor_of(until))


@operation("rules.show", VIEWER, "GET", "/rules/{name}", "Show a rule", NamedRule, Rule)
async def show_rule(office: Office, arguments: NamedRule) -> Rule:
    """One of them."""
    return _rule(arguments.name, await _document(office, arguments.name))


@operation("rules.put", ADMIN, "PUT", "/rules/{name}", "Make or replace a rule", RuleChange, Rule)
async def put_rule(office: Office, arguments: RuleChange) -> Rule:
    """Makes a rule, or puts it in the place of the one of this name. Counts on every node within about a second, for
    clients that are connected, too."""
    try:
        document = rule_document(arguments.name, arguments.rule)
    except (ValueError, RecursionError) as error:
        raise AdminError(BAD_REQUEST, "invalid rule", str(error)) from None
    await office.registry.change(RULES, {arguments.name: document})
    return _rule(arguments.name, document)


@operation("rules.delete", ADMIN, "DELETE", "/rules/{name}", "Remove a rule", NamedRule, Nothing)
async def delete_rule(office: Office, arguments: NamedRule) -> None:
    """Counts on every node within about a second."""
    await _document(office, arguments.name)
    await office.registry.change(RULES, {arguments.name: None})


@operation("rules.test", OPERATOR, "POST", "/rules/test", "Ask which rule decides", RuleTest, RuleAnswer)
async def test_rules(office: Office, arguments: RuleTest) -> RuleAnswer:
    """Asks the rule sources of the node that answers, as for a client that is connected. Nothing is published."""
    topic = arguments.topic
    try:
        if arguments.action == "subscribe":
            check_topic_filter(topic)
            topic = split_shared(topic)[1]
        else:
            check_topic_name(topic)
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic", error.text) from None
    certificate = None
    if arguments.cert_common_name or arguments.cert_subject:
        certificate = Certificate(arguments.cert_common_name, arguments.cert_subject)
    username = arguments.username
    principal = Principal(
        ANONYMOUS if arguments.claimed or username is None else username,
        arguments.client_id,
        Peer(arguments.ip, 0, arguments.listener, certificate=certificate),
        username,
        superuser=arguments.superuser,
        attributes=arguments.attributes,
    )
    authorization = office.server.access.authorization
    action = _ACTIONS[arguments.action]
    with trio.move_on_after(_PATIENCE_S):
        try:
            found = await explain(authorization, principal, action, topic, arguments.qos, arguments.retain)
        except BackendError as error:
            raise AdminError(UNAVAILABLE, "a rule source cannot be asked", str(error)) from None
        return RuleAnswer(allowed=found.allowed, reason=found.reason, notes=found.notes)
    raise AdminError(TIMED_OUT, "no answer", "a rule source does not answer in time")
