"""mosquitto.conf to rookery.toml, and what of it could not be carried over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.migration.mosquitto_conf import Line
from broker.settings import Settings

#: What Mosquitto calls its versions, in `accept_protocol_versions`.
_VERSIONS = {"3": "3.1", "4": "3.1.1", "5": "5"}

#: Options without a counterpart that need none: what is done instead.
_NEEDLESS = {
    "persistence": "sessions, queues and retained messages always live in the store",
    "persistence_location": "the embedded store keeps its files below data_dir",
    "persistence_file": "the embedded store keeps its files below data_dir",
    "autosave_interval": "the store writes at once",
    "autosave_on_changes": "the store writes at once",
    "set_tcp_nodelay": "it is always on",
    "user": "start the broker as the user it shall be",
    "pid_file": "ready_file has the process id",
    "log_dest": "the log goes to standard error",
    "log_facility": "the log goes to standard error",
    "log_timestamp": "log lines always have a time",
    "log_timestamp_format": "log lines have ISO 8601 times",
    "connection_messages": "clients that come and go are logged at log_level debug",
    "websockets_log_level": "see log_level",
    "websockets_headers_size": "the headers of a WebSocket request have a bound of their own",
    "dhparamfile": "the cipher suites offered use elliptic curves",
    "allow_duplicate_messages": "a session gets one copy, with the identifiers of all subscriptions that match",
    "global_max_clients": "use max_connections; sessions without a connection are not counted",
    "check_retain_source": "retained messages are checked on delivery by the rules of whoever receives them",
}

_BRIDGE = {
    "connection", "address", "addresses", "topic", "bridge_attempt_unsubscribe", "bridge_bind_address",
    "bridge_clean_session", "bridge_outgoing_retain", "bridge_max_packet_size", "bridge_max_topic_alias",
    "bridge_protocol_version", "bridge_reload_type", "bridge_receive_maximum", "bridge_session_expiry_interval",
    "bridge_tcp_keepalive", "bridge_tcp_user_timeout", "cleansession", "clientid", "idle_timeout",
    "keepalive_interval", "local_clientid", "local_cleansession", "local_password", "local_username", "notifications",
    "notifications_local_only", "notification_topic", "password", "remote_clientid", "remote_password",
    "remote_username", "restart_timeout", "round_robin", "start_type", "threshold", "try_private", "username",
    "bridge_alpn", "bridge_cafile", "bridge_capath", "bridge_certfile", "bridge_identity", "bridge_insecure",
    "bridge_keyfile", "bridge_psk", "bridge_require_ocsp", "bridge_tls_version", "bridge_ciphers",
    "bridge_ciphers_tls1.3", "bridge_tls_use_os_certs",
}  # fmt: skip

#: The largest packet that MQTT has, and what Mosquitto 2.1 takes if nobody says; before, that was without a limit.
_LARGEST_PACKET = 268_435_460
_USUAL_PACKET = 2_000_000

#: Kept for each listener with `per_listener_settings true`.
_ACCESS = ("allow_anonymous", "password_file", "acl_file", "psk_file")

_Notes = Callable[[Line, str], None]


@dataclass
class ListenerLines:
    """One listener of Mosquitto and what was said of it."""

    line: Line | None = None
    address: str = ""
    port: int = 1883
    options: dict[str, Line] = field(default_factory=dict)


@dataclass
class Imported:
    """The text of a rookery.toml, and what could not be carried over (place and reason)."""

    toml: str
    notes: list[str]


def convert(lines: Sequence[Line]) -> Imported:
    """Everything that has a counterpart goes into the text, everything else into the notes."""
    return _Conversion(lines).result()


class _Conversion:
    def __init__(self, lines: Sequence[Line]) -> None:
        self._notes: list[str] = []
        self._settings: dict[str, object] = {}
        self._general: dict[str, Line] = {}
        self._default = ListenerLines()
        self._listeners: list[ListenerLines] = []
        self._per_listener = any(line.key == "per_listener_settings" and _true(line) for line in lines)
        self._bridge = ""
        self._log_types: set[str] = set()
        self._packet_limits: list[int] = []
        current = self._default
        for line in lines:
            if line.key == "listener":
                current = self._listener(line)
            elif line.key == "connection":
                self._bridge = line.value
                self._note(line, "bridges are not yet supported; nothing of this bridge was carried over")
            elif self._bridge and line.key in _BRIDGE:
                pass
            elif line.key in _LISTENER or line.key in _GLOBAL_OF_LISTENER:
                current.options[line.key] = line
            elif line.key in _ACCESS:
                (current.options if self._per_listener else self._general)[line.key] = line
            else:
                self._global(line)

    def _note(self, line: Line, why: str) -> None:
        self._notes.append(f"{line}: {why}")

    # -- reading

    def _listener(self, line: Line) -> ListenerLines:
        port, _, address = line.value.partition(" ")
        made = ListenerLines(line, address.strip(), _number(port) or 0)
        self._bridge = ""
        self._listeners.append(made)
        return made

    def _global(self, line: Line) -> None:
        if line.key in _PACKET_LIMITS:
            limit = _PACKET_LIMITS[line.key](line.value)
            if limit is None:
                self._note(line, "the value has no counterpart")
            else:
                self._packet_limits.append(limit)
        elif line.key in _SETTINGS:
            name, read = _SETTINGS[line.key]
            value = read(line.value)
            if value is None:
                self._note(line, "the value has no counterpart")
            elif value != "":
                self._settings[name] = value
        elif line.key == "log_type":
            self._log_types.add(line.value)
        elif line.key in _NEEDLESS:
            self._note(line, f"not needed: {_NEEDLESS[line.key]}")
        elif line.key == "per_listener_settings":
            pass
        elif line.key == "queue_qos0_messages":
            if _true(line):
                self._note(line, "QoS 0 messages are not queued for clients that are away")
        elif line.key == "upgrade_outgoing_qos":
            if _true(line):
                self._note(line, "messages keep the lower of both QoS, as the standard says")
        elif line.key == "retain_expiry_interval":
            self._note(line, "retained messages expire by their Message Expiry Interval only")
        elif line.key == "clientid_prefixes":
            self._note(
                line, "nobody is kept out by the prefix of the client id now; a hook or an HTTP service can do it"
            )
        elif line.key.startswith(("auth_plugin", "plugin", "auth_opt_", "plugin_opt_", "global_plugin")):
            self._note(line, "plugins of Mosquitto cannot be used; see authentication and hooks")
        else:
            self._note(line, "not known here")

    # -- writing

    def result(self) -> Imported:
        listeners = self._listeners
        used = [key for key in ("port", "bind_address") if key in self._default.options]
        if used or not listeners:
            listeners = [self._default, *listeners]
        elif self._default.options:
            # What stands before the first `listener` line belongs to a default listener that is not there.
            for line in self._default.options.values():
                if line.key in _GLOBAL_OF_LISTENER or self._per_listener:
                    self._note(line, "belongs to the default listener, which is not used")
                else:
                    for listener in listeners:
                        listener.options.setdefault(line.key, line)
        tables, authentication, authorization = self._tables(listeners)
        if self._log_types & {"all", "debug"}:
            self._settings["log_level"] = "debug"
        elif self._log_types and not self._log_types & {"information", "notice", "all"}:
            self._settings["log_level"] = "warning" if "warning" in self._log_types else "error"
        parts = ["# Made from mosquitto.conf by `rookery import-mosquitto`.\n"]
        parts += [f"{name} = {_toml(value)}\n" for name, value in self._settings.items()]
        parts.append(self._packet_size())
        for key, entries in (("listen", tables), ("authentication", authentication), ("authorization", authorization)):
            for entry in entries:
                parts.append(f"\n[[{key}]]\n")
                parts += [f"{name} = {_toml(value)}\n" for name, value in entry.items()]
        return Imported("".join(parts), self._notes)

    def _packet_size(self) -> str:
        """The lines about the largest packet: the default here is less than what Mosquitto takes."""
        why = ""
        if not self._packet_limits:
            why = "as Mosquitto 2.1; before, it took packets of any size. Only up to max_queued_bytes are queued"
        elif min(self._packet_limits) == _LARGEST_PACKET:
            why = "no limit, as there. Only messages up to max_queued_bytes are queued"
        limit = min(self._packet_limits, default=_USUAL_PACKET)
        line = f"max_packet_size = {limit}" + (f"  # {why}" if why else "") + "\n"
        if limit < Settings().max_packet_size_before_auth:
            line += f"max_packet_size_before_auth = {limit}\n"
        return line

    def _tables(
        self, listeners: Sequence[ListenerLines]
    ) -> tuple[list[dict[str, object]], list[dict[str, object]], list[dict[str, object]]]:
        tables: list[dict[str, object]] = []
        password_files: dict[str, str] = {}
        acl_files: dict[str, list[str]] = {}
        identities: set[str] = set()
        for number, each in enumerate(listeners, start=1):
            table = self._table(each, number)
            name = str(table["name"])
            access = each.options if self._per_listener else self._general
            chain: list[str] = []
            fields = [key for key in ("use_identity_as_username", "use_subject_as_username") if _on(each.options, key)]
            if fields:
                what = "cn" if fields[0] == "use_identity_as_username" else "dn"
                identities.add(what)
                chain.append(f"certificate_{what}")
            if "psk_file" in access and "certfile" not in each.options:
                table["psk_file"] = access["psk_file"].value
                if _on(each.options, "use_identity_as_username") or "psk_hint" in each.options:
                    chain = ["psk"]
            if "password_file" in access and not chain:  # a certificate or key is the only credential in Mosquitto too
                path = access["password_file"].value
                chain.append(password_files.setdefault(path, f"file{len(password_files) + 1}"))
            if "acl_file" in access:
                acl_files.setdefault(access["acl_file"].value, []).append(name)
            table["authentication"] = chain or ["off"]
            table["anonymous"] = "true" if self._anonymous(access, each, bool(chain)) else "false"
            tables.append(table)
        authentication: list[dict[str, object]] = [
            {"type": "certificate", "name": f"certificate_{what}", "username": what} for what in sorted(identities)
        ]
        if any(table["authentication"] == ["psk"] or "psk" in str(table["authentication"]) for table in tables):
            authentication.append({"type": "psk"})
        authentication += [
            {"type": "password_file", "name": name, "path": path} for path, name in password_files.items()
        ]
        authorization: list[dict[str, object]] = []
        for path, names in acl_files.items():
            entry: dict[str, object] = {"type": "acl_file", "name": f"acl{len(authorization) + 1}", "path": path}
            if len(names) < len(tables):
                entry["listeners"] = names
            authorization.append(entry)
        if authorization and {name for names in acl_files.values() for name in names} != {t["name"] for t in tables}:
            without = [str(t["name"]) for t in tables if not any(t["name"] in names for names in acl_files.values())]
            self._notes.append(
                f"listeners without acl_file ({', '.join(without)}): Mosquitto allows everything there; here a topic "
                "that no rule applies to is refused: add an [[authorization]] for them"
            )
        return tables, authentication, authorization

    def _anonymous(self, access: Mapping[str, Line], each: ListenerLines, asked: bool) -> bool:
        """Mosquitto 2: false once a listener is configured; without any, only this machine can connect, and may."""
        own = each.options.get("listener_allow_anonymous")
        if own is not None:
            return _true(own)
        if "allow_anonymous" in access:
            return _true(access["allow_anonymous"])
        return each.line is None and "port" not in each.options and not asked

    def _table(self, each: ListenerLines, number: int) -> dict[str, object]:
        options = each.options
        secure = "certfile" in options or ("psk_hint" in options and "certfile" not in options)
        web = "protocol" in options and options["protocol"].value == "websockets"
        if "protocol" in options and options["protocol"].value not in ("mqtt", "websockets"):
            self._note(options["protocol"], "only mqtt and websockets are known")
        table: dict[str, object] = {"url": self._url(each, secure, web), "name": f"listener{number}"}
        for key, line in options.items():
            if key in _LISTENER:
                name, read = _LISTENER[key]
                if not name:
                    continue
                value = read(line.value)
                if value is None:
                    self._note(line, "the value has no counterpart")
                elif value != "":
                    table[name] = value
            else:
                self._of_all_listeners(line)
        if _on(options, "require_certificate"):
            table["client_certificates"] = "required"
        elif "ca_certs" in table and secure:
            table.pop("ca_certs")  # Mosquitto asks for no certificate either
        if not secure:
            for name in ("ca_certs", "client_certificates", "crl_file", "ciphers", "tls_min", "keyfile"):
                table.pop(name, None)
        if web:
            self._notes.append(f"{each.line or 'websockets'}: the path is /mqtt here; Mosquitto takes any")
        else:
            table.pop("origins", None)
        if "crl_file" in table and "ca_certs" not in table:
            table.pop("crl_file")
        return table

    def _of_all_listeners(self, line: Line) -> None:
        """What Mosquitto sets for one listener and this broker for all."""
        if line.key in _SETTINGS_OF_LISTENER:
            name = _SETTINGS_OF_LISTENER[line.key]
            value = _number(line.value)
            if value is not None and name in self._settings and self._settings[name] != value:
                self._note(line, f"{name} is one setting for all listeners: {self._settings[name]}")
            elif value is not None:
                self._settings[name] = value
        elif line.key in _NEEDLESS:
            self._note(line, f"not needed: {_NEEDLESS[line.key]}")
        elif line.key not in ("port", "bind_address", "socket_domain", *_ACCESS) and _not_false(line):
            self._note(line, "has no counterpart")

    def _url(self, each: ListenerLines, secure: bool, web: bool) -> str:
        options = each.options
        port = each.port
        address = each.address
        if each.line is None:
            port = _number(options["port"].value) or 1883 if "port" in options else 1883
            address = options["bind_address"].value if "bind_address" in options else ""
            # Without any listener Mosquitto 2 serves this machine only.
            address = address or ("" if "port" in options else "127.0.0.1")
        if address.startswith("/") or (port == 0 and address):
            if web or secure:
                self._notes.append(f"unix socket {address}: serves plain MQTT only")
            return f"unix://{address}"
        scheme = {(False, False): "tcp", (True, False): "tls", (False, True): "ws", (True, True): "wss"}[secure, web]
        if not address and "socket_domain" in options and options["socket_domain"].value == "ipv6":
            address = "::"
        elif not address and "socket_domain" not in options:
            self._notes.append(f"{each.line or options['port']}: IPv4 only; add {scheme}://[::]:{port} for IPv6")
        host = f"[{address}]" if ":" in address else address
        return f"{scheme}://{host}:{port}" + ("/mqtt" if web else "")


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _positive(text: str) -> object:
    """-1 and 0 mean no limit in Mosquitto."""
    number = _number(text)
    return None if number is None else max(0, number)


def _text(text: str) -> object:
    return text


def _flag(text: str) -> object:
    return text.lower() in ("true", "1")


def _queued(text: str) -> object:
    number = _number(text)
    if number is None:
        return None
    return number if number > 0 else 10_000_000


def _expiry(text: str) -> object:
    """`2w`, `14d`, `6m`, `1y`, `12h`: months and years have no unit here."""
    number = _number(text[:-1])
    if number is None or text[-1:] not in "hdwmy":
        return None
    unit = {"m": 30, "y": 365}.get(text[-1])
    return f"{number * unit}d" if unit else text


def _packet(text: str) -> int | None:
    number = _number(text)
    if number is None:
        return None
    return min(_LARGEST_PACKET, max(256, number)) if number > 0 else _LARGEST_PACKET


def _payload(text: str) -> int | None:
    """A limit of the payload; the packet has a topic and properties as well."""
    number = _number(text)
    if number is None:
        return None
    return min(_LARGEST_PACKET, max(256, number + 65_536)) if number > 0 else _LARGEST_PACKET


def _queued_bytes(text: str) -> object:
    """0 means no limit in Mosquitto; here the default counts then, as a queue without one would fill the store."""
    number = _number(text)
    if number is None:
        return None
    return max(1024, number) if number > 0 else ""


def _inflight(text: str) -> object:
    number = _number(text)
    if number is None:
        return None
    return min(4095, number) if number > 0 else 4095


def _versions(text: str) -> object:
    found = [_VERSIONS.get(word.strip()) for word in text.split(",")]
    return None if None in found else found


def _tls_version(text: str) -> object:
    return {"tlsv1.2": "1.2", "tlsv1.3": "1.3"}.get(text)


def _origin(text: str) -> object:
    return [text]


def _nothing(text: str) -> object:
    return ""


#: Of the whole broker: Mosquitto's name -> setting, and how the value is read ("": as by default; None: cannot be).
_SETTINGS: dict[str, tuple[str, Callable[[str], object]]] = {
    "global_max_connections": ("max_connections", _positive),
    "max_inflight_messages": ("max_inflight", _inflight),
    "max_keepalive": ("max_keep_alive", _positive),
    "max_queued_messages": ("max_queued_messages", _queued),
    "max_queued_bytes": ("max_queued_bytes", _queued_bytes),
    "persistent_client_expiration": ("session_expiry_v3", _expiry),
    "retain_available": ("retain_available", _flag),
}

#: Both are about the same setting; the smaller one counts.
_PACKET_LIMITS: dict[str, Callable[[str], int | None]] = {"max_packet_size": _packet, "message_size_limit": _payload}

#: Of one listener: Mosquitto's name -> option of the listener ("" where something else looks at it).
_LISTENER: dict[str, tuple[str, Callable[[str], object]]] = {
    "protocol": ("", _nothing),
    "certfile": ("certfile", _text),
    "keyfile": ("keyfile", _text),
    "cafile": ("ca_certs", _text),
    "crlfile": ("crl_file", _text),
    "ciphers": ("ciphers", _text),
    "tls_version": ("tls_min", _tls_version),
    "psk_hint": ("psk_hint", _text),
    "require_certificate": ("", _nothing),
    "use_identity_as_username": ("", _nothing),
    "use_subject_as_username": ("", _nothing),
    "listener_allow_anonymous": ("", _nothing),
    "max_connections": ("max_connections", _positive),
    "mount_point": ("mountpoint", lambda text: text.replace("%c", "${clientid}").replace("%u", "${username}")),
    "websockets_origin": ("origins", _origin),
    "accept_protocol_versions": ("versions", _versions),
}

_SETTINGS_OF_LISTENER = {"max_qos": "max_qos", "max_topic_alias": "topic_alias_maximum"}

#: Stand in the section of a listener and are handled one by one.
_GLOBAL_OF_LISTENER = {
    "port", "bind_address", "bind_interface", "http_dir", "socket_domain", "use_username_as_clientid", "capath",
    "ciphers_tls1.3", "tls_engine", "tls_engine_kpass_sha1", "tls_keyform", "dhparamfile", "max_qos", "max_topic_alias",
    "listener_auto_id_prefix", "proxy_protocol", "proxy_protocol_v2_require_tls", "disable_client_cert_date_checks",
    "enable_control_api", "auto_id_prefix", "max_topic_alias_broker",
}  # fmt: skip


def _true(line: Line) -> bool:
    return line.value.lower() in ("true", "1")


def _not_false(line: Line) -> bool:
    return line.value.lower() not in ("false", "0")


def _on(options: Mapping[str, Line], key: str) -> bool:
    return key in options and _true(options[key])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    return json.dumps(str(Path(value) if isinstance(value, Path) else value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )
