"""Settings: where values come from, which wins, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from broker.config import DEFAULT, SETTINGS, Loaded, Setting, Settings, as_texts, from_texts, load, reloaded
from broker.errors import ConfigError
from broker.options.listener import Listener
from broker.values import Endpoint, Flag

#: Settings that name a file that must exist have tests of their own below.
READ_AT_ONCE = ("config", "store_password_file", "sentinel_password_file")
IN_ALL_SOURCES = [setting for setting in SETTINGS if setting.name not in READ_AT_ONCE]

EXAMPLES = {
    "listen": "tcp://127.0.0.1:1999",
    "http": "127.0.0.1:1998",
    "store": "memory",
    "log_level": "debug",
    "durability": "fsync",
    "log_format": "json",
    "node_name": "other",
    "namespace": "other",
    "will_failover": "publish",
    "shared_strategy": "sticky",
    "shared_strategies": "work=hash_topic,a=b=local",
    "authentication": "password_file?path=/p jwt?secret=a%20b",
    "client_attributes": "attribute?name=tenant&value=${username}",
    "authorization": "acl_file?path=/p",
    "hooks": "hook?target=x:y",
    "no_match": "allow",
    "sys_access": "all",
    "http_trusted_proxies": "10.0.0.0/8",
    "metrics_access": "viewer",
    "admin_secret": "a secret for tests",
    "deny_action": "disconnect",
    "session_owner": "any",
    "slow_consumer": "disconnect",
}


def _file(folder: Path, text: str) -> Path:
    path = folder / "rookery.toml"
    path.write_text(text, "utf-8")
    return path


def _refused(options: dict[str, object], environ: dict[str, str] | None = None, toml: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(options, environ or {}, toml)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _example(setting: Setting, value: object) -> str:
    """Text for a value that is allowed and differs from the default."""
    if setting.attribute in EXAMPLES:
        return EXAMPLES[setting.attribute]
    if isinstance(value, bool):
        return "false" if value else "true"
    if isinstance(value, int | float):
        low, high = setting.at_least, setting.at_most
        assert low is not None
        assert high is not None
        return setting.kind.show(low if value != low else min(high, low + 2))
    return "/tmp/elsewhere" if isinstance(value, Path) or value is None else "other"


def test_defaults_are_those_of_the_declaration() -> None:
    loaded = load({}, {})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {DEFAULT}
    assert loaded.settings.listen == (Listener("tcp", "127.0.0.1", 1883),)
    assert loaded.settings.http == Endpoint("http", "127.0.0.1", 18083)
    assert loaded.settings.max_queued_bytes == 8 * 1024 * 1024
    assert loaded.settings.session_expiry_v3_s == 7 * 86400
    assert loaded.settings.session_expiry_max_s == 0xFFFFFFFF
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", loaded.settings.node_name)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_default_is_within_its_own_bounds(setting: Setting) -> None:
    default = getattr(Settings(), setting.attribute)
    assert setting.parse(setting.kind.show(default), "test") == default
    assert setting.help.endswith(".")


@pytest.mark.parametrize("setting", IN_ALL_SOURCES, ids=lambda setting: setting.name)
def test_every_source_reaches_every_setting(setting: Setting, tmp_path: Path) -> None:
    default = getattr(Settings(), setting.attribute)
    text = _example(setting, default)
    expected = setting.parse(text, "test")
    assert expected != default
    # Together with settings that others are bound to, so that each value is allowed.
    base: dict[str, object] = {"max_packet_size_before_auth": "64"} if setting.name == "max_packet_size" else {}

    from_line = load({**base, setting.attribute: text}, {})
    from_variable = load(base, {setting.variable: text})
    from_file = load(base, {}, _file(tmp_path, f"# first line\n{setting.name} = {text!r}\n"))

    for loaded in (from_line, from_variable, from_file):
        assert getattr(loaded.settings, setting.attribute) == expected
    assert from_line.origins[setting.attribute] == f"command line {setting.option}"
    assert from_variable.origins[setting.attribute] == f"environment {setting.variable}"
    assert from_file.origins[setting.attribute] == f"{tmp_path}/rookery.toml:2"


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "drain_rate = 1\nmax_inflight = 1\nreceive_maximum = 1\n")
    environ = {"ROOKERY_MAX_INFLIGHT": "2", "ROOKERY_RECEIVE_MAXIMUM": "2", "ROOKERY_CONFIG": str(path)}
    settings = load({"receive_maximum": "3"}, environ).settings
    assert (settings.drain_rate, settings.max_inflight, settings.receive_maximum) == (1, 2, 3)
    assert settings.config == path


def test_false_on_the_command_line_is_given_and_none_is_not() -> None:
    environ = {"ROOKERY_RETAIN_AVAILABLE": "true", "ROOKERY_SHARED_AVAILABLE": "false"}
    settings = load({"retain_available": False, "shared_available": None}, environ).settings
    assert not settings.retain_available
    assert not settings.shared_available


def test_toml_values_of_their_own_type(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'listen = ["tcp://127.0.0.1:1", "tcp://[::1]:2"]\nmax_packet_size = 65536\nconnect_timeout = 2.5\n'
        "retain_available = false\nhttp = false\nsession_expiry_v3 = 'never'\n",
    )
    settings = load({}, {}, path).settings
    assert settings.listen == (Listener("tcp", "127.0.0.1", 1), Listener("tcp", "::1", 2))
    assert (settings.max_packet_size, settings.connect_timeout_s) == (65536, 2.5)
    assert (settings.retain_available, settings.http) == (False, None)
    assert settings.session_expiry_v3_s == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("listn = 'tcp://127.0.0.1'", "rookery.toml:2: unknown key 'listn'; did you mean listen?"),
        ("max-inflight = 5", "rookery.toml:2: unknown key 'max-inflight'; did you mean max_inflight?"),
        ("connect_timeout_s = 5", "unknown key 'connect_timeout_s'; did you mean connect_timeout?"),
        ("zzz = 1", "unknown key 'zzz'; `rookery serve --help` lists all settings"),
        ("[limits]\nmax_inflight = 5", "rookery.toml:2: unknown key 'limits'"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("max_inflight = 5000", "max_inflight = 5000 ("),
        ("max_inflight = 5000", "rookery.toml:2): must be at most 4095"),
        ("max_inflight = true", "max_inflight = True (", ),
        ("retain_available = 1", "must be true or false"),
        ("connect_timeout = nan", "must be a duration"),
        ("connect_timeout = -1", "must be a duration"),
        ("max_inflight = ", "not valid TOML"),
        ("listen = []", "must be one or more URLs"),
        ("listen = [1]", "has 1, which is no URL"),
    ],
)  # fmt: skip
def test_refused_in_a_file(line: str, said: str, tmp_path: Path) -> None:
    assert said in _refused({}, toml=_file(tmp_path, f"\n{line}\n"))


def test_unreadable_file(tmp_path: Path) -> None:
    assert "No such file" in _refused({}, toml=tmp_path / "none.toml")
    assert "cannot read it" in _refused({"config": str(tmp_path)})
    (tmp_path / "latin.toml").write_bytes(b"node_name = 'caf\xe9'")
    assert "not valid TOML" in _refused({}, toml=tmp_path / "latin.toml")


def test_unknown_variable_is_refused_with_the_nearest() -> None:
    message = _refused({}, {"ROOKERY_MAX_INFLIGTH": "5", "HOME": "/"})
    assert message == "ROOKERY_MAX_INFLIGTH (environment): unknown setting; did you mean ROOKERY_MAX_INFLIGHT?"


def test_variables_of_commands_are_no_settings() -> None:
    load({}, {"ROOKERY_API_URL": "http://h:1", "ROOKERY_API_KEY": "rk_x", "ROOKERY_API_KEY_FILE": "key"})


def test_service_links_of_kubernetes_are_no_settings() -> None:
    links = {
        "ROOKERY_SERVICE_HOST": "10.0.0.1",
        "ROOKERY_SERVICE_PORT": "1883",
        "ROOKERY_SERVICE_PORT_MQTT": "1883",
        "ROOKERY_HEADLESS_SERVICE_HOST": "fd00::1",
        "ROOKERY_PORT": "tcp://10.0.0.1:1883",
        "ROOKERY_PORT_1883_TCP": "tcp://10.0.0.1:1883",
        "ROOKERY_PORT_1883_TCP_PROTO": "tcp",
        "ROOKERY_PORT_1883_TCP_ADDR": "10.0.0.1",
    }
    assert load({}, links).settings == Settings()
    assert "unknown setting" in _refused({}, {"ROOKERY_SERVICE_NAME": "10.0.0.1"})
    assert "unknown setting" in _refused({}, {"ROOKERY_PORT": "localhost:1883"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"listen": ("quic://127.0.0.1:14567",)}, "there are tcp://, tls://, ws://, wss:// and unix://"),
        ({"listen": ("127.0.0.1:1883",)}, "is no URL; write tcp://HOST:PORT"),
        ({"listen": ("tcp://127.0.0.1:99999",)}, "has port 99999; a port is 0 to 65535"),
        ({"listen": ("tcp://::1:1883",)}, "an IPv6 address goes in [brackets]"),
        ({"listen": ("tcp://[zz]:1883",)}, "has 'zz', which is no IPv6 address"),
        ({"listen": ("tcp://",)}, "names no port"),
        ({"listen": ("tcp://127.0.0.1:1/mqtt",)}, "tcp:// takes no path"),
        ({"listen": ("tls://127.0.0.1:1",)}, "certfile is missing"),
        ({"listen": ("tcp://127.0.0.1:1?certfile=/x",)}, "certfile is only for tls and wss"),
        ({"listen": ("tcp://127.0.0.1:1?maxconnections=5",)}, "did you mean max_connections?"),
        ({"listen": ("tcp://127.0.0.1:1?name=a", "tcp://127.0.0.1:2?name=a")}, "two listeners of the name 'a'"),
        ({"listen": ("tcp://127.0.0.1:1?proxy_protocol=on",)}, "trusted_proxies must say whose"),
        ({"listen": ("tcp://127.0.0.1:1?authentication=ldap",)}, "'ldap', which is no authenticator"),
        ({"listen": ("unix://relative",)}, "write unix:///PATH"),
        ({"authentication": ("pasword_file?path=/x",)}, "did you mean password_file?"),
        ({"authentication": ("password_file",)}, "password_file: path is missing"),
        ({"authentication": ("password_file?path=/x", "password_file?path=/y")}, "two of the name 'password_file'"),
        ({"authorization": ("acl_file?path=/x", "acl_file?path=/y")}, "two of the name 'acl_file'"),
        ({"authorization": ("acl_file?path=/x&listeners=publc",)}, "is for listener 'publc'; there are tcp://"),
        ({"authentication": ("jwt?secret=hush&algorithms=none",)}, "expected algorithms"),
        ({"client_attributes": ("attribute?name=t&value=x&match=(",)}, "match = '('"),
        ({"listen": ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1")}, "has tcp://127.0.0.1:1 twice"),
        ({"http": "localhost"}, "names no port"),
        ({"http": ""}, "must be HOST:PORT or off"),
        ({"store": "mysql://x"}, "must be embedded, memory, redis://"),
        ({"store": "redis://"}, "must name a host"),
        ({"store": "redis://h/x"}, "must end in a database number"),
        ({"store": "redis://h:0"}, "must have a port from 1 to 65535"),
        ({"store": "redis://h:x"}, "is no valid URL"),
        ({"store": "redis://h?timeout=5"}, "may have only db after"),
        ({"store": "redis://a,b/0"}, "redis+sentinel:// and redis+cluster:// take them"),
        ({"store": "redis+sentinel://a,b"}, "must end in the name by which the Sentinels know the primary"),
        ({"store": "redis+cluster://a,b/1"}, "a Redis Cluster has only database 0"),
        ({"store": "redis+cluster://a,,b"}, "must name a host"),
        ({"store": "redis+sentinel://a,b:x/m"}, "is no valid URL"),
        ({"store": "unix+sentinel://a/m"}, "must be embedded, memory, redis://"),
        ({"store": "redis+cluster://a?sentinel_password=x"}, "may have only db after"),
        ({"workers": "0"}, "must be at least 1"),
        ({"workers": "2", "store": "memory"}, "workers meet in their store, and store = memory"),
        ({"workers": "10", "node_name": "n" * 62}, "too long for workers"),
        ({"store": "unix://relative"}, "must name an absolute path"),
        ({"namespace": "a{b}"}, "must be 1 to 64 of A-Z"),
        ({"node_name": ""}, "must be 1 to 64 of A-Z"),
        ({"max_qos": "3"}, "max_qos = '3' (command line --max-qos): must be at most 2"),
        ({"max_packet_size": "1TB"}, "has the unknown unit 'TB'"),
        ({"max_packet_size": "0.3KiB"}, "must be a whole number of bytes"),
        ({"max_packet_size": "300MiB"}, "must be at most"),
        ({"connect_timeout_s": "10 fortnights"}, "connect_timeout = '10 fortnights'"),
        ({"connect_timeout_s": "0s"}, "must be at least 1s"),
        ({"max_keep_alive_s": "1.5s"}, "must be a whole number of seconds"),
        ({"log_level": "loud"}, "must be one of debug, info, warning, error"),
        ({"data_dir": ""}, "must be a path"),
        ({"response_information": "a\nb"}, "must not contain control characters"),
        ({"max_packet_size": "4KiB"}, "must be at most max_packet_size, 4KiB"),
    ],
)
def test_refused_value(options: dict[str, object], said: str) -> None:
    assert said in _refused(options)


@pytest.mark.parametrize(
    ("listen", "open_to_others"),
    [
        ("tcp://127.0.0.1:1883", False),
        ("tcp://127.8.8.8:1883", False),
        ("tcp://localhost", False),
        ("tcp://[::1]:1883", False),
        ("tcp://0.0.0.0:1883", True),
        ("tcp://:1883", True),
        ("tcp://[::]:1883", True),
        ("tcp://192.168.1.5:1883", True),
        ("tcp://broker.example:1883", True),
        ("tcp://127.0.0.1:1883 tcp://0.0.0.0:1884", True),
    ],
)
def test_open_listener_needs_users_or_permission(listen: str, open_to_others: bool) -> None:
    users = {"authentication": ("password_file?path=/etc/users",)}
    assert load({"listen": listen, **users}, {}).settings.authentication
    assert load({"listen": listen, "allow_anonymous": True}, {}).settings.allow_anonymous
    if open_to_others:
        assert "other machines can reach it" in _refused({"listen": listen})
        off = (
            listen.replace(":1884", ":1884?authentication=off") if "1884" in listen else f"{listen}?authentication=off"
        )
        assert "other machines can reach it" in _refused({"listen": off, **users})
        load({"listen": f"{off}&anonymous=true", **users}, {})
    else:
        load({"listen": listen}, {})


def test_credentials_leave_the_store_url() -> None:
    loaded = load({"store": "redis://ann:p%40ss@h:6379/2"}, {})
    settings = loaded.settings
    assert settings.store == "redis://h:6379/2"
    assert (settings.store_username, settings.store_password) == ("ann", "p@ss")
    assert loaded.origins["store_password"] == "command line --store (in the URL)"
    assert load({"store": "redis://ann:a@h"}, {"ROOKERY_STORE_PASSWORD": "b"}).settings.store_password == "b"
    assert load({"store": "unix://:p@/run/x.sock?db=1"}, {}).settings.store == "unix:///run/x.sock?db=1"


@pytest.mark.parametrize("name", ["store_password", "sentinel_password"])
def test_passwords_of_the_store_may_stand_in_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    variable = f"ROOKERY_{name.upper()}"
    for written in (b" hush \nmore\n", b" hush \r\n", b" hush "):
        path.write_bytes(written)
        loaded = load({}, {f"{variable}_FILE": str(path)})
        assert getattr(loaded.settings, name) == " hush ", "as with the setting itself, blanks belong to it"
    path.write_text("hush\n")
    loaded = load({}, {f"{variable}_FILE": str(path)})
    assert loaded.origins[name] == f"file {path}"
    assert "hush" not in str([*loaded.shown()])
    # As with the password itself, what is set wins over what the URL says.
    url = "redis+sentinel://:url@h/m?sentinel_password=url"
    assert getattr(load({"store": url, f"{name}_file": path}, {}).settings, name) == "hush"
    # Workers get it as text.
    assert getattr(from_texts(as_texts(loaded.settings)), name) == "hush"

    path.write_text("\nhush\n")
    assert "first line is empty" in _refused({f"{name}_file": path})
    path.write_bytes(b"\xff\xfe")
    assert "cannot read it" in _refused({f"{name}_file": path})
    assert "cannot read it" in _refused({f"{name}_file": tmp_path / "missing"})


@pytest.mark.parametrize("name", ["store_password", "sentinel_password", "admin_secret"])
def test_a_secret_and_a_file_with_one_follow_the_order_of_sources(name: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("of the file\n")
    file, variable = f"{name}_file", f"ROOKERY_{name.upper()}"

    def chosen(options: dict[str, object], environ: dict[str, str], toml: str = "") -> tuple[str, object]:
        loaded = load(options, environ, _file(tmp_path, toml) if toml else None)
        assert (loaded.origins[name] == DEFAULT) == (not getattr(loaded.settings, name))
        assert (loaded.origins[file] == DEFAULT) == (getattr(loaded.settings, file) is None)
        return getattr(loaded.settings, name), getattr(loaded.settings, file)

    assert chosen({name: "stronger"}, {f"{variable}_FILE": str(tmp_path / "missing")}) == ("stronger", None)
    assert chosen({}, {variable: "stronger"}, f"{file} = '/missing'\n") == ("stronger", None)
    read = "" if name == "admin_secret" else "of the file"  # that one is read by whoever needs it
    assert chosen({file: path}, {variable: "weaker one"}) == (read, path)
    assert chosen({}, {f"{variable}_FILE": str(path)}, f"{name} = 'weaker one'\n") == (read, path)
    for both in (
        _refused({file: path, name: "another"}),
        _refused({}, {f"{variable}_FILE": str(path), variable: "another"}),
        _refused({}, {}, _file(tmp_path, f"{file} = '{path}'\n{name} = 'another'\n")),
    ):
        assert "set one" in both
        assert "another" not in both


def test_secrets_are_not_shown() -> None:
    loaded: Loaded = load({"store": "redis://ann:hush@h"}, {})
    assert "hush" not in repr(loaded)
    assert "hush" not in str([*loaded.shown()])
    assert {setting.name: text for setting, text, _ in loaded.shown()}["store_password"] == "***"
    assert "hush" not in _refused({"store": "http://ann:hush@h"})
    assert "hush" not in _refused({"store": "redis://:hu/sh@h/0"})
    assert "hush" not in _refused({"store_password": "hush\n"})
    several = {
        "listen": "tls://h:1?certfile=/x&keyfile_password=hush&anonymous=true",
        "authentication": "jwt?secret=hush",
    }
    loaded = load(several, {})
    assert "hush" not in repr(loaded)
    assert "hush" not in str([*loaded.shown()])
    assert "hush" not in _refused({"authentication": "jwt?secret=hush&zzz=1"})
    assert "hush" not in _refused({"listen": "tls://h:1?keyfile_password=hush"})


@pytest.mark.parametrize(
    "block",
    [
        "redis?url=redis://u:hush@h:1/0",
        "http?url=http://h/x?key=hush%26u=${username}",
        "http?url=http://h/x&body=api_key%3Dhush",
        "jwt?jwks_url=https://u:hush@h/j",
    ],
)
def test_secrets_in_urls_are_not_shown(block: str) -> None:
    loaded = load({"authentication": block}, {})
    shown = {setting.name: text for setting, text, _ in loaded.shown()}["authentication"]
    assert "hush" not in shown
    assert "***" in shown
    assert from_texts(as_texts(loaded.settings)) == loaded.settings


def test_tables_and_text_are_the_same(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        '[[listen]]\nurl = "tls://127.0.0.1:8883"\ncertfile = "/c.pem"\nversions = ["5"]\nproxy_timeout = 5\n'
        '[[authentication]]\ntype = "jwt"\nsecret = "a b,c&d"\nclaims = ["sub=${username}"]\n'
        '[[authentication]]\ntype = "password_file"\npath = "/p"\n',
    )
    from_file = load({}, {}, path).settings
    environ = {
        "ROOKERY_LISTEN": "tls://127.0.0.1:8883?certfile=/c.pem&versions=5&proxy_timeout=5s",
        "ROOKERY_AUTHENTICATION": "jwt?secret=a%20b,c%26d&claims=sub%3D${username} password_file?path=/p",
    }
    assert load({}, environ).settings == dataclasses.replace(from_file, config=None)
    assert from_texts(as_texts(from_file)) == from_file


def test_partition_count() -> None:
    assert Settings().partition_count == 1
    assert Settings(store="memory").partition_count == 1
    assert Settings(store="redis://h").partition_count == 16
    assert Settings(store="redis://h", partitions=3).partition_count == 3


def test_declaration_is_consistent() -> None:
    for names in zip(*((s.name, s.option, s.variable, s.attribute) for s in SETTINGS), strict=True):
        assert len(set(names)) == len(names)
    assert [*(s.attribute for s in SETTINGS), "origins"] == [field.name for field in dataclasses.fields(Settings)]
    assert all(s.at_least is not None for s in SETTINGS if s.kind.metavar in ("N", "SIZE", "TIME"))
    assert all(s.is_flag == isinstance(getattr(Settings(), s.attribute), bool) for s in SETTINGS)
    assert any(isinstance(s.kind, Flag) for s in SETTINGS)


def test_passwords_of_sentinels_leave_the_url() -> None:
    loaded = load({"store": "redis+sentinel://u:p@a:1,b:2/m?sentinel_username=s&sentinel_password=q%26&db=3"}, {})
    settings = loaded.settings
    assert settings.store == "redis+sentinel://a:1,b:2/m?db=3"
    assert (settings.store_username, settings.store_password) == ("u", "p")
    assert (settings.sentinel_username, settings.sentinel_password) == ("s", "q&")
    assert not any("q&" in text for _, text, _ in loaded.shown())


def test_partitions_for_one_and_more_workers() -> None:
    assert load({}, {}).settings.partition_count == 1
    assert load({"workers": "2"}, {}).settings.partition_count == 16
    assert load({"workers": "2", "partitions": "4"}, {}).settings.partition_count == 4
    assert load({"store": "redis://h"}, {}).settings.partition_count == 16
    assert load({"store": "memory"}, {}).settings.partition_count == 1


def test_settings_pass_to_another_process_as_text() -> None:
    given = load(
        {
            "listen": ("tcp://127.0.0.1:1", "tcp://[::1]:2"),
            "http": "off",
            "store": "redis://u:p@h:1/2",
            "session_expiry_max_s": "never",
            "store_grace_s": "1.5s",
            "max_packet_size": "100KiB",
            "shared_strategies": ("a=sticky", "b=local"),
            "allow_anonymous": "true",
            "ready_file": "/tmp/x",
        },
        {},
    ).settings
    texts = as_texts(given)
    assert all(isinstance(text, str) for text in texts.values())
    assert from_texts(texts) == given
    assert from_texts(as_texts(Settings())) == Settings()


def test_what_may_change_while_a_node_runs() -> None:
    old = load({"max_packet_size": "100KiB"}, {}).settings
    new = load({"max_packet_size": "200KiB", "namespace": "other"}, {}).settings
    settings, changed, needs_restart = reloaded(old, new)
    assert (settings.max_packet_size, settings.namespace) == (200 * 1024, "rookery")
    assert (changed, needs_restart) == (["max_packet_size"], ["namespace"])
