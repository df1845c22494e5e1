"""Packets as plain data, to compare them and to write them down in data files."""

from __future__ import annotations

import re

from broker.codec.packets import KIND_NAMES, PROPERTY_NAMES, Packet, Properties, SubscriptionRequest, Will

Data = None | bool | int | str | list["Data"] | dict[str, "Data"]

_TOKEN = re.compile(r"'([^']*)'|([0-9a-fA-F]+)|(\S)")


def wire(text: str) -> bytes:
    """Return the bytes of a written-down body: hexadecimal digits, and text between single quotes."""
    out = bytearray()
    for quoted, digits, other in _TOKEN.findall(text):
        if other:
            raise ValueError(f"{other!r} is neither hexadecimal nor quoted in {text!r}")
        out += bytes.fromhex(digits) if digits else quoted.encode()
    return bytes(out)


def packet_data(packet: Packet) -> dict[str, Data]:
    """Return the fields of a packet that are not None, False, empty or 0; bytes as Latin-1 text."""
    data = _fields(packet, packet.__class__.__mro__)
    return {"kind": KIND_NAMES[packet.kind], **data}


def properties_data(properties: Properties) -> dict[str, Data]:
    """Return the properties that are set; a value of 0 or an empty string is set."""
    data: dict[str, Data] = {}
    for name in PROPERTY_NAMES:
        value = getattr(properties, name)
        if value is not None and value != () and value != []:
            data[name] = _value(value)
    return data


def attributes(cls: type) -> tuple[str, ...]:
    """The attributes that a class declares, interpreted or compiled (which has no `__slots__`)."""
    found: tuple[str, ...] = vars(cls).get("__mypyc_attrs__") or vars(cls).get("__slots__", ())
    return found


def _fields(thing: object, classes: tuple[type, ...]) -> dict[str, Data]:
    data: dict[str, Data] = {}
    for cls in classes:
        for name in attributes(cls):
            value = _value(getattr(thing, name))
            if value is not None and value is not False and value != [] and (value != 0 or name == "qos"):
                data[name] = value
    return data


def _value(value: object) -> Data:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Properties):
        return properties_data(value)
    if isinstance(value, (Will, SubscriptionRequest)):
        return _fields(value, (type(value),))
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    raise TypeError(f"no plain data for {value!r}")
