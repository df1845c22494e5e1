"""The index from topic filters to subscriptions.

Filters without wildcards, usually nearly all of them, are keys of one dict: a lookup is one hash and a
filter costs one dict slot and one entry object. Only filters with wildcards are spread over a tree of levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from broker.topics.names import has_wildcard

K = TypeVar("K")
V = TypeVar("V")


class _Entries(Generic[K, V]):
    """The entries of one filter: the first in the object itself, a dict only if there are others."""

    __slots__ = ("first_key", "first_value", "others")

    def __init__(self, key: K, value: V) -> None:
        self.first_key = key
        self.first_value = value
        self.others: dict[K, V] | None = None


class _Node(Generic[K, V]):
    """One level of the filters with wildcards.

    A single literal child, the usual case below a client's own prefix, is held without a dict.
    """

    __slots__ = ("children", "entries", "multi", "only_child", "only_name", "single")

    def __init__(self) -> None:
        self.entries: _Entries[K, V] | None = None
        self.multi: _Entries[K, V] | None = None
        self.single: _Node[K, V] | None = None
        self.only_name = ""
        self.only_child: _Node[K, V] | None = None
        self.children: dict[str, _Node[K, V]] | None = None


class TopicTrie(Generic[K, V]):
    """Valid plain topic filters, each with one value per key; finds the values of all filters that match a name."""

    __slots__ = ("_exact", "_length", "_root", "_wild_length")

    def __init__(self) -> None:
        self._exact: dict[str, _Entries[K, V]] = {}
        self._root: _Node[K, V] = _Node()
        self._length = 0
        self._wild_length = 0

    def __len__(self) -> int:
        """The number of (filter, key) pairs."""
        return self._length

    def set(self, topic_filter: str, key: K, value: V) -> bool:
        """Store the value of the filter and key; True if the pair is new, else its value is replaced."""
        wild = has_wildcard(topic_filter)
        if not wild:
            entries = self._exact.get(topic_filter)
            if entries is None:
                self._exact[topic_filter] = _Entries(key, value)
                new = True
            else:
                new = _put(entries, key, value)
        else:
            new = self._set_wild(topic_filter, key, value)
        if new:
            self._length += 1
            if wild:
                self._wild_length += 1
        return new

    def _set_wild(self, topic_filter: str, key: K, value: V) -> bool:
        levels = topic_filter.split("/")
        multi = levels[-1] == "#"
        if multi:
            levels.pop()
        node = self._root
        for level in levels:
            child = _child(node, level)
            if child is None:
                child = _Node()
                _attach(node, level, child)
            node = child
        entries = node.multi if multi else node.entries
        if entries is not None:
            return _put(entries, key, value)
        if multi:
            node.multi = _Entries(key, value)
        else:
            node.entries = _Entries(key, value)
        return True

    def discard(self, topic_filter: str, key: K) -> V | None:
        """Remove the pair and return its value, or None if there is none."""
        if has_wildcard(topic_filter):
            return self._discard_wild(topic_filter, key)
        entries = self._exact.get(topic_filter)
        if entries is None or not _has(entries, key):
            return None
        self._length -= 1
        if entries.others is None:
            del self._exact[topic_filter]
            return entries.first_value
        return _take(entries.others, entries, key)

    def _discard_wild(self, topic_filter: str, key: K) -> V | None:
        levels = topic_filter.split("/")
        multi = levels[-1] == "#"
        if multi:
            levels.pop()
        path = [self._root]
        for level in levels:
            child = _child(path[-1], level)
            if child is None:
                return None
            path.append(child)
        node = path[-1]
        entries = node.multi if multi else node.entries
        if entries is None or not _has(entries, key):
            return None
        self._length -= 1
        self._wild_length -= 1
        if entries.others is not None:
            return _take(entries.others, entries, key)
        if multi:
            node.multi = None
        else:
            node.entries = None
        for depth in range(len(levels), 0, -1):
            if not _is_empty(path[depth]):
                break
            _detach(path[depth - 1], levels[depth - 1])
        return entries.first_value

    def match(self, topic_name: str) -> list[V]:
        """The values of all pairs whose filter matches, in no particular order; a new list."""
        found: list[V] = []
        entries = self._exact.get(topic_name)
        if entries is not None:
            _collect(entries, found)
        if self._wild_length:
            self._match_wild(topic_name.split("/"), found)
        return found

    def _match_wild(self, levels: list[str], found: list[V]) -> None:
        root = self._root
        # [MQTT-4.7.2-1] a leading wildcard does not match a topic that starts with $.
        hidden = levels[0].startswith("$")
        if root.multi is not None and not hidden:
            _collect(root.multi, found)
        reached = [root]
        for level in levels:
            following: list[_Node[K, V]] = []
            for node in reached:
                children = node.children
                if children is not None:
                    child = children.get(level)
                    if child is not None:
                        following.append(child)
                        # `a/#` matches `a` too, so a # is taken as soon as its parent is reached.
                        if child.multi is not None:
                            _collect(child.multi, found)
                elif node.only_name == level:
                    child = node.only_child
                    if child is not None:
                        following.append(child)
                        if child.multi is not None:
                            _collect(child.multi, found)
                child = node.single
                if child is not None and not hidden:
                    following.append(child)
                    if child.multi is not None:
                        _collect(child.multi, found)
            if not following:
                return
            hidden = False
            reached = following
        for node in reached:
            if node.entries is not None:
                _collect(node.entries, found)

    def items(self) -> Iterator[tuple[str, K, V]]:
        """All (filter, key, value), in no particular order; the trie must not change meanwhile."""
        for topic_filter, entries in self._exact.items():
            for key, value in _pairs(entries):
                yield topic_filter, key, value
        stack: list[tuple[list[str], _Node[K, V]]] = [([], self._root)]
        while stack:
            levels, node = stack.pop()
            if node.entries is not None:
                topic_filter = "/".join(levels)
                for key, value in _pairs(node.entries):
                    yield topic_filter, key, value
            if node.multi is not None:
                topic_filter = "/".join([*levels, "#"])
                for key, value in _pairs(node.multi):
                    yield topic_filter, key, value
            if node.single is not None:
                stack.append(([*levels, "+"], node.single))
            if node.only_child is not None:
                stack.append(([*levels, node.only_name], node.only_child))
            if node.children is not None:
                for name, child in node.children.items():
                    stack.append(([*levels, name], child))


def _has(entries: _Entries[K, V], key: K) -> bool:
    return entries.first_key == key or (entries.others is not None and key in entries.others)


def _put(entries: _Entries[K, V], key: K, value: V) -> bool:
    """Store the value; True if the key is new."""
    if entries.first_key == key:
        entries.first_value = value
        return False
    if entries.others is None:
        entries.others = {key: value}
        return True
    new = key not in entries.others
    entries.others[key] = value
    return new


def _take(others: dict[K, V], entries: _Entries[K, V], key: K) -> V:
    """Remove a key that is present from entries that have others, and return its value."""
    if entries.first_key == key:
        value = entries.first_value
        entries.first_key, entries.first_value = others.popitem()
    else:
        value = others.pop(key)
    if not others:
        entries.others = None
    return value


def _collect(entries: _Entries[K, V], found: list[V]) -> None:
    found.append(entries.first_value)
    if entries.others is not None:
        found.extend(entries.others.values())


def _pairs(entries: _Entries[K, V]) -> list[tuple[K, V]]:
    pairs = [(entries.first_key, entries.first_value)]
    if entries.others is not None:
        pairs.extend(entries.others.items())
    return pairs


def _child(node: _Node[K, V], level: str) -> _Node[K, V] | None:
    if level == "+":
        return node.single
    if node.children is not None:
        return node.children.get(level)
    return node.only_child if node.only_name == level else None


def _attach(node: _Node[K, V], level: str, child: _Node[K, V]) -> None:
    if level == "+":
        node.single = child
    elif node.children is not None:
        node.children[level] = child
    elif node.only_child is None:
        node.only_name = level
        node.only_child = child
    else:
        node.children = {node.only_name: node.only_child, level: child}
        node.only_name = ""
        node.only_child = None


def _detach(node: _Node[K, V], level: str) -> None:
    if level == "+":
        node.single = None
    elif node.children is None:
        node.only_name = ""
        node.only_child = None
    else:
        del node.children[level]
        if not node.children:
            node.children = None


def _is_empty(node: _Node[K, V]) -> bool:
    return (
        node.entries is None
        and node.multi is None
        and node.single is None
        and node.only_child is None
        and node.children is None
    )
