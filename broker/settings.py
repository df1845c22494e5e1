"""The declaration of the settings of a node: each once, with its kind, default, bounds and help."""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import ConfigError
from broker.options import Blocks, Networks, Options
from broker.options.authentication import AUTHENTICATORS, ClientAttribute
from broker.options.authorization import RULE_SOURCES
from broker.options.hooks import Hook
from broker.options.listener import Listener, Listeners
from broker.values import (
    NEVER_S,
    Assignments,
    Choice,
    Duration,
    Endpoint,
    FilePath,
    Flag,
    HttpAddress,
    Integer,
    Kind,
    Lifetime,
    Name,
    Size,
    Store,
    Text,
    WholeSeconds,
    hide_password,
)
from cluster.api import STRATEGIES

ENVIRONMENT_PREFIX = "ROOKERY_"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared of one setting."""

    attribute: str
    kind: Kind
    default: str
    help: str
    group: str
    at_least: float | None
    at_most: int | None
    reload: bool
    secret: bool
    in_file: bool

    @property
    def name(self) -> str:
        """The name users write: a duration carries its unit in the value, so `_s` is not part of it."""
        return self.attribute.removesuffix("_s")

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def is_flag(self) -> bool:
        return isinstance(self.kind, Flag)

    @property
    def repeatable(self) -> bool:
        return isinstance(self.kind, Listeners | Assignments | Blocks)

    def parse(self, raw: object, origin: str) -> object:
        """The checked value; ConfigError names the setting, the value, where it came from and what is allowed."""
        try:
            value = self.kind.parse(raw)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._check_bounds(value)
        except ValueError as error:
            raise ConfigError(f"{self.name} = {self._quote(raw)} ({origin}): {error}") from None
        return value

    def show(self, value: object) -> str:
        """The value as text; `***` for a secret that is set."""
        if self.secret:
            return "***" if value else ""
        if isinstance(self.kind, Blocks | Listeners):
            return self.kind.masked(value)
        return self.kind.show(value)

    def _check_bounds(self, value: float) -> None:
        if self.at_least is not None and value < self.at_least:
            raise ValueError(f"must be at least {self.kind.show(self.at_least)}")
        if self.at_most is not None and value > self.at_most:
            raise ValueError(f"must be at most {self.kind.show(self.at_most)}")

    def _quote(self, raw: object) -> str:
        if self.secret:
            return "***"
        if isinstance(self.kind, Blocks | Listeners):
            return "..."  # has secrets in it; the error says what of it is wrong
        text = repr(raw)
        return hide_password(text if len(text) <= 80 else text[:80] + "…")


def _setting(
    group: str,
    kind: Kind,
    default: str,
    text: str,
    *,
    at_least: float | None = None,
    at_most: int | None = None,
    reload: bool = False,
    secret: bool = False,
    in_file: bool = True,
) -> Any:
    value = _host_name() if default == "host name" else kind.parse(default)
    declared = Setting("", kind, default, text, group, at_least, at_most, reload, secret, in_file)
    return dataclasses.field(default=value, repr=not secret, metadata={"setting": declared})


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0]).strip("-_")
    return name[:64] or "rookery"


_NODE, _LISTEN, _STORE, _ACCESS, _LIMITS = "Node", "Listeners", "Store", "Access", "Limits"
_HTTP = "HTTP"
_QUEUES, _SESSION, _MQTT, _DRAIN = "Queues", "Sessions", "MQTT features", "Stopping"
_TOLD, _LOGS = "Events", "Logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its effective value. Attributes in seconds end in `_s`."""

    # fmt: off
    config: Path | None = _setting(_NODE, FilePath(), "", "TOML file to read settings from.", in_file=False)
    node_name: str = _setting(_NODE, Name(), "host name",
        "Name of this node: unique in its cluster, the same after a restart.")
    data_dir: Path = _setting(_NODE, FilePath(), "rookery-data",
        "Folder for what the node keeps on disk: the files of the embedded store.")
    workers: int = _setting(_NODE, Integer(), "1",
        "Processes that serve clients. Each is a node of its own, called NAME-1, NAME-2 ..., with its share of the "
        "connections to the same listeners; limits count for each.", at_least=1, at_most=256)
    ready_file: Path | None = _setting(_NODE, FilePath(), "",
        "Write this JSON file with the real addresses once clients are accepted.")

    listen: tuple[Listener, ...] = _setting(_LISTEN, Listeners(), "tcp://127.0.0.1:1883",
        "Serve MQTT here: tcp://, tls://, ws:// or wss:// with HOST:PORT (an IPv6 address in brackets, port 0 for any "
        "free one), or unix:///PATH; options of the listener follow as ?name=value&name=value. Repeatable: 0.0.0.0 is "
        "IPv4 only, [::] IPv6 only.")
    http: Endpoint | None = _setting(_LISTEN, HttpAddress(), "127.0.0.1:18083",
        "Serve HTTP (dashboard, API, metrics, health) here, or off. 0.0.0.0 is IPv4 only, [::] IPv6 only: for both "
        "there has to be a proxy in front.")

    admin_secret: str = _setting(_HTTP, Text(), "",
        "Secret of the API key `admin`, at least 8 characters. Empty: one is made when there is no key of the scope "
        "admin, and shown once on standard error.", secret=True)
    admin_secret_file: Path | None = _setting(_HTTP, FilePath(), "",
        "Read admin_secret from the first line of this file when the node starts.")
    http_max_body: int = _setting(_HTTP, Size(), "1MiB",
        "Largest body of a request.", at_least=1024, at_most=1 << 28)
    http_rate: int = _setting(_HTTP, Integer(), "200",
        "Requests per second of one API key, or from one IP address without one, bursts of twice as many allowed; "
        "0: no limit.", at_least=0, at_most=1_000_000)
    http_login_s: float = _setting(_HTTP, Duration(), "12h",
        "How long a login in the dashboard lasts.", at_least=60, at_most=31_536_000)
    http_trusted_proxies: tuple[str, ...] = _setting(_HTTP, Networks(), "",
        "Proxies in front of the HTTP port: what X-Forwarded-For and X-Forwarded-Proto say is believed from these "
        "addresses and networks only.")
    metrics_access: str = _setting(_HTTP, Choice("open", "viewer"), "open",
        "Who may read /metrics: everybody, or API keys of the scope viewer and above.")

    store: str = _setting(_STORE, Store(), "embedded",
        "Where sessions, queues and retained messages live: embedded (a private server below the data folder), "
        "memory (nothing survives the process), redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,.../PRIMARY, "
        "redis+cluster://HOST:PORT,... or unix:///PATH?db=DB. rediss instead of redis is TLS "
        "(?ssl_ca_certs=, ssl_certfile=, ssl_keyfile= name PEM files).")
    store_username: str = _setting(_STORE, Text(), "", "User name for the store; empty for its default user.")
    store_password: str = _setting(_STORE, Text(), "",
        "Password for the store. Prefer the environment or the file: a command line is visible to others.", secret=True)
    store_password_file: Path | None = _setting(_STORE, FilePath(), "",
        "Read store_password from the first line of this file when the node starts.")
    sentinel_username: str = _setting(_STORE, Text(), "", "User name for the Sentinels; empty for none.")
    sentinel_password: str = _setting(_STORE, Text(), "", "Password for the Sentinels.", secret=True)
    sentinel_password_file: Path | None = _setting(_STORE, FilePath(), "",
        "Read sentinel_password from the first line of this file when the node starts.")
    namespace: str = _setting(_STORE, Name(), "rookery",
        "Prefix of all keys in the store: clusters that share a store differ in it.")
    partitions: int = _setting(_STORE, Integer(), "0",
        "Parts the keys are divided into, fixed when a namespace is first used; 0 means 16, or 1 for the memory "
        "store and for the embedded store of one worker.", at_least=0, at_most=1024)
    durability: str = _setting(_STORE,
        Choice("auto", "memory", "aof", "fsync", "replicated", "replicated-fsync"), "auto",
        "How safe a message is in the store before it is acknowledged; auto is what the store's own settings give. "
        "The node does not start if the store cannot give it.")
    durability_replicas: int = _setting(_STORE, Integer(), "1",
        "For the replicated classes: how many replicas must have a message.", at_least=1, at_most=16)
    durability_timeout_s: float = _setting(_STORE, Duration(), "2s",
        "For the replicated classes: how long one question for that may take before it is asked again.",
        at_least=0.01, at_most=60)
    store_wait_s: float = _setting(_STORE, Duration(), "0s",
        "How long a node that starts waits for a store that cannot be reached; then it ends.",
        at_least=0, at_most=86400)
    store_grace_s: float = _setting(_STORE, Duration(), "15s",
        "How long the store may be unreachable before clients with sessions in it are disconnected.",
        at_least=0, at_most=3600)

    allow_anonymous: bool = _setting(_ACCESS, Flag(), "false",
        "Let clients in without credentials on listeners that other machines can reach. "
        "On loopback they are let in unless there are users.")
    authentication: tuple[Options, ...] = _setting(_ACCESS, Blocks(*AUTHENTICATORS), "",
        "Who is asked about clients that connect, in this order, until one says yes or no. Repeatable.")
    authentication_cache_s: float = _setting(_ACCESS, Duration(), "0s",
        "How long a yes for a user name and password counts without asking again; 0: it does not.",
        at_least=0, at_most=3600)
    authentication_cache_size: int = _setting(_ACCESS, Integer(), "10000",
        "How many such answers are kept.", at_least=1, at_most=10_000_000)
    client_attributes: tuple[Options, ...] = _setting(_ACCESS, Blocks(ClientAttribute), "",
        "Attributes that clients get when they connect, for rules, mountpoints and tenants. Repeatable.")
    authorization: tuple[Options, ...] = _setting(_ACCESS, Blocks(*RULE_SOURCES), "",
        "Where rules about topics come from, in this order, until one says yes or no. Repeatable.")
    no_match: str = _setting(_ACCESS, Choice("deny", "allow"), "deny",
        "What a topic is that no rule applies to; without any rule source everything is allowed.", reload=True)
    sys_access: str = _setting(_ACCESS, Choice("rules", "all"), "rules",
        "Who may subscribe below $SYS/: only clients that a rule allows it (and superusers), or also all that no rule "
        "applies to.")
    deny_action: str = _setting(_ACCESS, Choice("ignore", "disconnect"), "ignore",
        "What happens to a client that publishes what it may not: the message is refused, or the client as well.",
        reload=True)
    session_owner: str = _setting(_ACCESS, Choice("identity", "any"), "identity",
        "Who may go on with a session: only the user that began it, or any who uses its client id.")
    hooks: tuple[Options, ...] = _setting(_ACCESS, Blocks(Hook), "",
        "Python code that is asked or told when clients connect, publish and leave. Repeatable.")

    max_connections: int = _setting(_LIMITS, Integer(), "0",
        "Connections served at a time; 0 is as many as the system allows.", at_least=0, at_most=10_000_000, reload=True)
    max_connections_per_user: int = _setting(_LIMITS, Integer(), "0",
        "Connections of one user name, in the whole cluster; 0: any number.",
        at_least=0, at_most=10_000_000, reload=True)
    max_connections_per_ip: int = _setting(_LIMITS, Integer(), "0",
        "Connections from one IP address, in the whole cluster; 0: any number.",
        at_least=0, at_most=10_000_000, reload=True)
    connection_rate: int = _setting(_LIMITS, Integer(), "0",
        "New connections accepted per second, bursts of as many allowed; 0: no limit. Others wait.",
        at_least=0, at_most=10_000_000, reload=True)
    message_rate: int = _setting(_LIMITS, Integer(), "0",
        "Messages per second that are taken from one client; one that sends more is read more slowly. 0: no limit.",
        at_least=0, at_most=10_000_000, reload=True)
    byte_rate: int = _setting(_LIMITS, Size(), "0",
        "Bytes per second that are taken from one client; 0: no limit.", at_least=0, at_most=1 << 40, reload=True)
    tenant: str = _setting(_LIMITS, Text(), "",
        "What clients of one tenant have in common, such as ${client_attrs.tenant}; empty: there are no tenants.")
    tenant_message_rate: int = _setting(_LIMITS, Integer(), "0",
        "Messages per second that are taken from all clients of a tenant, in the whole cluster; 0: no limit.",
        at_least=0, at_most=10_000_000, reload=True)
    tenant_byte_rate: int = _setting(_LIMITS, Size(), "0",
        "Bytes per second that are taken from all clients of a tenant; 0: no limit.",
        at_least=0, at_most=1 << 40, reload=True)
    max_topic_levels: int = _setting(_LIMITS, Integer(), "200",
        "Levels of a topic name or filter.", at_least=1, at_most=32768, reload=True)
    max_topic_length: int = _setting(_LIMITS, Size(), "65535",
        "Bytes of a topic name or filter.", at_least=1, at_most=65535, reload=True)
    slow_consumer: str = _setting(_LIMITS, Choice("drop", "disconnect"), "drop",
        "What happens to a client whose output buffer is full: its QoS 0 messages are dropped, or it is disconnected.",
        reload=True)
    flapping_limit: int = _setting(_LIMITS, Integer(), "0",
        "A client that connects more often than this within flapping_window is banned for flapping_ban; 0: none is.",
        at_least=0, at_most=10_000_000, reload=True)
    flapping_window_s: float = _setting(_LIMITS, Duration(), "1m", "See flapping_limit.",
        at_least=1, at_most=86400, reload=True)
    flapping_ban_s: float = _setting(_LIMITS, Duration(), "5m", "See flapping_limit.",
        at_least=1, at_most=31_536_000, reload=True)
    login_failures_limit: int = _setting(_LIMITS, Integer(), "20",
        "An IP address with more failed logins than this within login_failures_window is banned for "
        "login_failures_ban; 0: none is.", at_least=0, at_most=10_000_000, reload=True)
    login_failures_window_s: float = _setting(_LIMITS, Duration(), "1m", "See login_failures_limit.",
        at_least=1, at_most=86400, reload=True)
    login_failures_ban_s: float = _setting(_LIMITS, Duration(), "5m", "See login_failures_limit.",
        at_least=1, at_most=31_536_000, reload=True)
    connect_timeout_s: float = _setting(_LIMITS, Duration(), "10s",
        "Time for a new connection to send CONNECT and to authenticate.", at_least=1, at_most=3600, reload=True)
    max_packet_size_before_auth: int = _setting(_LIMITS, Size(), "16KiB",
        "Largest packet taken from a client before it is authenticated.", at_least=64, at_most=268_435_460, reload=True)
    max_packet_size: int = _setting(_LIMITS, Size(), "1MiB",
        "Largest packet taken from a client (Maximum Packet Size).", at_least=256, at_most=268_435_460, reload=True)
    receive_maximum: int = _setting(_LIMITS, Integer(), "100",
        "QoS 1 and 2 messages a publisher may have unacknowledged (Receive Maximum).",
        at_least=1, at_most=65535, reload=True)
    topic_alias_maximum: int = _setting(_LIMITS, Integer(), "64",
        "Topic aliases a publisher may use, and the most that are used towards a subscriber (Topic Alias Maximum).",
        at_least=0, at_most=65535, reload=True)
    max_subscriptions_per_client: int = _setting(_LIMITS, Integer(), "1000",
        "Subscriptions of one session.", at_least=1, at_most=1_000_000, reload=True)
    max_keep_alive_s: int = _setting(_LIMITS, WholeSeconds(), "0",
        "Longest keep alive; a client that asks for more (or for none) gets this one (Server Keep Alive). 0: no limit.",
        at_least=0, at_most=65535, reload=True)

    max_inflight: int = _setting(_QUEUES, Integer(), "100",
        "QoS 1 and 2 messages sent to a client and not acknowledged yet, if it does not ask for fewer.",
        at_least=1, at_most=4095, reload=True)
    max_queued_messages: int = _setting(_QUEUES, Integer(), "1000",
        "Messages waiting for one session; the newest is refused when it is full.",
        at_least=1, at_most=10_000_000)
    max_queued_bytes: int = _setting(_QUEUES, Size(), "8MiB",
        "Bytes waiting for one session.", at_least=1024, at_most=1 << 40)
    max_group_queue: int = _setting(_QUEUES, Integer(), "10000",
        "Messages waiting for one shared subscription.", at_least=1, at_most=10_000_000)
    max_delayed_messages: int = _setting(_QUEUES, Integer(), "100000",
        "Delayed messages kept in the store; a message that would be one more is refused.",
        at_least=0, at_most=100_000_000)
    output_buffer_bytes: int = _setting(_QUEUES, Size(), "1MiB",
        "Bytes waiting for one connection to take them; beyond it QoS 0 is dropped, QoS 1 and 2 wait.",
        at_least=4096, at_most=1 << 32)
    stall_timeout_s: float = _setting(_QUEUES, Duration(), "30s",
        "A connection with a full buffer that takes nothing for so long is closed.",
        at_least=1, at_most=3600, reload=True)

    session_expiry_max_s: int = _setting(_SESSION, Lifetime(), "never",
        "Longest Session Expiry Interval an MQTT 5 client gets.", at_least=0, at_most=NEVER_S, reload=True)
    session_expiry_v3_s: int = _setting(_SESSION, Lifetime(), "7d",
        "How long the session of an MQTT 3 client with clean session 0 is kept after it left.",
        at_least=0, at_most=NEVER_S, reload=True)
    will_failover_grace_s: float = _setting(_SESSION, Duration(), "10s",
        "After a node died: how long its clients may take to come back before their wills are sent.",
        at_least=0, at_most=3600)
    will_failover: str = _setting(_SESSION, Choice("cancel", "publish"), "cancel",
        "What becomes of the will of a client that is back within that time: cancel (as its connection goes on "
        "elsewhere) or publish (at the end of that time).")

    max_qos: int = _setting(_MQTT, Integer(), "2", "Highest QoS a publisher may use.", at_least=0, at_most=2)
    retain_available: bool = _setting(_MQTT, Flag(), "true", "Allow retained messages.")
    wildcard_available: bool = _setting(_MQTT, Flag(), "true", "Allow + and # in subscriptions.")
    shared_available: bool = _setting(_MQTT, Flag(), "true", "Allow shared subscriptions ($share/NAME/FILTER).")
    shared_strategy: str = _setting(_MQTT, Choice(*STRATEGIES), "round_robin",
        "How a shared subscription chooses who gets a message: in turn, at random, on the node that has it (local), "
        "who has most room (least_inflight), always the same until it leaves (sticky), or by the hash of topic or "
        "publisher.")
    shared_strategies: tuple[tuple[str, str], ...] = _setting(_MQTT, Assignments(*STRATEGIES), "",
        "The strategy of single shared subscriptions, by the NAME in $share/NAME/FILTER. Repeatable.")
    delayed_available: bool = _setting(_MQTT, Flag(), "true",
        "Allow delayed messages: what is published to $delayed/SECONDS/TOPIC goes to TOPIC after so many seconds.")
    subscription_ids_available: bool = _setting(_MQTT, Flag(), "true", "Allow subscription identifiers.")
    validate_payload_format: bool = _setting(_MQTT, Flag(), "false",
        "Refuse a message whose Payload Format Indicator says UTF-8 and whose payload is not.", reload=True)
    response_information: str = _setting(_MQTT, Text(), "response/",
        "Clients that ask for Response Information get this prefix, followed by their client id; empty: none.",
        reload=True)

    drain_delay_s: float = _setting(_DRAIN, Duration(), "0s",
        "After SIGTERM, or when it is drained by the API: how long new clients are still let in while /readyz says no "
        "already, for load balancers.",
        at_least=0, at_most=3600, reload=True)
    drain_timeout_s: float = _setting(_DRAIN, Duration(), "30s",
        "After that: how long clients are sent away at the drain rate before the rest is closed. Where an operator "
        "drained the node before it is stopped, the time since counts.",
        at_least=0, at_most=3600, reload=True)
    drain_rate: int = _setting(_DRAIN, Integer(), "100",
        "Clients sent away per second while draining.", at_least=1, at_most=1_000_000, reload=True)

    server_reference: str = _setting(_DRAIN, Text(), "",
        "Where MQTT 5 clients that are sent away should go (Server Reference), such as other.example:1883; empty: "
        "none.", reload=True)

    sys_interval_s: float = _setting(_TOLD, Duration(), "10s",
        "How often the values below $SYS/broker/ and $SYS/brokers/ are published to those who subscribe to them; "
        "0: there are none.", at_least=0, at_most=86400, reload=True)
    slow_threshold_s: float = _setting(_TOLD, Duration(), "500ms",
        "A client that leaves a message unacknowledged, or its output untaken, for longer is listed as a slow "
        "subscriber; 0: none is.", at_least=0, at_most=3600, reload=True)
    slow_expiry_s: float = _setting(_TOLD, Duration(), "5m",
        "How long a slow subscriber stays in the list after it was slow last.", at_least=1, at_most=86400, reload=True)

    log_level: str = _setting(_LOGS, Choice("debug", "info", "warning", "error"), "info",
        "Least important events that are logged.", reload=True)
    log_format: str = _setting(_LOGS, Choice("text", "json"), "text", "Form of a log line.")
    # fmt: on

    #: Where each value comes from, by attribute; what is missing is as by default. No setting itself.
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def partition_count(self) -> int:
        """`partitions` with 0 replaced by what it stands for."""
        if self.partitions:
            return self.partitions
        return 1 if self.store == "memory" or (self.store == "embedded" and self.workers == 1) else 16


SETTINGS: tuple[Setting, ...] = tuple(
    dataclasses.replace(field.metadata["setting"], attribute=field.name)
    for field in dataclasses.fields(Settings)
    if "setting" in field.metadata
)
