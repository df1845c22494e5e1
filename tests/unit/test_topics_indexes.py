"""The filter trie, the match cache and the retained index: what their users rely on besides matching."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from itertools import islice

import pytest

from broker.topics.cache import MAX_KEY_BYTES, MatchCache
from broker.topics.retained import PAUSE_VISITS, RetainedIndex
from broker.topics.trie import TopicTrie


def _left_over_bytes(fill: Callable[[], None], empty: Callable[[], None]) -> tuple[int, int]:
    """How much memory is held after filling, and after emptying again."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fill()
        filled = tracemalloc.get_traced_memory()[0] - before
        empty()
        gc.collect()
        return filled, tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("topic_filter", ["a/b", "a/+", "a/#"])
def test_trie_replaces_and_removes_by_key(topic_filter: str) -> None:
    trie: TopicTrie[str, int] = TopicTrie()
    assert trie.set(topic_filter, "one", 1)
    assert trie.set(topic_filter, "two", 2)
    assert trie.set(topic_filter, "three", 3)
    assert not trie.set(topic_filter, "one", 11)
    assert not trie.set(topic_filter, "two", 22)
    assert len(trie) == 3
    assert sorted(trie.match("a/b")) == [3, 11, 22]
    assert trie.discard(topic_filter, "nobody") is None
    # The first key goes first: another one has to take its place.
    assert trie.discard(topic_filter, "one") == 11
    assert trie.discard(topic_filter, "one") is None
    assert sorted(trie.match("a/b")) == [3, 22]
    assert sorted(trie.items()) == [(topic_filter, "three", 3), (topic_filter, "two", 22)]
    assert trie.discard(topic_filter, "two") == 22
    assert trie.discard(topic_filter, "three") == 3
    assert trie.match("a/b") == []
    assert len(trie) == 0


def test_trie_returns_every_overlapping_filter() -> None:
    trie: TopicTrie[str, str] = TopicTrie()
    filters = ["a/b", "a/+", "+/b", "+/+", "a/#", "#", "a/b/#", "+/#", "a", "a/b/c", "a/+/c", "b/#", "+"]
    for topic_filter in filters:
        trie.set(topic_filter, "key", topic_filter)
    assert sorted(trie.match("a/b")) == ["#", "+/#", "+/+", "+/b", "a/#", "a/+", "a/b", "a/b/#"]


def test_trie_hands_out_a_list_of_its_own() -> None:
    trie: TopicTrie[str, int] = TopicTrie()
    trie.set("a", "key", 1)
    trie.match("a").clear()
    assert trie.match("a") == [1]


@pytest.mark.parametrize("pattern", ["dev/{}/temp", "dev/{}/#", "dev/{}/+/cmd", "{}/a/b/c/+", "+/{}/+/#", "{}/"])
def test_trie_gives_memory_back(pattern: str) -> None:
    trie: TopicTrie[int, None] = TopicTrie()
    # The last pattern makes nodes with several children.
    endings = ["a/+", "b/+"] if pattern == "{}/" else [""]

    def fill() -> None:
        for number in range(2000):
            for ending in endings:
                trie.set(pattern.format(number) + ending, number, None)

    def empty() -> None:
        for number in range(2000):
            for ending in endings:
                trie.discard(pattern.format(number) + ending, number)

    filled, left = _left_over_bytes(fill, empty)
    # An emptied dict keeps its table; nodes, entries and strings have to go.
    assert left < filled * 0.6
    assert left < 2000 * 60


@pytest.mark.parametrize("pattern", ["a/{number}/b/{leaf}", "{leaf}/{number}/b/{number}", "{leaf}/{number}"])
def test_retained_gives_memory_back(pattern: str) -> None:
    index = RetainedIndex()
    topics = [pattern.format(number=number, leaf=leaf) for number in range(500) for leaf in "xyz"]

    def fill() -> None:
        for topic in topics:
            index.add(topic)

    def empty() -> None:
        for topic in topics:
            index.discard(topic)

    filled, left = _left_over_bytes(fill, empty)
    assert left < filled * 0.3


def test_retained_stamps() -> None:
    index = RetainedIndex()
    assert index.clock == 0
    assert index.stamp_of("a") == 0
    index.add("a")
    index.add("b")
    assert index.stamp_of("a") == 0
    index.touch("a")
    index.touch("b")
    assert (index.stamp_of("a"), index.stamp_of("b"), index.clock) == (1, 2, 2)
    index.touch("a")
    assert (index.stamp_of("a"), index.clock) == (3, 3)
    assert not index.add("a")
    assert index.stamp_of("a") == 3
    index.discard("a")
    index.touch("a")
    assert "a" not in index
    assert index.stamp_of("a") == 0
    assert index.clock == 4


def test_retained_topic_above_and_below_another() -> None:
    index = RetainedIndex()
    for topic in ["a/b/c", "a", "a/b", "a/b/c/d"]:
        assert index.add(topic)
    assert sorted(index.match("a/#")) == ["a", "a/b", "a/b/c", "a/b/c/d"]
    assert index.discard("a/b")
    assert not index.discard("a/b")
    assert sorted(index.match("a/b/#")) == ["a/b/c", "a/b/c/d"]
    assert list(index.match("a/+")) == []
    assert list(index.match("a/+/c")) == ["a/b/c"]


def test_retained_topic_removed_before_its_turn_does_not_come() -> None:
    index = RetainedIndex()
    for number in range(100):
        index.add(f"a/{number}/x")
        index.add(f"a/{number}/y")
    found = index.match("a/#")
    first = [next(found), next(found)]
    for number in range(100):
        index.discard(f"a/{number}/x")
    assert len(first + list(found)) <= 102
    assert sorted(index.match("a/#")) == sorted(f"a/{number}/y" for number in range(100))


def test_retained_topic_removed_before_its_turn_does_not_come_by_last_level() -> None:
    index = RetainedIndex()
    for number in range(100):
        index.add(f"a/{number}/{'c' if number < 10 else 'd'}")
    found = index.match("a/+/c")
    next(found)
    for number in range(10):
        index.discard(f"a/{number}/c")
    assert list(found) == []


@pytest.mark.parametrize("topic_filter", ["a/+/c", "+/+/c", "a/+/+", "+/+/+/d"])
def test_retained_search_without_results_offers_pauses(topic_filter: str) -> None:
    index = RetainedIndex()
    # As many children of `a` as topics that end in c or d: neither way of searching is short.
    for number in range(3 * PAUSE_VISITS):
        index.add(f"a/{number}")
        index.add(f"b/{number}/x/y/c")
        index.add(f"b/{number}/x/y/d")
    steps = list(index.scan(topic_filter))
    assert set(steps) == {None}
    assert len(steps) >= 3
    assert list(index.match(topic_filter)) == []


def test_retained_few_of_many_children_need_few_steps() -> None:
    index = RetainedIndex()
    for number in range(5 * PAUSE_VISITS):
        index.add(f"a/{number}/{'c' if number % PAUSE_VISITS == 0 else 'd'}")
    expected = sorted(f"a/{number * PAUSE_VISITS}/c" for number in range(5))
    # No pause was due: the index by last level made the search short.
    assert sorted(step or "" for step in index.scan("a/+/c")) == expected
    assert sorted(step or "" for step in index.scan("+/+/c")) == expected


def test_retained_iterators_do_not_disturb_each_other() -> None:
    index = RetainedIndex()
    topics = {f"a/{number}" for number in range(300)}
    for topic in topics:
        index.add(topic)
    early = index.match("a/#")
    seen = set(islice(early, 100))
    late = index.match("a/#")
    seen_late = set(islice(late, 50))
    index.add("a/new")
    index.discard("a/299")
    index.add("a/299")
    assert topics - {"a/299"} <= seen | set(early)
    assert topics - {"a/299"} <= seen_late | set(late)
    assert set(index.match("a/#")) == topics | {"a/new"}


def test_cache_drops_the_oldest_at_its_bound() -> None:
    cache: MatchCache[int] = MatchCache(4)
    for number in range(4):
        cache.put(b"%d" % number, number)
    cache.put(b"0", 10)
    assert cache.entries == {b"0": 10, b"1": 1, b"2": 2, b"3": 3}
    cache.put(b"4", 4)
    assert cache.entries == {b"2": 2, b"3": 3, b"4": 4}
    cache.clear()
    assert cache.entries == {}


def test_cache_refuses_long_topics_and_a_senseless_bound() -> None:
    cache: MatchCache[int] = MatchCache()
    cache.put(b"a" * MAX_KEY_BYTES, 1)
    cache.put(b"a" * (MAX_KEY_BYTES + 1), 2)
    assert list(cache.entries.values()) == [1]
    with pytest.raises(ValueError, match="max_entries"):
        MatchCache(0)


@pytest.mark.parametrize(
    "topic_filter, left",
    [
        ("a/b", ["a", "a/", "a/b/c", "ab", "$a/b", "é/b"]),
        ("a/#", ["ab", "$a/b", "é/b"]),
        ("a/+", ["a", "a/b/c", "ab", "$a/b", "é/b"]),
        ("+/b", ["a", "a/", "a/b/c", "ab", "$a/b"]),
        ("#", ["$a/b"]),
        ("é/+", ["a", "a/", "a/b", "a/b/c", "ab", "$a/b"]),
        ("$a/#", ["a", "a/", "a/b", "a/b/c", "ab", "é/b"]),
        ("none/#", ["a", "a/", "a/b", "a/b/c", "ab", "$a/b", "é/b"]),
    ],
)
def test_cache_forgets_what_a_filter_matches(topic_filter: str, left: list[str]) -> None:
    cache: MatchCache[int] = MatchCache()
    for topic in ["a", "a/", "a/b", "a/b/c", "ab", "$a/b", "é/b"]:
        cache.put(topic.encode(), 1)
    cache.invalidate(topic_filter)
    assert [key.decode() for key in cache.entries] == left
