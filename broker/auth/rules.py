"""Rules: who, may or may not, do what, to which topics. Read from tables, bound to a client when it connects.

A table has these keys; all but `permission` and `topics` may be left out:

- `permission`: allow or deny
- `action`: publish, subscribe (reading what is delivered included) or all
- `topics`: filters; placeholders such as `${username}` stand within a level; `eq FILTER` means this very text
- `qos`: of the PUBLISH, or asked for in SUBSCRIBE; a number or a list
- `retain`: true or false, the flag of the PUBLISH; it says nothing about subscriptions
- who: `username`, `username_match` (a regular expression for the whole of it), `client_id`, `client_id_match`, `ip`
  (addresses and networks), `listener`, `cert_common_name`, `cert_subject`, `cert_fingerprint`, `client_attrs` (a table)
  and `anonymous` (whether nobody proved who the client is). Lists mean any of them; all that is given must hold.
- `comment`: text for those who read it
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from broker.auth import api
from broker.auth.api import ALLOW, ANONYMOUS, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE, Principal
from broker.auth.judging import ANY_QOS, EntriesJudge, Entry
from broker.auth.template import TOPIC_FORBIDDEN, Lookup, Template, Unresolved, lookup_of
from broker.errors import PeerError
from broker.peer import network_of
from broker.topics.names import check_topic_filter

PERMISSIONS: Final = {"allow": ALLOW, "deny": DENY}
ACTIONS: Final = {"publish": PUBLISH, "subscribe": SUBSCRIBE | READ, "all": PUBLISH | SUBSCRIBE | READ}

#: Whether a condition holds for a client.
Condition = Callable[[Principal], bool]

#: Characters of a name that are matched at most: what clients choose must not keep the node busy. To longer ones rules
#: with `*_match` apply if they deny, and do not if they allow.
MATCHED: Final = 256


class TopicTemplate:
    """A topic filter with placeholders; ValueError for what can be no filter."""

    __slots__ = ("_template", "literal", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.literal = text.startswith("eq ")
        template = Template(text.removeprefix("eq "))
        try:
            check_topic_filter(template.render(lambda name: "x"))
        except PeerError as error:
            raise ValueError(str(error)) from None
        if template.text.startswith("$share/"):
            raise ValueError(f"{text!r:.80}: rules are about the filter behind $share/NAME/")
        #: None: the text is the filter.
        self._template = template if template.names else None

    def render(self, lookup: Lookup) -> str | None:
        """The filter for a client; None if a value is missing, or would change the levels or what is matched."""
        if self._template is None:
            return self.text.removeprefix("eq ")
        try:
            found = self._template.render(lookup, TOPIC_FORBIDDEN)
        except Unresolved:
            return None
        # The topics that begin with $ are the broker's: no value leads there.
        return None if found.startswith("$") and self._template.text.startswith("${") else found


class Rule:
    """One rule. `origin` says where it stands; `usernames` and `client_ids` are those it can be about, None: any."""

    __slots__ = ("_conditions", "_topics", "actions", "client_ids", "decision", "origin", "qos", "retain", "usernames")

    def __init__(
        self,
        decision: int,
        actions: int,
        topics: Sequence[TopicTemplate],
        conditions: Sequence[Condition] = (),
        *,
        qos: int = ANY_QOS,
        retain: bool | None = None,
        usernames: frozenset[str] | None = None,
        client_ids: frozenset[str] | None = None,
        origin: str = "",
    ) -> None:
        self.decision = decision
        self.actions = actions
        self.qos = qos
        self.retain = retain
        self.usernames = usernames
        self.client_ids = client_ids
        self.origin = origin
        self._conditions = conditions
        self._topics: list[tuple[TopicTemplate, Entry | None]] = []
        for topic in topics:
            fixed = topic.render(_nothing)
            # What is the same for everybody is made once.
            self._topics.append((topic, None if fixed is None else self._entry(topic, fixed)))

    def entries(self, principal: Principal) -> list[Entry]:
        """What it means for a client: nothing, if it is not about it."""
        if self.usernames is not None and principal.username not in self.usernames:
            return []
        if self.client_ids is not None and principal.client_id not in self.client_ids:
            return []
        if not all(holds(principal) for holds in self._conditions):
            return []
        found: list[Entry] = []
        lookup = lookup_of(principal)
        for topic, fixed in self._topics:
            if fixed is not None:
                found.append(fixed)
                continue
            rendered = topic.render(lookup)
            if rendered is not None:
                found.append(self._entry(topic, rendered))
        return found

    def _entry(self, topic: TopicTemplate, rendered: str) -> Entry:
        return Entry(
            self.decision,
            self.actions,
            rendered,
            self.origin,
            literal=topic.literal,
            qos=self.qos,
            retain=self.retain,
        )


def _nothing(name: str) -> None:
    return None


class RuleSet:
    """Rules in order, found by user name and client id where they name some: many rules cost a client little.

    `otherwise` is the answer where none applies."""

    __slots__ = ("_by_client_id", "_by_username", "_general", "otherwise", "rules")

    def __init__(self, rules: Iterable[Rule] = (), otherwise: int = IGNORE) -> None:
        self.rules = tuple(rules)
        self.otherwise = otherwise
        self._general: list[int] = []
        self._by_username: defaultdict[str, list[int]] = defaultdict(list)
        self._by_client_id: defaultdict[str, list[int]] = defaultdict(list)
        for number, rule in enumerate(self.rules):
            if rule.usernames is not None:
                for name in rule.usernames:
                    self._by_username[name].append(number)
            elif rule.client_ids is not None:
                for name in rule.client_ids:
                    self._by_client_id[name].append(number)
            else:
                self._general.append(number)

    def judge(self, principal: Principal) -> EntriesJudge:
        """The rules for one client."""
        numbers = self._general
        more = [*self._by_username.get(principal.username or "", ()), *self._by_client_id.get(principal.client_id, ())]
        if more:
            numbers = sorted([*numbers, *more])
        entries = [entry for number in numbers for entry in self.rules[number].entries(principal)]
        return EntriesJudge(entries, self.otherwise)


def judge_of(rules: Sequence[api.Rule], principal: Principal) -> EntriesJudge:
    """A judge over rules that were found for one client."""
    return EntriesJudge([entry for rule in rules for entry in rule.entries(principal)])


# -- tables


def rule_from(table: Mapping[str, object], origin: str = "") -> Rule:
    """The rule that a table describes; ValueError names the key that is wrong."""
    for key in table:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
            raise ValueError(f"unknown key {key!r:.60}" + (f"; did you mean {close[0]}?" if close else ""))
    for key in ("permission", "topics"):
        if key not in table:
            raise ValueError(f"{key} is missing")
    at = "permission"
    try:
        decision = _word(table[at], PERMISSIONS)
        at = "action"
        actions = _word(table.get(at, "all"), ACTIONS)
        at = "qos"
        qos = _qos(table[at]) if at in table else ANY_QOS
        at = "retain"
        retain = _flag(table[at]) if at in table else None
        at = "comment"
        _text(table.get(at, ""))
        conditions = []
        for at, make in _WHO.items():
            if at in table:
                conditions.append(make(table[at], decision))
        at = "username"
        usernames = frozenset(_texts(table[at])) if at in table else None
        at = "client_id"
        client_ids = frozenset(_texts(table[at])) if at in table else None
        at = "topics"
        return Rule(
            decision,
            actions,
            [TopicTemplate(each) for each in _texts(table[at])],
            conditions,
            qos=qos,
            retain=retain,
            usernames=usernames,
            client_ids=client_ids,
            origin=origin,
        )
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r:.60}")
    return value


def _texts(value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if (
        not isinstance(values, (list, tuple))
        or not values
        or not all(isinstance(each, str) and each for each in values)
    ):
        raise ValueError(f"must be text or a list of texts, not {value!r:.60}")
    return list(values)


def _word(value: object, known: Mapping[str, int]) -> int:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"must be one of {', '.join(known)}, not {value!r:.60}")
    return known[value]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r:.60}")
    return value


def _qos(value: object) -> int:
    values = value if isinstance(value, (list, tuple)) else [value]
    bits = 0
    for each in values:
        if type(each) is not int or not 0 <= each <= 2:
            bits = 0
            break
        bits |= 1 << each
    if not bits:
        raise ValueError(f"must be 0, 1, 2 or a list of these, not {value!r:.60}")
    return bits


# -- conditions


def _matching(value_of: Callable[[Principal], str | None]) -> Callable[[object, int], Condition]:
    def make(value: object, decision: int) -> Condition:
        try:
            patterns = [re.compile(each) for each in _texts(value)]
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{value!r:.60} is no regular expression: {error}") from None

        def holds(principal: Principal) -> bool:
            found = value_of(principal)
            if found is None:
                return False
            if len(found) > MATCHED:
                return decision == DENY
            return any(pattern.fullmatch(found) for pattern in patterns)

        return holds

    return make


def _equal(name: str) -> Callable[[object, int], Condition]:
    def make(value: object, decision: int) -> Condition:
        known = frozenset(_texts(value))
        return lambda principal: lookup_of(principal)(name) in known

    return make


def _fingerprint(value: object, decision: int) -> Condition:
    known = frozenset(each.replace(":", "").lower() for each in _texts(value))
    for each in known:
        if not re.fullmatch(r"[0-9a-f]{64}", each):
            raise ValueError(f"{each!r:.80} is no SHA-256 fingerprint in hexadecimal digits")
    return lambda principal: lookup_of(principal)("cert_fingerprint") in known


def _networks(value: object, decision: int) -> Condition:
    try:
        networks = [network_of(each) for each in _texts(value)]
    except ValueError as error:
        raise ValueError(str(error)) from None

    def holds(principal: Principal) -> bool:
        try:
            address = ipaddress.ip_address(principal.peer.host.partition("%")[0])
        except ValueError:
            return False  # a Unix socket
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in networks)

    return holds


def _attributes(value: object, decision: int) -> Condition:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"must be a table of names and values, not {value!r:.60}")
    known = {_text(name): frozenset(_texts(values)) for name, values in value.items()}
    return lambda principal: all(principal.attributes.get(name) in values for name, values in known.items())


def _anonymous(value: object, decision: int) -> Condition:
    wanted = _flag(value)
    return lambda principal: (principal.identity == ANONYMOUS) == wanted


#: What a client must be, for a rule with this decision, beside `username` and `client_id`, by which rules are found.
_WHO: Final[Mapping[str, Callable[[object, int], Condition]]] = {
    "username_match": _matching(lambda principal: principal.username),
    "client_id_match": _matching(lambda principal: principal.client_id),
    "ip": _networks,
    "listener": _equal("listener"),
    "cert_common_name": _equal("cert_common_name"),
    "cert_subject": _equal("cert_subject"),
    "cert_fingerprint": _fingerprint,
    "client_attrs": _attributes,
    "anonymous": _anonymous,
}

KEYS: Final = ("permission", "action", "topics", "qos", "retain", "username", "client_id", *_WHO, "comment")
