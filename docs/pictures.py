"""The pictures of docs/concepts.md and README.md as SVG: drawn from a few words, readable in dark and light.

`docs/generate.py` writes them to docs/images. A picture carries its own background, and its colours follow what the
reader prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """<style>
.b{fill:#f7f8fa}.t{font:13px system-ui,sans-serif;fill:#1f2933}.m{text-anchor:middle}.s{font-size:12px;fill:#52606d}
.h{font-weight:600}.x{fill:#fff;stroke:#7b8794}.l{stroke:#9aa5b1;stroke-dasharray:3 4}
.a{stroke:#1f6feb;stroke-width:1.6;fill:none}.p{fill:#1f6feb}.n{fill:#e6f0ff;stroke:#1f6feb}.g{fill:#e3f6e8;stroke:#2f8f4e}
@media(prefers-color-scheme:dark){.b{fill:#161b22}.t{fill:#e6edf3}.s{fill:#9aa5b1}.x{fill:#21262d;stroke:#7b8794}
.l{stroke:#52606d}.a{stroke:#79b8ff}.p{fill:#79b8ff}.n{fill:#12305c;stroke:#79b8ff}.g{fill:#12361f;stroke:#56d07e}}
</style>"""

_ARROW = (
    '<marker id="e" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
    '<path d="M0 0L8 4L0 8z" class="p"/></marker>'
)


@dataclass(frozen=True)
class Arrow:
    """A packet or a call, from one column to another."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Note:
    """Something that holds from here on, over some of the columns."""

    first: int
    last: int
    text: str


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">\n'
        f"<title>{escape(title)}</title>\n{_STYLE}\n<defs>{_ARROW}</defs>\n"
        f'<rect class="b" width="{width}" height="{height}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    return f'<text class="{("t " + classes).strip()}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>'


def sequence(title: str, columns: Sequence[str], steps: Sequence[Arrow | Note]) -> str:
    """Who sends what to whom, from top to bottom."""
    gap, top, row = 190, 64, 34
    width, height = gap * len(columns), top + row * len(steps) + 14
    middle = [gap * (index + 0.5) for index in range(len(columns))]
    parts = []
    for x, name in zip(middle, columns, strict=True):
        parts += [
            f'<line class="l" x1="{x:g}" y1="40" x2="{x:g}" y2="{height - 8}"/>',
            _box(x - 66, 12, 132, 28, "x"),
            _text(x, 31, name, "m h"),
        ]
    for number, step in enumerate(steps):
        y = top + row * number + 14
        if isinstance(step, Arrow):
            start, end = middle[step.start], middle[step.end]
            inward = 5 if end > start else -5
            ends = f'x1="{start + inward:g}" y1="{y}" x2="{end - inward:g}" y2="{y}"'
            parts.append(f'<line class="a" {ends} marker-end="url(#e)"/>')
            parts.append(_text((start + end) / 2, y - 6, step.text, "m s"))
        else:
            left, right = middle[step.first] - 86, middle[step.last] + 86
            parts += [
                _box(left, y - 17, right - left, 24, "g"),
                _text((left + right) / 2, y - 1, step.text, "m"),
            ]
    return _svg(width, height, title, parts)


_COLUMNS = ("publisher", "node A", "store", "node B", "subscriber")


def qos0() -> str:
    """QoS 0: nobody waits for anything."""
    return sequence(
        "QoS 0: passed on at once, nothing is stored for absent clients",
        _COLUMNS,
        (
            Arrow(0, 1, "PUBLISH"),
            Note(0, 1, "the publisher is done: no answer"),
            Arrow(1, 2, "for other nodes"),
            Arrow(2, 3, "read from the stream"),
            Arrow(3, 4, "PUBLISH"),
            Note(3, 4, "absent or too slow: dropped and counted"),
        ),
    )


def qos1() -> str:
    """QoS 1: in the store before PUBACK."""
    return sequence(
        "QoS 1: PUBACK leaves when the store has the message for every receiver",
        _COLUMNS,
        (
            Arrow(0, 1, "PUBLISH, id 7"),
            Arrow(1, 2, "into every queue"),
            Arrow(2, 1, "stored"),
            Note(0, 2, "from here on the death of node A loses nothing"),
            Arrow(1, 0, "PUBACK 7"),
            Arrow(2, 3, "read from the stream"),
            Arrow(3, 4, "PUBLISH, id 12"),
            Arrow(4, 3, "PUBACK 12"),
            Arrow(3, 2, "out of the queue"),
            Note(2, 4, "no PUBACK: sent again with DUP, by any node"),
        ),
    )


def qos2() -> str:
    """QoS 2: one id for the message and all of its repetitions."""
    return sequence(
        "QoS 2: the store remembers the packet id until it is released, so that a repetition adds no copy",
        _COLUMNS,
        (
            Arrow(0, 1, "PUBLISH, id 7"),
            Arrow(1, 2, "reserve 7"),
            Arrow(1, 2, "into every queue"),
            Arrow(2, 1, "stored"),
            Arrow(1, 0, "PUBREC 7"),
            Note(0, 2, "repeated to any node: found, not stored again"),
            Arrow(0, 1, "PUBREL 7"),
            Arrow(1, 2, "free 7"),
            Arrow(1, 0, "PUBCOMP 7"),
            Arrow(2, 3, "read from the stream"),
            Arrow(3, 4, "PUBLISH, id 12"),
            Arrow(4, 3, "PUBREC 12"),
            Arrow(3, 2, "12 has arrived"),
            Arrow(3, 4, "PUBREL 12"),
            Arrow(4, 3, "PUBCOMP 12"),
            Note(2, 4, "after PUBREC the message is never sent again"),
        ),
    )


def shape() -> str:
    """What a cluster consists of."""
    parts = [
        _text(90, 30, "clients", "m h"),
        _text(265, 30, "load balancer", "m h"),
        _text(465, 30, "nodes", "m h"),
        _text(690, 30, "store", "m h"),
    ]
    for index, text in enumerate(("MQTT 5", "MQTT 3.1.1", "WebSocket")):
        y = 50 + 50 * index
        parts += [_box(30, y, 120, 34, "x"), _text(90, y + 22, text, "m")]
        parts.append(f'<line class="a" x1="150" y1="{y + 17}" x2="208" y2="117" marker-end="url(#e)"/>')
    parts += [_box(212, 90, 106, 54, "x"), _text(265, 113, "any TCP", "m"), _text(265, 131, "optional", "m s")]
    for index, text in enumerate(("rookery-1", "rookery-2", "rookery-3")):
        y = 46 + 50 * index
        parts += [_box(400, y, 130, 40, "n"), _text(465, y + 25, text, "m")]
        parts.append(f'<line class="a" x1="318" y1="117" x2="396" y2="{y + 20}" marker-end="url(#e)"/>')
        parts.append(
            f'<line class="a" x1="534" y1="{y + 20}" x2="606" y2="117" marker-start="url(#e)" marker-end="url(#e)"/>'
        )
    parts += [
        _box(610, 62, 160, 110, "g"),
        _text(690, 84, "Redis or Valkey", "m h"),
        *(
            _text(690, 106 + 19 * index, text, "m s")
            for index, text in enumerate(("sessions and queues", "retained, wills", "shared groups, routes"))
        ),
        _text(465, 216, "keep nothing that a client would miss", "m s"),
        _text(690, 216, "single, Sentinel or Cluster", "m s"),
    ]
    return _svg(800, 236, "Clients, load balancer, nodes and the store that the nodes share", parts)


PICTURES = {"images/shape.svg": shape, "images/qos0.svg": qos0, "images/qos1.svg": qos1, "images/qos2.svg": qos2}
