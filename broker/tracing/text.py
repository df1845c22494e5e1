"""Packets and messages in words, and as values that JSON can hold.

What clients chose (names, topics, properties) stands in quotes in a text, with everything escaped that would end the
line or change how a terminal shows it; it is cut where it is long. Passwords and authentication data are never shown.
"""

from __future__ import annotations

import base64
import codecs
from typing import Any, Final

from broker.codec.packets import (
    KIND_NAMES,
    PROPERTY_NAMES,
    PUBLISH,
    Acknowledgement,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Properties,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.codec.primitives import remaining_length
from broker.codec.properties import decode_properties
from broker.errors import PeerError
from broker.message import Message
from broker.reasons import reason_name

#: Characters of a name, bytes of a payload, and items of a list that are shown.
NAME_MAX: Final = 256
PAYLOAD_MAX: Final = 256
ITEMS_MAX: Final = 20


def escaped(text: str) -> str:
    """Without anything that is not printed, and with its quotes and backslashes marked."""
    if len(text) > NAME_MAX:
        text = text[:NAME_MAX] + "..."
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def quoted(text: str) -> str:
    """In quotes, so that it is seen where it ends."""
    return f'"{escaped(text)}"'


def cut(text: str) -> str:
    """As it is, as far as it is shown."""
    return text if len(text) <= NAME_MAX else text[:NAME_MAX] + "..."


def topic_text(topic: bytes) -> str:
    """A topic name that a client may have sent."""
    return topic.decode("utf-8", "backslashreplace")


def reason_text(code: int) -> str:
    """A reason code with its name."""
    return f"{reason_name(code)} (0x{code:02X})"


def payload_shown(payload: bytes) -> dict[str, Any]:
    """The beginning of a payload, as text if it is some."""
    head = payload[:PAYLOAD_MAX]
    shown: dict[str, Any] = {"payload_truncated": len(payload) > PAYLOAD_MAX}
    try:
        shown["payload"] = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(payload) <= PAYLOAD_MAX)
        shown["payload_encoding"] = "plain"
    except UnicodeDecodeError:
        shown["payload"] = base64.b64encode(head).decode()
        shown["payload_encoding"] = "base64"
    return shown


def properties_shown(properties: Properties | None) -> dict[str, Any]:
    """Those that are set."""
    shown: dict[str, Any] = {}
    for name in PROPERTY_NAMES if properties is not None else ():
        value = getattr(properties, name)
        if value is None or value == ():
            continue
        if name == "authentication_data":
            shown["authentication_data_bytes"] = len(value)
        elif name == "user_properties":
            shown[name] = [[cut(key), cut(text)] for key, text in list(value)[:ITEMS_MAX]]
        elif isinstance(value, bytes):
            shown[name] = value[:64].hex()
        elif isinstance(value, str):
            shown[name] = cut(value)
        else:
            shown[name] = list(value)[:ITEMS_MAX] if isinstance(value, list | tuple) else value
    return shown


def message_text(topic: bytes, flags: int, packet_id: int, size: int) -> str:
    """A message as it is sent: `flags` are those of the first byte."""
    qos = flags >> 1 & 3
    words = [f"PUBLISH {quoted(topic_text(topic))} QoS {qos}"]
    if packet_id:
        words.append(f"id {packet_id}")
    if flags & 8:
        words.append("dup")
    if flags & 1:
        words.append("retain")
    return " ".join(words) + f", {size} bytes"


def message_shown(message: Message) -> dict[str, Any]:
    """Topic, flags, size and properties of a message that was accepted."""
    shown: dict[str, Any] = {
        "topic": cut(topic_text(message.topic)),
        "qos": message.qos,
        "retain": bool(message.retain),
        "payload_bytes": len(message.payload),
    }
    properties = _forwarded(message.properties)
    if message.expiry_s >= 0:
        properties["message_expiry_interval"] = message.expiry_s
    if properties:
        shown["properties"] = properties
    return shown


def _forwarded(properties: bytes) -> dict[str, Any]:
    if not properties:
        return {}
    block = remaining_length(len(properties)) + properties
    try:
        return properties_shown(decode_properties(block, 0, len(block), PUBLISH, None)[0])
    except PeerError:
        return {}


def packet_shown(packet: Packet) -> tuple[str, dict[str, Any]]:
    """A packet as text and as values, without the payload of a PUBLISH."""
    shown: dict[str, Any] = {"type": KIND_NAMES[packet.kind]}
    properties = properties_shown(getattr(packet, "properties", None))
    if properties:
        shown["properties"] = properties
    text = str(shown["type"]) + _more(packet, shown)
    if properties:
        text += ", " + ", ".join(f"{name}={_short(value)}" for name, value in properties.items())
    return text, shown


def _short(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(_short(each) for each in value) + "]"
    return str(value)


def _more(packet: Packet, shown: dict[str, Any]) -> str:
    match packet:
        case Connect():
            return _connect(packet, shown)
        case Connack():
            shown.update(session_present=packet.session_present, reason_code=packet.reason_code)
            present = "session present" if packet.session_present else "no session"
            return f" {reason_text(packet.reason_code)}" + ("" if packet.reason_code else f", {present}")
        case Publish():
            shown.update(
                topic=cut(packet.topic_name),
                qos=packet.qos,
                retain=packet.retain,
                dup=packet.dup,
                packet_id=packet.packet_id,
                payload_bytes=len(packet.payload),
            )
            flags = packet.qos << 1 | packet.retain | packet.dup << 3
            words = message_text(packet.topic_name.encode(), flags, packet.packet_id, len(packet.payload))
            return words.removeprefix("PUBLISH")
        case Acknowledgement():
            shown.update(packet_id=packet.packet_id, reason_code=packet.reason_code)
            return acknowledgement_text(packet.packet_id, packet.reason_code)
        case Subscribe():
            requests = [
                {
                    "topic_filter": cut(each.topic_filter),
                    "qos": each.qos,
                    "no_local": each.no_local,
                    "retain_as_published": each.retain_as_published,
                    "retain_handling": each.retain_handling,
                }
                for each in packet.subscriptions[:ITEMS_MAX]
            ]
            shown.update(packet_id=packet.packet_id, subscriptions=requests, filters=len(packet.subscriptions))
            names = ", ".join(
                f"{quoted(each.topic_filter)} QoS {each.qos}" for each in packet.subscriptions[:ITEMS_MAX]
            )
            return f" id {packet.packet_id}: {names}"
        case Unsubscribe():
            filters = list(packet.topic_filters[:ITEMS_MAX])
            shown.update(
                packet_id=packet.packet_id,
                topic_filters=[cut(each) for each in filters],
                filters=len(packet.topic_filters),
            )
            return f" id {packet.packet_id}: {', '.join(map(quoted, filters))}"
        case Suback() | Unsuback():
            codes = list(packet.reason_codes[:ITEMS_MAX])
            shown.update(packet_id=packet.packet_id, reason_codes=codes)
            granted = packet.kind == Suback.kind
            words = ", ".join(f"QoS {code}" if granted and code < 3 else reason_text(code) for code in codes)
            return f" id {packet.packet_id}: {words}"
        case Disconnect() | Auth():
            shown["reason_code"] = packet.reason_code
            return f" {reason_text(packet.reason_code)}"
        case _:
            return ""


def acknowledgement_text(packet_id: int, reason_code: int) -> str:
    """What follows PUBACK, PUBREC, PUBREL or PUBCOMP."""
    return f" id {packet_id}" + (f" {reason_text(reason_code)}" if reason_code else "")


def _connect(packet: Connect, shown: dict[str, Any]) -> str:
    shown.update(
        protocol_version=packet.protocol_version,
        client_id=cut(packet.client_id),
        clean_start=packet.clean_start,
        keep_alive_s=packet.keep_alive_s,
        username=None if packet.username is None else cut(packet.username),
        has_password=packet.password is not None,
        bridge=packet.bridge,
    )
    version = {3: "3.1", 4: "3.1.1", 5: "5"}.get(packet.protocol_version, str(packet.protocol_version))
    words = [f" MQTT {version}, client id {quoted(packet.client_id)}"]
    if packet.username is not None:
        words.append(f"user {quoted(packet.username)}")
    words.append("with password" if packet.password is not None else "no password")
    words.append("clean start" if packet.clean_start else "goes on with its session")
    words.append(f"keep alive {packet.keep_alive_s} s")
    if packet.will is not None:
        shown["will"] = _will(packet.will)
        words.append(f"will {quoted(packet.will.topic_name)} QoS {packet.will.qos}")
    return ", ".join(words)


def _will(will: Will) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "topic": cut(will.topic_name),
        "qos": will.qos,
        "retain": will.retain,
        "payload_bytes": len(will.payload),
    }
    properties = properties_shown(will.properties)
    if properties:
        shown["properties"] = properties
    return shown
