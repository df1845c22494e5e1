"""The topic indexes against naive models, under random operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import PeerError
from broker.topics.cache import MatchCache
from broker.topics.names import check_topic_filter, check_topic_name, levels_match, matches, split_shared
from broker.topics.retained import RetainedIndex
from broker.topics.trie import TopicTrie

# Few different levels, so that random names and filters meet each other often.
LEVELS = st.sampled_from(["", "a", "b", "ab", "$a", "é", " ", "*", ">", "."])


def _name(levels: list[str]) -> str:
    return "/".join(levels) or "/"


def _filter(drawn: tuple[list[str], bool]) -> str:
    levels, multi = drawn
    return _name([*levels, "#"] if multi else levels)


NAMES = st.lists(LEVELS, min_size=1, max_size=5).map(_name)
FILTERS = st.tuples(st.lists(LEVELS | st.just("+"), min_size=1, max_size=5), st.booleans()).map(_filter) | st.just("#")


def _by_definition(topic_filter: str, topic_name: str) -> bool:
    """The matching rules of the standard again, recursively and independent of `matches`."""

    def rest(wanted: list[str], given: list[str]) -> bool:
        if wanted == ["#"]:
            return True
        if not wanted or not given:
            return not wanted and not given
        return wanted[0] in ("+", given[0]) and rest(wanted[1:], given[1:])

    if topic_name[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    return rest(topic_filter.split("/"), topic_name.split("/"))


@settings(max_examples=300, deadline=None)
@given(FILTERS, NAMES)
def test_matches_follows_the_definition(topic_filter: str, topic_name: str) -> None:
    check_topic_filter(topic_filter)
    check_topic_name(topic_name)
    expected = _by_definition(topic_filter, topic_name)
    assert matches(topic_filter, topic_name) is expected
    assert levels_match(topic_filter.split("/"), topic_name.split("/")) is expected


def accepts(check: Callable[[str], None], subject: str, reason_code: int) -> bool:
    """Whether the check lets the subject pass; any error but a PeerError with this reason code is raised on."""
    try:
        check(subject)
    except PeerError as error:
        if error.reason_code != reason_code:
            raise
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a/+#$\x00é", max_size=8), st.text(alphabet="a/+#", max_size=4))
def test_checks_raise_peer_errors_only_and_agree(text: str, share: str) -> None:
    name_valid = accepts(check_topic_name, text, 0x90)
    filter_valid = accepts(check_topic_filter, text, 0x8F)
    # Every name is a filter too, and a filter without wildcards is a name.
    assert name_valid == (filter_valid and "+" not in text and "#" not in text)
    shared = f"$share/{share}/{text}"
    if accepts(check_topic_filter, shared, 0x8F):
        share_name, plain_filter = split_shared(shared)
        assert f"$share/{share_name}/{plain_filter}" == shared
        assert share_name
        assert not set(share_name) & set("/+#")
        assert accepts(check_topic_filter, plain_filter, 0x8F)


TRIE_STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "set", "discard"]), FILTERS, st.integers(0, 2), st.integers() | st.none()),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(TRIE_STEPS, st.lists(NAMES, max_size=8))
def test_trie_equals_a_dict_of_filters(steps: list[tuple[str, str, int, int | None]], names: list[str]) -> None:
    trie: TopicTrie[int, int | None] = TopicTrie()
    model: dict[tuple[str, int], int | None] = {}
    for step, topic_filter, key, value in steps:
        if step == "set":
            assert trie.set(topic_filter, key, value) is ((topic_filter, key) not in model)
            model[topic_filter, key] = value
        else:
            assert trie.discard(topic_filter, key) == model.pop((topic_filter, key), None)
        assert len(trie) == len(model)
    listed = [((topic_filter, key), value) for topic_filter, key, value in trie.items()]
    assert len(listed) == len(model)
    assert dict(listed) == model
    for name in names + [topic_filter.replace("+", "a").replace("#", "b") for _, topic_filter, _, _ in steps]:
        expected = [value for (topic_filter, _), value in model.items() if _by_definition(topic_filter, name)]
        assert sorted(trie.match(name), key=repr) == sorted(expected, key=repr)
    for topic_filter, key in list(model):
        assert trie.discard(topic_filter, key) == model.pop((topic_filter, key))
    assert len(trie) == 0
    assert list(trie.items()) == []


@settings(max_examples=150, deadline=None)
@given(
    st.sets(NAMES, max_size=30), st.sets(NAMES, max_size=10), st.lists(FILTERS, min_size=1, max_size=6), st.booleans()
)
def test_retained_equals_a_set(kept: set[str], removed: set[str], filters: list[str], wide: bool) -> None:
    index = RetainedIndex()
    # Wide nodes take other paths: shared lists of names, and the index by last level.
    fill = {f"a/{number}/b" for number in range(80)} if wide else set()
    topics = sorted(kept | removed | fill)
    for topic in topics:
        assert index.add(topic)
        assert not index.add(topic)
    for topic in removed:
        assert index.discard(topic)
        assert not index.discard(topic)
    model = set(topics) - removed
    assert len(index) == len(model)
    for topic in topics:
        assert (topic in index) is (topic in model)
    for topic_filter in [*filters, "#", "a/+/b", "+/a/#"]:
        found = list(index.match(topic_filter))
        assert sorted(found) == sorted(topic for topic in model if _by_definition(topic_filter, topic))
    for topic in [*topics, "never/there"]:
        levels = topic.split("/")
        for depth in range(len(levels) + 1):
            assert sorted(index.children(levels[:depth])) == _children(model, levels[:depth])
    for topic in model:
        assert index.discard(topic)
    assert list(index.children(())) == []


def _children(topics: set[str], prefix: list[str]) -> list[tuple[str, bool, int]]:
    """What is next after these levels, by looking at each topic."""
    rests = [levels[len(prefix) :] for topic in topics if (levels := topic.split("/"))[: len(prefix)] == prefix]
    found = {rest[0] for rest in rests if rest}
    return sorted(
        (name, [name] in rests, sum(rest[0] == name and len(rest) > 1 for rest in rests if rest)) for name in found
    )


CHANGES = st.lists(
    st.tuples(st.booleans(), NAMES | st.integers(0, 90).map(lambda number: f"a/{number}/b")), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(st.sets(NAMES, max_size=20), CHANGES, FILTERS | st.sampled_from(["#", "a/#", "a/+/b", "+/+/b"]), st.booleans())
def test_retained_match_survives_changes(
    start: set[str], changes: list[tuple[bool, str]], topic_filter: str, wide: bool
) -> None:
    index = RetainedIndex()
    present = set(start)
    if wide:
        present |= {f"a/{number}/b" for number in range(70)}
    for topic in sorted(present):
        index.add(topic)
    always = set(present)
    found: list[str] = []
    iterator = index.match(topic_filter)
    rest = iter(changes)
    for topic in iterator:
        assert topic in present
        found.append(topic)
        for add, changed in (change for _, change in zip(range(2), rest, strict=False)):
            if add:
                index.add(changed)
                present.add(changed)
            else:
                index.discard(changed)
                present.discard(changed)
                always.discard(changed)
            # Another walk under way shares and renews the lists of names of this one.
            next(index.match("#"), None)
    for topic in always:
        assert found.count(topic) == (1 if _by_definition(topic_filter, topic) else 0)
    assert all(_by_definition(topic_filter, topic) for topic in found)
    assert sorted(index.match("#")) == sorted(topic for topic in present if not topic.startswith("$"))


@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, max_size=30), FILTERS, st.integers(1, 20))
def test_cache_is_bounded_and_never_keeps_a_stale_topic(names: list[str], topic_filter: str, bound: int) -> None:
    cache: MatchCache[str] = MatchCache(bound)
    for name in names:
        cache.put(name.encode(), name)
        assert cache.entries[name.encode()] == name
        assert len(cache.entries) <= bound
    before = dict(cache.entries)
    cache.invalidate(topic_filter)
    # Few entries: exactly those that match have gone.
    assert cache.entries == {key: name for key, name in before.items() if not _by_definition(topic_filter, name)}


@pytest.mark.parametrize("topic_filter", ["a/+", "#"])
def test_large_cache_forgets_everything_on_a_wildcard(topic_filter: str) -> None:
    cache: MatchCache[int] = MatchCache(1000)
    for number in range(500):
        cache.put(f"b/{number}".encode(), number)
    cache.put(b"a/1", 1)
    cache.invalidate("b/3")
    assert len(cache.entries) == 500
    cache.invalidate(topic_filter)
    assert not cache.entries
