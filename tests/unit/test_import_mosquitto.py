"""mosquitto.conf to rookery.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from broker.cli import main
from broker.config import Settings, load
from broker.errors import ConfigError
from broker.migration.mosquitto import convert
from broker.migration.mosquitto_conf import read_lines


def _imported(tmp_path: Path, text: str) -> tuple[dict[str, Any], list[str], Settings]:
    path = tmp_path / "mosquitto.conf"
    path.write_text(text)
    made = convert(read_lines(path))
    out = tmp_path / "rookery.toml"
    out.write_text(made.toml)
    return tomllib.loads(made.toml), made.notes, load({}, {}, out).settings


def test_without_a_listener_only_this_machine_comes_in(tmp_path: Path) -> None:
    _, notes, settings = _imported(tmp_path, "# nothing\n\npersistence false\n")
    [listener] = settings.listen
    assert (listener.url, listener.options.anonymous) == ("tcp://127.0.0.1:1883", "true")
    assert len(notes) == 1
    assert notes[0].startswith("mosquitto.conf:3: persistence false: not needed: sessions, queues")


def test_a_listener_lets_nobody_in_by_itself(tmp_path: Path) -> None:
    _, notes, settings = _imported(tmp_path, "listener 1883 127.0.0.1\n")
    assert settings.listen[0].options.anonymous == "false"
    assert settings.listen[0].options.authentication == ("off",)
    assert not notes


def test_users_rules_and_limits(tmp_path: Path) -> None:
    _, notes, settings = _imported(
        tmp_path,
        "allow_anonymous true\npassword_file /p\nacl_file /a b\nmax_inflight_messages 0\nmax_queued_messages 0\n"
        "max_packet_size 100000\npersistent_client_expiration 2w\nretain_available false\nlistener 1884 0.0.0.0\n",
    )
    [listener] = settings.listen
    assert (listener.host, listener.port, listener.options.anonymous) == ("0.0.0.0", 1884, "true")
    assert [(type(each).__name__, str(getattr(each, "path", ""))) for each in settings.authentication] == [
        ("PasswordFile", "/p")
    ]
    assert [str(getattr(each, "path", "")) for each in settings.authorization] == ["/a b"]
    assert (settings.max_inflight, settings.max_queued_messages) == (4095, 10_000_000)
    assert settings.session_expiry_v3_s == 14 * 86400
    assert (settings.max_packet_size, settings.retain_available) == (100_000, False)
    assert not notes


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", 2_000_000),
        ("max_packet_size 0\n", 268_435_460),
        ("message_size_limit 0\n", 268_435_460),
        ("message_size_limit 0\nmax_packet_size 100000\n", 100_000),
        ("max_packet_size 100000\nmessage_size_limit 0\n", 100_000),
        ("message_size_limit 1000\n", 66_536),
        ("max_packet_size 20\n", 256),
        ("max_queued_bytes 0\n", 2_000_000),
    ],
)
def test_packets_may_be_as_large_as_before(text: str, limit: int, tmp_path: Path) -> None:
    _, notes, settings = _imported(tmp_path, text)
    assert settings.max_packet_size == limit
    assert settings.max_queued_bytes == 8 * 1024 * 1024
    assert not notes


def test_tls_and_certificates(tmp_path: Path) -> None:
    _, notes, settings = _imported(
        tmp_path,
        "password_file /p\nlistener 8883 ::1\ncafile /ca\ncertfile /c\nkeyfile /k\nrequire_certificate true\n"
        "use_subject_as_username true\ncrlfile /crl\ntls_version tlsv1.3\nciphers ECDHE+AESGCM\n",
    )
    [listener] = settings.listen
    options = listener.options
    assert listener.url == "tls://[::1]:8883"
    assert (options.client_certificates, options.tls_min, options.ciphers) == ("required", "1.3", "ECDHE+AESGCM")
    assert (str(options.ca_certs), str(options.crl_file), str(options.keyfile)) == ("/ca", "/crl", "/k")
    assert options.authentication == ("certificate_dn",)
    assert not notes


def test_a_ca_without_required_certificates_asks_for_none(tmp_path: Path) -> None:
    table, _, _ = _imported(
        tmp_path, "listener 8883 0.0.0.0\ncafile /ca\ncertfile /c\nkeyfile /k\nallow_anonymous true\n"
    )
    assert "ca_certs" not in table["listen"][0]


def test_websocket_unix_and_mount_point(tmp_path: Path) -> None:
    _, notes, settings = _imported(
        tmp_path,
        "listener 9001 127.0.0.1\nprotocol websockets\nmount_point site/%u/%c/\nwebsockets_origin https://a.example\n"
        "accept_protocol_versions 4,5\nlistener 0 /run/m.sock\nmax_connections -1\n",
    )
    web, unix = settings.listen
    assert (web.url, unix.url) == ("ws://127.0.0.1:9001/mqtt", "unix:///run/m.sock")
    assert web.options.mountpoint == "site/${username}/${clientid}/"
    assert web.options.origins == ("https://a.example",)
    assert web.options.versions == ("3.1.1", "5")
    assert unix.options.max_connections == 0
    assert notes == ["mosquitto.conf:1: listener 9001 127.0.0.1: the path is /mqtt here; Mosquitto takes any"]


def test_settings_per_listener(tmp_path: Path) -> None:
    _, notes, settings = _imported(
        tmp_path,
        "per_listener_settings true\nlistener 1 127.0.0.1\npassword_file /p1\nacl_file /a1\nlistener 2 127.0.0.1\n"
        "password_file /p2\nallow_anonymous true\nlistener 3 127.0.0.1\npassword_file /p1\n",
    )
    assert [each.options.authentication for each in settings.listen] == [("file1",), ("file2",), ("file1",)]
    assert [each.options.anonymous for each in settings.listen] == ["false", "true", "false"]
    assert [getattr(each, "listeners", None) for each in settings.authorization] == [("listener1",)]
    assert [note.split(":")[0] for note in notes] == ["listeners without acl_file (listener2, listener3)"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("connection up\naddress a:1\ntopic # out\nusername u\n", "bridges are not yet supported"),
        ("plugin /x.so\n", "plugins of Mosquitto cannot be used"),
        ("auth_opt_host x\n", "plugins of Mosquitto cannot be used"),
        ("queue_qos0_messages true\n", "QoS 0 messages are not queued"),
        ("no_such_thing 1\n", "not known here"),
        ("listener 1 127.0.0.1\nbind_interface eth0\n", "has no counterpart"),
        ("listener 1 127.0.0.1\nmax_qos 1\nlistener 2 127.0.0.1\nmax_qos 2\n", "max_qos is one setting"),
        ("persistent_client_expiration soon\n", "the value has no counterpart"),
        ("listener 1 127.0.0.1\ntls_version tlsv1.1\ncertfile /c\n", "the value has no counterpart"),
        ("clientid_prefixes dev-\n", "nobody is kept out"),
        ("listener 1\nallow_anonymous true\n", "IPv4 only; add tcp://[::]:1 for IPv6"),
    ],
)
def test_what_is_left_behind_is_told(text: str, said: str, tmp_path: Path) -> None:
    _, notes, _ = _imported(tmp_path, text)
    assert [note for note in notes if said in note], notes
    assert len(notes) == 1


def test_family_of_addresses(tmp_path: Path) -> None:
    _, notes, settings = _imported(
        tmp_path, "allow_anonymous true\nlistener 1\nsocket_domain ipv6\nlistener 2\nsocket_domain ipv4\n"
    )
    assert [each.host for each in settings.listen] == ["::", "0.0.0.0"]
    assert not notes


def test_secrets_are_not_told(tmp_path: Path) -> None:
    _, notes, _ = _imported(tmp_path, "auth_opt_db_password hush\nconnection x\nremote_password hush\n")
    assert len(notes) == 2
    assert not [note for note in notes if "hush" in note]


def test_included_folder(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.conf").write_text("max_keepalive 60\n")
    (folder / "A.conf").write_text("listener 1999 127.0.0.1\n")
    (folder / "c.txt").write_text("nonsense\n")
    _, notes, settings = _imported(tmp_path, f"include_dir {folder}\n")
    assert (settings.listen[0].port, settings.max_keep_alive_s) == (1999, 60)
    assert not notes
    (folder / "d.conf").write_text(f"include_dir {folder}\n")
    with pytest.raises(ConfigError, match="more than 1000 files"):
        read_lines(tmp_path / "mosquitto.conf")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "mosquitto.conf"
    users = tmp_path / 'pass"w\\ords'
    users.touch()
    conf.write_text(f"listener 1883 127.0.0.1\npassword_file {users}\n")
    out = tmp_path / "rookery.toml"
    assert main(["import-mosquitto", str(conf)]) == 0
    assert tomllib.loads(capsys.readouterr().out)["authentication"][0]["path"] == str(users)
    assert main(["import-mosquitto", str(conf), "-o", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().err
    assert main(["import-mosquitto", str(conf), "-o", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    conf.write_text("plugin x\n")
    assert main(["import-mosquitto", str(conf), "-o", str(out), "--force"]) == 3
