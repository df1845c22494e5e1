"""The settings of a node: read from all sources, and checked.

`broker.settings` declares each setting once. The options of `rookery serve`, the `ROOKERY_...` variables, the keys of
the TOML file, `rookery config` and docs/configuration.md come from there. Command line beats environment beats file
beats default; what is not a setting is refused with the nearest name that is.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from broker.errors import ConfigError
from broker.options.authorization import RemoteSource, Source
from broker.options.backends import Named
from broker.settings import ENVIRONMENT_PREFIX, SETTINGS, Setting, Settings
from broker.values import Endpoint, Size

__all__ = [
    "DEFAULT",
    "SETTINGS",
    "Endpoint",
    "Loaded",
    "Setting",
    "Settings",
    "as_texts",
    "first_line",
    "from_texts",
    "load",
    "reloaded",
]

DEFAULT = "default"

#: Secrets that may stand in a file of their own, which another setting of their name and `_file` names.
_IN_FILES = ("store_password", "sentinel_password", "admin_secret")

#: What `rookery ctl` and the build of a wheel read: no settings of a node, but they may stand in the same environment.
_OF_OTHERS = {"ROOKERY_API_URL", "ROOKERY_API_KEY", "ROOKERY_API_KEY_FILE", "ROOKERY_COMPILE"}

#: Kubernetes describes every service to every container: a service called `rookery-mqtt` makes ROOKERY_MQTT_PORT.
_SERVICE_LINK = re.compile(
    r"ROOKERY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"((tcp|udp)://)?[0-9a-fA-F:.\[\]]+|tcp|udp")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Effective settings, and for each attribute where its value came from."""

    settings: Settings
    origins: Mapping[str, str]

    def shown(self) -> Iterable[tuple[Setting, str, str]]:
        """Setting, value as text (secrets masked) and origin, in the order of the declaration."""
        for setting in SETTINGS:
            value = getattr(self.settings, setting.attribute)
            yield setting, setting.show(value), self.origins[setting.attribute]


def load(options: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None = None) -> Loaded:
    """Read all sources and check the result; ConfigError for the first thing that is wrong.

    `options` has what the command line gave, by attribute; None is not given. The file is `toml_path`, else the
    setting `config`.
    """
    raw: dict[str, tuple[object, str]] = {}
    by_variable = {setting.variable: setting for setting in SETTINGS}
    for variable, text in environ.items():
        if variable in by_variable:
            raw[by_variable[variable].attribute] = (text, f"environment {variable}")
        elif variable in _OF_OTHERS:
            continue
        elif variable.startswith(ENVIRONMENT_PREFIX) and not _is_service_link(variable, text):
            raise ConfigError(f"{variable} (environment): unknown setting{_nearest(variable, by_variable)}")
    for setting in SETTINGS:
        if options.get(setting.attribute) is not None:
            raw[setting.attribute] = (options[setting.attribute], f"command line {setting.option}")
    if toml_path is not None:
        raw["config"] = (str(toml_path), f"command line {SETTINGS[0].option}")
    if "config" in raw:
        path = SETTINGS[0].parse(*raw["config"])
        if isinstance(path, Path):
            raw = {**_read_file(path), **raw}

    values: dict[str, Any] = {}
    origins = {setting.attribute: DEFAULT for setting in SETTINGS}
    for setting in SETTINGS:
        if setting.attribute in raw:
            value, origin = raw[setting.attribute]
            values[setting.attribute] = setting.parse(value, origin)
            origins[setting.attribute] = origin
    _choose_files(values, origins)
    _read_passwords(values, origins)
    _move_credentials(values, origins)
    if values.get("data_dir", "") is None:
        raise ConfigError(f"data_dir = '' ({origins['data_dir']}): must be a path")
    given = {attribute: origin for attribute, origin in origins.items() if origin != DEFAULT}
    settings = Settings(**values, origins=given)
    _check(settings, origins)
    return Loaded(settings, origins)


def as_texts(settings: Settings) -> dict[str, str]:
    """All settings as text, secrets too: for another process of this broker."""
    return {item.attribute: item.kind.show(getattr(settings, item.attribute)) for item in SETTINGS}


def from_texts(texts: Mapping[str, str], origins: Mapping[str, str] | None = None) -> Settings:
    """The settings that `as_texts` made text of."""
    values: dict[str, Any] = {item.attribute: item.kind.parse(texts[item.attribute]) for item in SETTINGS}
    return Settings(**values, origins=origins or {})


def reloaded(settings: Settings, new: Settings) -> tuple[Settings, list[str], list[str]]:
    """`settings` with what may change while a node runs taken from `new`; the names of what did change, and of what
    would need a restart."""
    changed = [item for item in SETTINGS if getattr(new, item.attribute) != getattr(settings, item.attribute)]
    applied = {item.attribute: getattr(new, item.attribute) for item in changed if item.reload}
    kept = {item.attribute for item in changed if not item.reload}
    origins = {
        name: (settings if name in kept else new).origins.get(name, "") for name in (*settings.origins, *new.origins)
    }
    given = {name: origin for name, origin in origins.items() if origin}
    return (
        dataclasses.replace(settings, **applied, origins=given),
        sorted(item.name for item in changed if item.reload),
        [item.name for item in changed if not item.reload],
    )


def _read_file(path: Path) -> dict[str, tuple[object, str]]:
    """Attribute -> (raw value, `file:line`) of a TOML file."""
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"config = {str(path)!r}: cannot read it: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError or invalid UTF-8
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    by_name = {setting.name: setting for setting in SETTINGS if setting.in_file}
    found: dict[str, tuple[object, str]] = {}
    for key, value in table.items():
        origin = _file_origin(path, text, key)
        if key not in by_name:
            raise ConfigError(f"{origin}: unknown key {key!r}{_nearest(key, by_name)}")
        found[by_name[key].attribute] = (value, origin)
    return found


def _file_origin(path: Path, text: str, key: str) -> str:
    """`file:line` of a top-level key; tomllib does not tell lines, so it is the first line that looks like it."""
    pattern = re.compile(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return f"{path}:{number}"
    return str(path)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; `rookery serve --help` lists all settings"


def _is_service_link(variable: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(variable) and _SERVICE_LINK_VALUE.fullmatch(text))


def first_line(path: Path) -> str:
    """A secret that stands in a file, with its blanks; lines may end with CR LF. Raises OSError, UnicodeDecodeError."""
    return path.read_text("utf-8").partition("\n")[0]


def _choose_files(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Of a secret and the file that has it, the one counts that was given in the stronger place."""
    for attribute in _IN_FILES:
        file = f"{attribute}_file"
        if not values.get(attribute) or values.get(file) is None:
            continue
        ranks = _rank(origins[attribute]), _rank(origins[file])
        if ranks[0] == ranks[1]:
            raise ConfigError(f"{attribute} ({origins[attribute]}) and {file} ({origins[file]}): set one")
        weaker = attribute if ranks[0] < ranks[1] else file
        del values[weaker]
        origins[weaker] = DEFAULT


def _rank(origin: str) -> int:
    """How strong a place is: command line, environment, file."""
    return 2 if origin.startswith("command line ") else int(origin.startswith("environment "))


def _read_passwords(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Put passwords of the store that stand in files of their own where they belong."""
    for attribute in ("store_password", "sentinel_password"):
        path = values.get(f"{attribute}_file")
        if path is None:
            continue
        origin = origins[f"{attribute}_file"]
        try:
            password = first_line(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{attribute}_file = {str(path)!r} ({origin}): cannot read it: {error}") from None
        if not password:
            raise ConfigError(f"{attribute}_file = {str(path)!r} ({origin}): its first line is empty")
        values[attribute] = password
        origins[attribute] = f"file {path}"


def _move_credentials(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Take users and passwords out of the store's URL, which is shown and logged; settings of their own win."""
    store = str(values.get("store", ""))
    url = urlsplit(store)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    for attribute in ("sentinel_username", "sentinel_password"):
        given = query.pop(attribute, None)
        if given is not None:
            values.setdefault(attribute, given)
            origins[attribute] = f"{origins['store']} (in the URL)"
            url = url._replace(query=urlencode(query, safe="/"))
            values["store"] = store = urlunsplit(url)
    if "@" not in url.netloc:
        return
    for attribute, part in (("store_username", url.username), ("store_password", url.password)):
        if part and attribute not in values:
            values[attribute] = unquote(part)
            origins[attribute] = f"{origins['store']} (in the URL)"
    values["store"] = store.replace(url.netloc, url.netloc.rpartition("@")[2], 1)


def _check(settings: Settings, origins: Mapping[str, str]) -> None:
    """What no setting can tell alone."""
    if settings.max_packet_size_before_auth > settings.max_packet_size:
        raise ConfigError(
            f"max_packet_size_before_auth = {Size().show(settings.max_packet_size_before_auth)}"
            f" ({origins['max_packet_size_before_auth']}): must be at most max_packet_size,"
            f" {Size().show(settings.max_packet_size)}"
        )
    if settings.workers > 1 and settings.store == "memory":
        raise ConfigError(
            f"workers = {settings.workers} ({origins['workers']}): workers meet in their store, and store = memory"
            f" ({origins['store']}) is inside of one process; use embedded or a URL"
        )
    last = f"{settings.node_name}-{settings.workers}"
    if settings.workers > 1 and len(last) > 64:
        raise ConfigError(f"node_name = {settings.node_name!r}: too long for workers, whose names are up to {last!r}")
    if 0 < len(settings.admin_secret) < 8:
        raise ConfigError(f"admin_secret = *** ({origins['admin_secret']}): must have at least 8 characters")
    _check_listeners(settings, origins)
    _check_rule_sources(settings, origins)


def _check_rule_sources(settings: Settings, origins: Mapping[str, str]) -> None:
    where = f"authorization ({origins['authorization']})"
    labels = [block.label for block in settings.authorization if isinstance(block, Named)]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{where}: two of the name {label!r}; set name")
    listeners = [listener.name for listener in settings.listen]
    for block in settings.authorization:
        assert isinstance(block, Source | RemoteSource)
        for name in block.listeners:
            # Clients of the one that was meant would be without these rules.
            if name not in listeners:
                raise ConfigError(
                    f"{where}: {block.label} is for listener {name!r:.60}; there are {', '.join(listeners)}"
                )


def _check_listeners(settings: Settings, origins: Mapping[str, str]) -> None:
    # Whether a hook checks clients is known when it is loaded: see `broker.access`.
    labels = [block.label for block in (*settings.hooks, *settings.authentication) if isinstance(block, Named)]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"authentication ({origins['authentication']}), hooks ({origins['hooks']}): two of the name {label!r};"
                " set name"
            )
    for listener in settings.listen:
        if listener.scheme == "unix" and settings.workers > 1:
            raise ConfigError(
                f"listen = {listener.url} ({origins['listen']}): workers cannot share a Unix socket; use TCP, or one"
                " worker"
            )
        chosen = listener.options.authentication
        unknown = [name for name in chosen if name not in labels and chosen != ("off",)]
        if unknown:
            raise ConfigError(
                f"listen = {listener.url} ({origins['listen']}): authentication has {unknown[0]!r}, which is no"
                f" authenticator{_nearest(unknown[0], labels) if labels else ''}"
            )
        asked = bool(labels) and chosen != ("off",)
        anonymous = listener.options.anonymous
        if listener.is_loopback or asked or anonymous == "true" or (settings.allow_anonymous and anonymous != "false"):
            continue
        raise ConfigError(
            f"listen = {listener.url!r} ({origins['listen']}): other machines can reach it and no client"
            " needs credentials; set authentication, or --allow-anonymous if that is meant"
        )
