"""The index of the topic names that have a retained message.

A tree of levels whose branches end as soon as one topic is left: a child is either a node or, if there is
only one topic below, that topic itself. So most topics cost one dict slot in the tree, however many levels
they have. A second index by last level serves filters such as `a/+/c` where `a` has very many children.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from broker.topics.names import has_wildcard, levels_match

PAUSE_VISITS: Final = 1000
"""`scan` offers a pause after looking at this many branches without a result."""

_SHARED_NAMES_MIN: Final = 64
"""Nodes with more children keep their list of names, for all iterators that are under way."""

_SMALL: Final = 256
"""This many candidates are tested one by one without asking whether a walk would be cheaper."""


class _Node:
    """A level with more than one topic at or below it (or that once had)."""

    __slots__ = ("children", "count", "names", "topic")

    def __init__(self) -> None:
        self.count = 0
        """How many topics are at or below it."""
        self.topic = ""
        """The topic that ends here; empty if none does."""
        self.children: dict[str, str | _Node] = {}
        self.names: list[str] | None = None
        """The names of the children, only ever appended to; given up, not changed, when a child goes."""


class _Frame:
    """A place in a walk: the children of a node from `position` to `end`, reached by a + or (`multi`) a #."""

    __slots__ = ("depth", "end", "multi", "names", "node", "position")

    def __init__(self, node: _Node, depth: int, multi: bool) -> None:
        self.node = node
        self.depth = depth
        self.multi = multi
        self.names = _names_of(node)
        self.position = 0
        self.end = len(self.names)


class RetainedIndex:
    """A set of topic names that is searched by topic filter, with a stamp for each name.

    `clock` is the latest stamp given out.
    """

    __slots__ = ("_by_last", "_root", "_stamps", "clock")

    def __init__(self) -> None:
        self.clock = 0
        self._root = _Node()
        self._stamps: dict[str, int] = {}
        self._by_last: dict[str, str | dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def __contains__(self, topic: str) -> bool:
        return topic in self._stamps

    def __iter__(self) -> Iterator[str]:
        """All names, in no order; the set may change meanwhile."""
        return iter(list(self._stamps))

    def touch(self, topic: str) -> None:
        """Advance `clock` and make it the stamp of the topic, if the topic is in the set."""
        self.clock += 1
        if topic in self._stamps:
            self._stamps[topic] = self.clock

    def stamp_of(self, topic: str) -> int:
        """The clock at the latest `touch` of the topic; 0 if it is not in the set or never was touched."""
        return self._stamps.get(topic, 0)

    def add(self, topic: str) -> bool:
        """Add a valid topic name; True if it is new. A new topic has stamp 0."""
        if topic in self._stamps:
            return False
        self._stamps[topic] = 0
        levels = topic.split("/")
        self._add_by_last(topic, levels[-1])
        node = self._root
        for depth, level in enumerate(levels):
            node.count += 1
            child = node.children.get(level)
            if child is None:
                node.children[level] = topic
                if node.names is not None:
                    node.names.append(level)
                return True
            if isinstance(child, str):
                child = _node_with(child, depth + 1)
                node.children[level] = child
            node = child
        node.count += 1
        node.topic = topic
        return True

    def discard(self, topic: str) -> bool:
        """Remove a topic name and its stamp; True if it was there."""
        if self._stamps.pop(topic, None) is None:
            return False
        levels = topic.split("/")
        self._discard_by_last(topic, levels[-1])
        path = [self._root]
        for level in levels:
            child = path[-1].children[level]
            if isinstance(child, str):
                _detach(path[-1], level)
                break
            path.append(child)
        else:
            path[-1].topic = ""
        for node in path:
            node.count -= 1
        for depth in range(len(path) - 1, 0, -1):
            if path[depth].topic or path[depth].children:
                break
            _detach(path[depth - 1], levels[depth - 1])
        return True

    def match(self, topic_filter: str) -> Iterator[str]:
        """The topics that the valid plain filter matches, found one by one as they are asked for.

        The set may change meanwhile: a topic that is there from the first to the last step comes exactly
        once, one that comes or goes may be missing, and none is returned while it is not in the set.
        """
        for topic in self.scan(topic_filter):
            if topic is not None:
                yield topic

    def scan(self, topic_filter: str) -> Iterator[str | None]:
        """As `match`, with a None after every PAUSE_VISITS branches looked at, so that the caller can pause."""
        if not has_wildcard(topic_filter):
            if topic_filter in self._stamps:
                yield topic_filter
            return
        levels = topic_filter.split("/")
        candidates = self._candidates(levels)
        if candidates is None:
            yield from self._walk(levels)
            return
        for visits, topic in enumerate(candidates, 1):
            if levels_match(levels, topic.split("/")) and topic in self._stamps:
                yield topic
            if visits % PAUSE_VISITS == 0:
                yield None

    def children(self, prefix: Sequence[str]) -> Iterator[tuple[str, bool, int]]:
        """The levels that follow these levels, in no order: level, whether a topic ends there, how many lie below it.

        Found one by one; the set may change meanwhile, as with `match`."""
        node = self._root
        for depth, level in enumerate(prefix):
            child = node.children.get(level)
            if child is None:
                return
            if isinstance(child, str):
                levels = child.split("/")
                if len(levels) > len(prefix) and levels[depth : len(prefix)] == list(prefix[depth:]):
                    ends = len(levels) == len(prefix) + 1
                    yield levels[len(prefix)], ends, int(not ends)
                return
            node = child
        for name in _names_of(node):
            child = node.children.get(name)
            if isinstance(child, str):
                ends = child.count("/") == len(prefix)
                yield name, ends, int(not ends)
            elif child is not None and child.count:
                yield name, bool(child.topic), child.count - bool(child.topic)

    def _walk(self, levels: list[str]) -> Iterator[str | None]:
        """Follow the filter from the root, one branch at a time."""
        suffix = _literal_suffix(levels)
        stack: list[_Frame] = []
        topic = _reach(self._root, 0, levels, stack)
        if topic:
            yield topic
        visits = 0
        while stack:
            frame = stack[-1]
            if frame.position == frame.end:
                stack.pop()
                continue
            name = frame.names[frame.position]
            frame.position += 1
            visits += 1
            if visits % PAUSE_VISITS == 0:
                yield None
            # [MQTT-4.7.2-1] a leading wildcard does not match a topic that starts with $.
            if frame.node is self._root and name.startswith("$"):
                continue
            child = frame.node.children.get(name)
            if child is None:
                continue
            if not isinstance(child, str):
                topic = _reach(child, frame.depth if frame.multi else frame.depth + 1, levels, stack)
                if topic:
                    yield topic
            elif frame.multi or (child.endswith(suffix) and levels_match(levels, child.split("/"))):
                yield child

    def _candidates(self, levels: list[str]) -> list[str] | None:
        """All topics with the last level of the filter, if testing these is cheaper than a walk."""
        last = levels[-1]
        if last in ("+", "#"):
            return None
        child: str | _Node | None = self._root
        for level in levels:
            if not isinstance(child, _Node) or level == "+":
                break
            child = child.children.get(level)
        if child is None:
            return []
        if isinstance(child, str):
            return [child]
        topics = self._by_last.get(last)
        if topics is None:
            return []
        if isinstance(topics, str):
            return [topics]
        fan_out = len(child.children)
        if len(topics) < fan_out or (levels.count("+") > 1 and len(topics) <= _SMALL):
            return list(topics)
        return None

    def _add_by_last(self, topic: str, last: str) -> None:
        topics = self._by_last.get(last)
        if topics is None:
            self._by_last[last] = topic
        elif isinstance(topics, str):
            self._by_last[last] = {topics: None, topic: None}
        else:
            topics[topic] = None

    def _discard_by_last(self, topic: str, last: str) -> None:
        topics = self._by_last[last]
        if isinstance(topics, str):
            del self._by_last[last]
            return
        del topics[topic]
        if not topics:
            del self._by_last[last]


def _reach(node: _Node, depth: int, levels: list[str], stack: list[_Frame]) -> str:
    """Follow the filter's names from a node that its first `depth` levels lead to.

    Returns the topic that ends there and matches, or an empty string. A wildcard there goes onto the stack.
    """
    while depth < len(levels):
        level = levels[depth]
        if level in ("+", "#"):
            multi = level == "#"
            stack.append(_Frame(node, depth, multi))
            return node.topic if multi else ""  # [MQTT-4.7.1-1] a # stands for its parent level too.
        child = node.children.get(level)
        if child is None:
            return ""
        if isinstance(child, str):
            return child if levels_match(levels, child.split("/")) else ""
        node = child
        depth += 1
    return node.topic


def _node_with(topic: str, depth: int) -> _Node:
    """A node at `depth` levels from the root with only this topic in it."""
    node = _Node()
    node.count = 1
    levels = topic.split("/")
    if len(levels) == depth:
        node.topic = topic
    else:
        node.children[levels[depth]] = topic
    return node


def _detach(node: _Node, name: str) -> None:
    del node.children[name]
    # Walks that hold the list go on with it and find the child missing.
    node.names = None


def _names_of(node: _Node) -> list[str]:
    """The names of the children, in a list that never loses one: a dict cannot change while it is iterated."""
    if len(node.children) <= _SHARED_NAMES_MIN:
        return list(node.children)
    if node.names is None:
        node.names = list(node.children)
    return node.names


def _literal_suffix(levels: list[str]) -> str:
    """What every matching topic ends with: the levels after the last wildcard; empty after a #."""
    position = len(levels)
    while levels[position - 1] not in ("+", "#"):
        position -= 1
    return "".join(["/" + level for level in levels[position:]])
