"""Relations of topic filters, and what rules answer, against a model that knows all topics of a small world."""

from __future__ import annotations

from functools import cache
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth.acl_file import AclJudge
from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE
from broker.auth.judging import ANY_QOS, EntriesJudge, Entry
from broker.topics.names import matches
from broker.topics.relations import common, covers

#: `other` stands for all the names that no filter spells.
NAMES = ("", "a", "b", "$s", "other")
LEVELS = 4

#: One level more than filters have beside their `#`, so that `#` is told from what only reaches as far.
TOPICS = tuple(
    "/".join(levels)
    for count in range(1, LEVELS + 1)
    for levels in product(NAMES, repeat=count)
    if any(levels) or count > 1
)


@cache
def matched(topic_filter: str) -> frozenset[str]:
    return frozenset(topic for topic in TOPICS if matches(topic_filter, topic))


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from(["", "a", "b", "$s", "+", "+"]), min_size=0, max_size=3))
    if not levels or draw(st.booleans()):
        levels.append("#")
    return "/".join(levels) or "/"


@settings(max_examples=1000)
@given(filters(), filters())
def test_relations(one: str, two: str) -> None:
    assert covers(one.split("/"), two.split("/")) == (matched(two) <= matched(one))
    found = common(one.split("/"), two.split("/"))
    both = matched(one) & matched(two)
    assert (found is not None) == bool(both)
    if found is not None:
        assert matched("/".join(found)) == both


def test_relations_of_all_short_filters() -> None:
    short = ["/".join(levels) for count in (1, 2) for levels in product(["", "a", "$s", "+"], repeat=count)]
    short = [each for each in short if each]
    everything = [*short, "#", *(f"{each}/#" for each in short)]
    for one, two in product(everything, repeat=2):
        assert covers(one.split("/"), two.split("/")) == (matched(two) <= matched(one)), (one, two)
        assert (common(one.split("/"), two.split("/")) is not None) == bool(matched(one) & matched(two)), (one, two)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    return Entry(
        draw(st.sampled_from([ALLOW, DENY])),
        draw(st.sampled_from([PUBLISH, SUBSCRIBE | READ, PUBLISH | SUBSCRIBE | READ])),
        draw(filters()),
        literal=draw(st.booleans()),
        qos=draw(st.sampled_from([ANY_QOS, ANY_QOS, 0b001, 0b110])),
        retain=draw(st.sampled_from([None, None, True, False])),
    )


def applies(entry: Entry, action: int, topic: str, qos: int, retain: bool) -> bool:
    """The model of one entry, as the documentation has it."""
    if not entry.actions & action:
        return False
    spelled = entry.topic_filter
    if action == READ:
        if entry.decision == DENY and (entry.qos != ANY_QOS or (entry.literal and spelled != topic)):
            return False
        return matches(spelled, topic)
    if not entry.qos & 1 << qos:
        return False
    if action == PUBLISH:
        if entry.retain is not None and entry.retain != retain:
            return False
        return spelled == topic if entry.literal else matches(spelled, topic)
    return spelled == topic if entry.literal else matched(topic) <= matched(spelled)


@settings(max_examples=300)
@given(
    st.lists(entries(), max_size=5),
    st.sampled_from(TOPICS),
    filters(),
    st.integers(0, 2),
    st.booleans(),
)
def test_the_first_entry_that_applies_decides(
    rules: list[Entry], topic: str, topic_filter: str, qos: int, retain: bool
) -> None:
    judge = EntriesJudge(rules)
    for action, asked in ((PUBLISH, topic), (READ, topic), (SUBSCRIBE, topic_filter)):
        expected = next((each.decision for each in rules if applies(each, action, asked, qos, retain)), IGNORE)
        assert judge.decide(action, asked, qos, retain) == expected


@settings(max_examples=300)
@given(st.lists(entries(), max_size=5), filters())
def test_what_is_covered_need_not_be_asked(rules: list[Entry], topic_filter: str) -> None:
    judge = EntriesJudge(rules)
    answers = {judge.decide(READ, topic, 0, False) for topic in matched(topic_filter)}
    if judge.covers(topic_filter):
        assert answers <= {ALLOW}
    if judge.silent(topic_filter):
        assert answers <= {IGNORE}
    elif len(rules) == 1:
        assert answers - {IGNORE}


@settings(max_examples=300)
@given(st.lists(entries(), max_size=4), filters())
def test_an_allowed_subscription_delivers_something_unless_it_is_denied_bit_by_bit(
    rules: list[Entry], topic_filter: str
) -> None:
    allowing = [each for each in rules if each.decision == ALLOW]
    judge = EntriesJudge(allowing)
    if judge.decide(SUBSCRIBE, topic_filter, 0, False) == ALLOW:
        assert all(judge.decide(READ, topic, 0, False) == ALLOW for topic in matched(topic_filter))


@st.composite
def acl_entries(draw: st.DrawFn) -> Entry:
    decision = draw(st.sampled_from([ALLOW, ALLOW, DENY]))
    actions = READ | PUBLISH if decision == DENY else draw(st.sampled_from([READ, PUBLISH, READ | PUBLISH]))
    return Entry(decision, actions | SUBSCRIBE, draw(filters()))


@settings(max_examples=300)
@given(st.lists(acl_entries(), max_size=5), filters())
def test_a_subscription_of_an_acl_file_that_can_deliver_is_granted(rules: list[Entry], topic_filter: str) -> None:
    judge = AclJudge(rules)
    granted = judge.decide(SUBSCRIBE, topic_filter, 0, False) == ALLOW
    readable = any(judge.decide(READ, topic, 0, False) == ALLOW for topic in matched(topic_filter))
    if readable:
        assert granted
    # The other way round, only several denials together can close what one rule opens.
    denials = [each for each in rules if each.decision == DENY]
    if granted and len(denials) < 2:
        assert readable
    if judge.covers(topic_filter):
        assert all(judge.decide(READ, topic, 0, False) == ALLOW for topic in matched(topic_filter))
