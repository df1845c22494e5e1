"""Messages as operators give and get them: payloads as text or base64, properties by name."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec

from broker.admin.api import BAD_REQUEST, AdminError
from broker.codec.packets import Properties as PacketProperties
from broker.codec.properties import MAXIMUM_USER_PROPERTIES
from broker.codec.publish import forwardable_to_properties, properties_to_forwardable
from broker.errors import StateError
from broker.message import Message

Encoding = Literal["plain", "base64"]

_Short = Annotated[str, msgspec.Meta(max_length=65535)]
#: base64 of 65535 bytes.
_Binary = Annotated[str, msgspec.Meta(max_length=87384, description="base64")]


class Properties(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Properties of MQTT 5 that a message has. `correlation_data` is base64, `user_properties` are pairs of name and
    value in order, `message_expiry_interval` are seconds."""

    payload_format_indicator: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    message_expiry_interval: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] | None = None
    content_type: _Short | None = None
    response_topic: Annotated[str, msgspec.Meta(min_length=1, max_length=65535)] | None = None
    correlation_data: _Binary | None = None
    user_properties: Annotated[list[tuple[_Short, _Short]], msgspec.Meta(max_length=MAXIMUM_USER_PROPERTIES)] = []


class Shown(msgspec.Struct, kw_only=True):
    """A message. `payload` is text if that is what it is, else base64 (`payload_encoding`); `truncated`: it is only the
    beginning of `payload_bytes`. `expires_in_s` null: never; `accepted_at_ms` (epoch) null: not known."""

    topic: str
    payload: str
    payload_encoding: Encoding
    payload_bytes: int
    truncated: bool = False
    qos: int = 0
    retain: bool = False
    properties: Properties
    accepted_at_ms: int | None = None
    expires_in_s: int | None = None


def bytes_of(payload: str, encoding: Encoding, name: str = "payload") -> bytes:
    """The payload that was given. Raises AdminError (400)."""
    try:
        if encoding == "base64":
            return base64.b64decode(payload, validate=True)
        return payload.encode()
    except (binascii.Error, ValueError) as error:
        raise AdminError(BAD_REQUEST, "invalid arguments", f"{name}: {error}") from None


def text_of(payload: bytes, limit: int) -> tuple[str, Encoding, bool]:
    """A payload, or its beginning of at most `limit` bytes, as it is shown: text, how it is encoded, whether cut."""
    cut = payload[:limit]
    truncated = len(cut) < len(payload)
    try:
        return cut.decode(), "plain", truncated
    except UnicodeDecodeError as error:
        if truncated and error.start > len(cut) - 4 and error.reason == "unexpected end of data":
            return cut[: error.start].decode(), "plain", truncated
    return base64.b64encode(cut).decode(), "base64", truncated


def shown(message: Message, now_ms: int, limit: int, **more: Any) -> dict[str, Any]:
    """The fields of `Shown`; `limit` bytes of the payload at most."""
    payload, encoding, truncated = text_of(message.payload, limit)
    left = message.remaining_s(now_ms)
    return {
        "topic": message.topic.decode("utf-8", "replace"),
        "payload": payload,
        "payload_encoding": encoding,
        "payload_bytes": len(message.payload),
        "truncated": truncated,
        "qos": message.qos,
        "retain": message.retain,
        "properties": _properties_of(message),
        "accepted_at_ms": message.accepted_at_ms or None,
        "expires_in_s": None if left < 0 else left,
        **more,
    }


def _properties_of(message: Message) -> Properties:
    try:
        found = forwardable_to_properties(message.properties)
    except StateError:
        return Properties()
    correlation = found.correlation_data
    return Properties(
        payload_format_indicator=found.payload_format_indicator,
        message_expiry_interval=message.expiry_s if message.expiry_s >= 0 else None,
        content_type=found.content_type,
        response_topic=found.response_topic,
        correlation_data=None if correlation is None else base64.b64encode(correlation).decode(),
        user_properties=list(found.user_properties),
    )


def forwardable_of(given: Properties) -> bytes:
    """The properties as they travel. Raises AdminError (400) for what MQTT does not allow."""
    made = PacketProperties()
    made.payload_format_indicator = given.payload_format_indicator
    made.content_type = given.content_type
    made.response_topic = given.response_topic
    if given.correlation_data is not None:
        made.correlation_data = bytes_of(given.correlation_data, "base64", "correlation_data")
    made.user_properties = given.user_properties
    try:
        block = properties_to_forwardable(made)
        forwardable_to_properties(block)
    except (StateError, ValueError) as error:
        raise AdminError(BAD_REQUEST, "invalid arguments", f"properties: {error}") from None
    return block
