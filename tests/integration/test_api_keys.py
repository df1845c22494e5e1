"""API keys and logins of a real node: the first one, those of the settings, throttling, the way back in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from broker.cli import main
from tests.integration.conftest import StartNode
from tests.kit.api import ADMIN, ADMIN_ARGUMENTS, ADMIN_SECRET, admin_of, client_of, log_in, make_key
from tests.kit.broker_process import BrokerProcess

HTTP = "127.0.0.1:0"


def first_token(node: BrokerProcess, among: int = 1) -> str:
    """The token of the key that the node made, from the banner that it printed `among` times."""
    while True:
        found = re.findall(r"token +(rk_admin_[0-9a-f]{64})", node.log())
        if len(found) >= among:
            return str(found[-1])


def until(asked: Callable[[], bool]) -> None:
    """The test's own time limit ends this."""
    while not asked():
        pass


def test_first_key_is_made_once(start_node: StartNode) -> None:
    node = start_node(http=HTTP, store="embedded", admin_secret=None)
    token = first_token(node)
    with client_of(node, token) as client:
        [key] = client.get("/keys").json()["items"]
        assert (key["name"], key["scope"], key["generated"], key["fixed"]) == ("admin", "admin", True, False)
        assert key["expires_at_ms"] is None
    assert node.log().count("admin.first_key") == 1
    assert not [line for line in node.log().splitlines() if "admin.first_key" in line and token[-64:] in line]
    node.kill()
    node.start()
    with client_of(node, token) as client:
        until(lambda: client.get("/whoami").status_code == 200)
    assert node.log().count("admin.first_key") == 1


def test_secret_of_the_settings_counts(start_node: StartNode, tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("from a file\nmore\n")
    node = start_node("--admin-secret-file", str(secret_file), http=HTTP, store="memory", admin_secret=None)
    with client_of(node, auth=("admin", "from a file")) as client:
        assert client.get("/whoami").json() == {
            "name": "admin",
            "scope": "admin",
            "csrf_token": None,
            "expires_at_ms": None,
        }
        until(lambda: bool(client.get("/keys").json()["items"]))
        [key] = client.get("/keys").json()["items"]
        assert key["fixed"]
        assert client.delete("/keys/admin").status_code == 409
        assert client.post("/keys/admin/rotate").status_code == 409
    assert "admin.first_key" not in node.log()
    assert "from a file" not in node.log()
    with client_of(node, "rk_admin_from a file") as client:
        assert client.get("/whoami").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--admin-secret", "short"), "at least 8"),
        (("--admin-secret", "long enough", "--admin-secret-file", "x"), "set one"),
        (("--admin-secret-file", "/nowhere/at/all"), "cannot read"),
    ],
)
def test_secrets_that_cannot_be(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = main(["serve", "--store", "memory", "--http", HTTP, "--listen", "tcp://127.0.0.1:0", *arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert text in error and "long enough" not in error


def test_keys_come_and_go(start_node: StartNode) -> None:
    node = start_node(*ADMIN_ARGUMENTS, http=HTTP, store="memory")
    with admin_of(node) as admin:
        made = admin.post("/keys", json={"name": "grafana", "scope": "viewer"})
        assert made.status_code == 201
        assert set(made.json()) == {"name", "scope", "secret", "token", "expires_at_ms"}
        assert made.json()["token"] == f"rk_grafana_{made.json()['secret']}"
        again = admin.post("/keys", json={"name": "grafana", "scope": "viewer"})
        assert (again.status_code, again.json()["title"]) == (409, "there is one")
        listed = admin.get("/keys").text
        assert made.json()["secret"] not in listed and "hash" not in listed
        with client_of(node, made.json()["token"]) as grafana:
            assert grafana.get("/whoami").json()["scope"] == "viewer"
            rotated = admin.post("/keys/grafana/rotate", json={"secret": "chosen by me"}).json()
            until(lambda: grafana.get("/whoami").status_code == 401)
        assert rotated["secret"] == "chosen by me"
        assert httpx.get(f"http://{node.http}/api/v1/whoami", auth=("grafana", "chosen by me")).status_code == 200
        with log_in(node, "grafana", "chosen by me") as login:
            assert login.get("/whoami").json()["csrf_token"] == login.headers["X-CSRF-Token"]
            assert admin.delete("/keys/grafana").status_code == 204
            until(lambda: login.get("/whoami").status_code == 401)
        assert admin.delete("/keys/grafana").status_code == 404
        for wrong in (
            {"name": "x_y", "scope": "viewer"},
            {"name": "", "scope": "viewer"},
            {"name": "x", "scope": "root"},
            {"name": "x", "scope": "viewer", "secret": "short"},
            {"name": "x", "scope": "viewer", "expires_in_s": 0},
            {"name": "x", "scope": "viewer", "more": 1},
            {"name": "admin", "scope": "viewer"},
            {"name": "x\n", "scope": "viewer"},
        ):
            assert admin.post("/keys", json=wrong).status_code == 400, wrong


def test_the_last_admin_stays(start_node: StartNode) -> None:
    node = start_node(http=HTTP, store="memory", admin_secret=None)
    with client_of(node, first_token(node)) as admin:
        make_key(admin, "for-a-while", "admin", expires_in_s=1000)
        refused = admin.delete("/keys/admin")
        assert (refused.status_code, refused.json()["title"]) == (409, "the last one")
        other = make_key(admin, "other", "admin")
        assert admin.delete("/keys/admin").status_code == 204
    with client_of(node, other) as admin:
        assert admin.delete("/keys/other").status_code == 409
        refused = admin.post("/keys/other/rotate", json={"expires_in_s": 100})
        assert refused.status_code == 409


def test_login_cookie_is_for_browsers_alone(start_node: StartNode) -> None:
    node = start_node(*ADMIN_ARGUMENTS, "--http-trusted-proxies", "127.0.0.1/32", http=HTTP, store="memory")
    with client_of(node) as client:
        answer = client.post("/login", json={"name": "admin", "secret": ADMIN_SECRET})
        told = answer.headers["set-cookie"]
        for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age="):
            assert word in told
        assert "Secure" not in told
        assert "rookery_login" not in answer.text and client.cookies["rookery_login"] not in answer.text
        behind_tls = client.post(
            "/login", json={"name": "admin", "secret": ADMIN_SECRET}, headers={"X-Forwarded-Proto": "https"}
        )
        assert "Secure" in behind_tls.headers["set-cookie"]
        form = client.post("/login", content='{"name":"admin"}', headers={"Content-Type": "text/plain"})
        assert form.status_code == 415
    with log_in(node, "admin", ADMIN_SECRET) as login:
        assert login.post("/logout", headers={"X-CSRF-Token": ""}).status_code == 403
        token = login.cookies["rookery_login"]
        assert login.post("/logout").status_code == 204
        assert "rookery_login" not in login.cookies
        kept = httpx.Cookies({"rookery_login": token})
        assert httpx.get(f"http://{node.http}/api/v1/whoami", cookies=kept).status_code == 401
    assert ADMIN_SECRET not in node.log() and token not in node.log()


def test_guessing_is_throttled(start_node: StartNode) -> None:
    node = start_node(*ADMIN_ARGUMENTS, http=HTTP, store="memory")
    url = f"http://{node.http}/api/v1/whoami"
    with admin_of(node) as admin, httpx.Client(trust_env=False) as stranger:
        machine = make_key(admin, "machine", "viewer")
        admin.post("/keys", json={"name": "person", "scope": "viewer", "secret": "12345678"})
        statuses = [stranger.get(url, auth=("person", f"guess {number}")).status_code for number in range(20)]
        assert statuses == [401] * 20
        refused = stranger.get(url, auth=("person", "12345678"))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert stranger.get(url, auth=("nobody", "12345678")).status_code == 401
        # Those who cannot be guessing are let in, and so is who has another key.
        assert stranger.get(url, headers={"Authorization": f"Bearer {machine}"}).status_code == 200
        assert admin.get("/whoami").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",  "Bearer x", "Bearer rk_", "Bearer rk__x", "Bearer rk_admin", "Bearer rk_admin_",
        "Basic", "Basic ?", "Basic YWRtaW4=", "Basic OnNlY3JldA==", "Basic YWRtaW46", "Basic gICA", "Digest x", "",
        "Bearer rk_admin_" + "x" * 600, "Basic " + "QUFB" * 3000,
    ],
)  # fmt: skip
def test_malformed_credentials(http_node: BrokerProcess, header: str) -> None:
    answer = httpx.get(f"http://{http_node.http}/api/v1/whoami", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("cookie", ["", "x", "x" * 600, "ä", '"\\012"', "a;rookery_login=b"])
def test_malformed_cookies(http_node: BrokerProcess, cookie: str) -> None:
    headers = [(b"cookie", b"rookery_login=" + cookie.encode())]
    assert httpx.get(f"http://{http_node.http}/api/v1/whoami", headers=headers).status_code == 401


def test_rates(start_node: StartNode) -> None:
    node = start_node("--admin-secret", ADMIN_SECRET, "--http-rate", "5", http=HTTP, store="memory")
    with admin_of(node) as admin, client_of(node) as nobody:
        assert 429 in [admin.get("/whoami").status_code for _ in range(50)]
        assert 429 in [nobody.get("/openapi.json").status_code for _ in range(50)]
        assert httpx.get(f"http://{node.http}/readyz").status_code == 200


def test_metrics_may_need_a_key(start_node: StartNode) -> None:
    node = start_node(*ADMIN_ARGUMENTS, "--metrics-access", "viewer", http=HTTP, store="memory")
    url = f"http://{node.http}/metrics"
    assert httpx.get(url).status_code == 401
    answer = httpx.get(url, auth=ADMIN)
    assert answer.status_code == 200 and b"mqtt_connections" in answer.content


def test_ctl_makes_a_way_in(start_node: StartNode, capsys: pytest.CaptureFixture[str]) -> None:
    node = start_node(http=HTTP, store="embedded", admin_secret=None)
    store = ["--data-dir", str(node.directory / "data")]

    def printed(name: str) -> str:
        capsys.readouterr()
        main(["ctl", "keys", "list", *store])
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))

    first = first_token(node)
    assert main(["ctl", "keys", "create", *store, "--scope", "admin", "rescue"]) == 0
    token = capsys.readouterr().out.strip()
    with client_of(node, token) as client:
        assert client.get("/whoami").json()["name"] == "rescue"
    assert main(["ctl", "keys", "create", *store, "--scope", "viewer", "--expires", "30d", "guest"]) == 0
    assert main(["ctl", "keys", "rotate", *store, "admin"]) == 0
    with client_of(node, first) as client:
        until(lambda: client.get("/whoami").status_code == 401)
    capsys.readouterr()
    assert main(["ctl", "keys", "list", *store]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["admin", "admin"], ["guest", "viewer"], ["rescue", "admin"]]
    assert " until 20" in lines[1]
    assert main(["ctl", "keys", "delete", *store, "guest"]) == 0
    assert main(["ctl", "keys", "delete", *store, "guest"]) == 1
    assert main(["ctl", "keys", "create", *store, "--scope", "admin", "rescue"]) == 1
    assert main(["ctl", "keys", "create", *store, "--scope", "viewer", "--expires", "1s", "brief"]) == 0
    until(lambda: " expired" in printed("brief"))
    assert main(["ctl", "keys", "rotate", *store, "brief"]) == 1
    assert main(["ctl", "keys", "create", *store, "--scope", "viewer", "brief"]) == 0
    assert " until " not in printed("brief")
    assert main(["ctl", "keys", "create", *store, "--scope", "viewer", "admin"]) == 2
    assert main(["ctl", "keys", "create", *store, "--scope", "viewer", "a_b"]) == 2


def test_workers_have_one_door(start_node: StartNode) -> None:
    node = start_node(*ADMIN_ARGUMENTS, "--workers", "2", http=HTTP, store="embedded")
    with admin_of(node) as admin:
        token = make_key(admin, "ci", "operator")
        with client_of(node, token) as client:
            assert client.get("/whoami").json()["scope"] == "operator"
            assert len(client.get("/nodes").json()["items"]) == 2
            assert client.get("/keys").status_code == 403
    with log_in(node, "ci", token.rpartition("_")[2]) as login:
        assert login.get("/nodes").status_code == 200
        assert login.post("/logout").status_code == 204
        assert login.get("/nodes").status_code == 401
