"""The dashboard in a real browser, against three nodes on one Redis that carry load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes

from tests.browser.dashboard import SECRET, Place, loaded_nodes, log_in
from tests.browser.pilot import Pilot
from tests.integration.paho_client import Paho, properties
from tests.kit.broker_process import BrokerProcess

VIEWER_SECRET = "a viewer secret"
#: Page that everybody shares who does not change how it looks.
ADMIN = "admin"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BrokerProcess]]:
    """Three nodes that carry load."""
    with loaded_nodes(tmp_path_factory.mktemp("dashboard")) as made:
        yield made


@pytest.fixture(scope="module")
def place(nodes: dict[str, BrokerProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A browser that is logged in as `admin`, and another page of it as a viewer."""
    with Pilot(f"http://{nodes['a'].http}", tmp_path_factory.mktemp("browser")) as browser:
        log_in(browser, ADMIN, "admin", SECRET)
        made = Place(nodes, browser)
        made.open("keys")
        browser.run(
            ADMIN,
            """await page.getByRole("button", { name: "New key…" }).click();
            const dialog = page.getByRole("dialog");
            await dialog.getByLabel("Name").fill("watcher");
            await dialog.getByLabel("Scope").selectOption("viewer");
            await dialog.getByLabel("Secret").fill(given.secret);
            await dialog.getByRole("button", { name: "Create" }).click();
            await page.getByRole("heading", { name: "Key watcher" }).waitFor();
            await page.keyboard.press("Escape");
            await page.getByRole("cell", { name: "watcher", exact: true }).waitFor();""",
            secret=VIEWER_SECRET,
        )
        log_in(browser, "viewer", "watcher", VIEWER_SECRET)
        yield made


@pytest.fixture(autouse=True)
def nothing_to_complain_of(place: Place) -> Iterator[None]:
    """No page logs an error, breaks the policy of the dashboard, or asks another origin, whatever a test does."""
    yield
    assert place.browser.complaints() == []


def test_wrong_secret_is_refused(place: Place) -> None:
    text = place.browser.run(
        "stranger",
        """await page.goto("/");
        await page.getByLabel("Name").fill("admin");
        await page.getByLabel("Secret").fill("not the secret");
        await page.keyboard.press("Enter");
        const alert = page.locator("form [role=alert]:visible");
        await alert.waitFor();
        return await alert.textContent();""",
    )
    assert text
    assert place.browser.run("stranger", "return await page.locator('#nav a').count()") == 0


def test_charts_move(place: Place) -> None:
    place.open("overview")
    counted = place.browser.run(
        ADMIN,
        """const tile = page.locator(".tile", { hasText: "Messages in" }).locator("b");
        await page.waitForFunction((element) => parseFloat(element.textContent) > 0, await tile.elementHandle());
        const canvas = await page.getByRole("group", { name: "Messages per second" }).locator("canvas").elementHandle();
        const before = await canvas.evaluate((element) => element.toDataURL());
        await page.waitForFunction(([element, before]) => element.toDataURL() !== before, [canvas, before]);
        await page.locator(".tile", { hasText: "Redis round trip" }).getByText("ms").waitFor();
        await page.getByLabel("Node").selectOption("b");
        const connections = await page.locator(".tile", { hasText: "Connections" }).locator("b").elementHandle();
        await page.waitForFunction((element) => parseFloat(element.textContent) >= 3, connections);
        return await page.locator(".chart canvas").count();""",
    )
    assert counted == 6


def test_find_and_kick_a_client_of_another_node(place: Place) -> None:
    client_id = "<b>thing/7 & more</b>"
    with Paho(place.nodes["c"], client_id=client_id) as thing:
        thing.connect()
        thing.subscribe("thing/#")
        place.open("clients")
        shown = place.browser.run(
            ADMIN,
            """await page.getByLabel("Client ID has").fill("thing/7");
            await page.keyboard.press("Enter");
            await page.getByRole("link", { name: given.id, exact: true }).click();
            await page.getByRole("heading", { name: given.id }).waitFor();
            await page.getByRole("cell", { name: "thing/#", exact: true }).waitFor();
            return await page.locator("#main").innerText();""",
            id=client_id,
        )
        assert client_id in shown
        place.browser.run(
            ADMIN,
            """await page.getByRole("button", { name: "Kick" }).click();
            await page.getByRole("button", { name: "Disconnect" }).click();
            await page.getByText("was disconnected").waitFor();""",
        )
        assert str(thing.wait_gone()) == "Administrative action"
    place.open("clients")
    place.browser.run(ADMIN, 'await page.getByText("Messages").first().waitFor({ state: "attached" })')


def test_retained_messages(place: Place) -> None:
    with Paho(place.nodes["b"], client_id="retainer") as retainer:
        retainer.connect()
        retainer.publish("house/kitchen/temperature", b'{"celsius": 21.5}', qos=1, retain=True)
        retainer.publish("house/kitchen/picture", bytes(range(256)), qos=1, retain=True)
        retainer.publish("/cellar", b"below a level without a name", qos=1, retain=True)
        retainer.publish("house/<img src=x onerror=alert(1)>", b"<script>alert(1)</script>", qos=1, retain=True)
    place.open("retained")
    found = place.browser.run(
        ADMIN,
        """for (let tries = 0; tries < 100; tries += 1) {
          // Another node had the messages first.
          await page.getByRole("tabpanel").locator(".tree, .empty").waitFor();
          if (await page.getByRole("button", { name: "Below house", exact: true }).count()) break;
          await page.getByRole("button", { name: "Refresh" }).click();
        }
        await page.getByRole("button", { name: "Below house", exact: true }).click();
        await page.getByRole("button", { name: "Below house/kitchen", exact: true }).click();
        const payload = page.getByLabel("Payload", { exact: true });
        const found = [];
        await page.getByRole("button", { name: "Show house/kitchen/temperature" }).click();
        await page.getByRole("button", { name: "JSON" }).waitFor();
        found.push(await payload.textContent());
        await page.getByRole("button", { name: "Show house/kitchen/picture" }).click();
        await page.getByRole("button", { name: "Text" }).waitFor({ state: "detached" });
        found.push((await payload.textContent()).split("\\n")[1]);
        await page.getByRole("button", { name: "Show house/<img" }).click();
        await page.getByRole("button", { name: "Text" }).click();
        found.push(await payload.textContent());
        await page.getByRole("button", { name: "Delete", exact: true }).click();
        await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
        await page.getByText("Deleted.").waitFor();
        await page.getByRole("button", { name: "Below house", exact: true }).click();
        await page.getByRole("button", { name: "Below house/kitchen", exact: true }).waitFor();
        found.push(await page.getByRole("button", { name: "Show house/<img" }).count());
        await page.getByRole("button", { name: "Below (empty)" }).click();
        await page.getByRole("button", { name: "Show /cellar" }).click();
        await page.getByText("below a level without a name").waitFor();
        return found;""",
    )
    assert found == [
        '{\n  "celsius": 21.5\n}',
        "000010  10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f  ................",
        "<script>alert(1)</script>",
        0,
    ]
    with Paho(place.nodes["c"], client_id="looker") as looker:
        looker.connect()
        looker.subscribe("house/#")
        assert {looker.take().topic for _ in range(2)} == {"house/kitchen/temperature", "house/kitchen/picture"}


def test_the_client_of_the_page(place: Place) -> None:
    place.open("client")
    url = place.nodes["b"].listeners[1]
    with Paho(place.nodes["c"], client_id="partner") as partner:
        partner.connect()
        partner.subscribe("test/#", qos=1)
        offered = place.browser.run(
            ADMIN,
            """await page.locator("#urls option").first().waitFor({ state: "attached" });
            const values = (options) => options.map((option) => option.value);
            const offered = await page.locator("#urls option").evaluateAll(values);
            await page.getByLabel("WebSocket URL").fill(given.url);
            await page.getByRole("button", { name: "Connect", exact: true }).click();
            await page.getByText("connected", { exact: true }).waitFor();
            await page.getByRole("button", { name: "Subscribe", exact: true }).click();
            await page.getByRole("button", { name: "Unsubscribe test/#" }).waitFor();
            await page.getByLabel("Topic", { exact: true }).fill("test/from page");
            await page.getByLabel("Payload", { exact: true }).fill("Grüße");
            await page.locator("summary", { hasText: "Properties" }).click();
            await page.getByLabel("User properties").fill("a=b");
            await page.getByRole("button", { name: "Publish", exact: true }).click();
            await page.getByText("Published and acknowledged.").waitFor();
            await page.locator(".message", { hasText: "test/from page" }).waitFor();
            return offered;""",
            url=url,
        )
        assert sorted(offered) == sorted(node.listeners[1] for node in place.nodes.values())
        message = partner.take()
        assert (message.topic, message.payload.decode()) == ("test/from page", "Grüße")
        assert message.properties is not None
        assert message.properties.json()["UserProperty"] == [("a", "b")]  # type: ignore[no-untyped-call]
        partner.publish("test/from outside", b"hello page", qos=1)
        place.browser.run(
            ADMIN,
            """const message = page.locator(".message", { hasText: "test/from outside" });
            await message.locator("summary").click();
            await message.getByText("hello page").last().waitFor();
            await page.getByRole("button", { name: "Disconnect" }).click();
            await page.getByText("not connected").waitFor();""",
        )


def test_drain_and_undrain(place: Place) -> None:
    with Paho(place.nodes["c"], client_id="to be drained") as client:
        client.connect()
        place.open("nodes")
        place.browser.run(
            ADMIN,
            """await page.getByRole("button", { name: "Drain c" }).click();
            await page.getByRole("dialog").getByRole("button", { name: "Drain" }).click();
            await page.getByRole("button", { name: "Undrain c" }).waitFor();""",
        )
        client.wait_gone()
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Undrain c" }).click();
        await page.getByRole("button", { name: "Drain c", exact: true }).waitFor();""",
    )
    with Paho(place.nodes["c"], client_id="after") as client:
        client.connect()
        assert client.reason is not None
        assert not client.reason.is_failure


def test_trace(place: Place) -> None:
    with Paho(place.nodes["b"], client_id="traced") as traced:
        traced.connect()
        place.open("clients/traced")
        place.browser.run(
            ADMIN,
            """await page.getByRole("link", { name: "Trace", exact: true }).click();
            await page.getByRole("button", { name: "Start" }).click();
            await page.getByRole("heading", { name: "Trace of client traced" }).waitFor();""",
        )
        traced.subscribe("traced/#", qos=1)
        traced.publish("traced/one", b"1", qos=1)
        text = place.browser.run(
            ADMIN,
            """await page.locator(".lines div", { hasText: "traced/one" }).first().waitFor();
            await page.locator(".lines div", { hasText: "SUBSCRIBE" }).first().click();
            await page.getByRole("heading", { name: "Line" }).waitFor();
            await page.keyboard.press("Escape");
            await page.getByRole("log").focus();
            for (const key of ["ArrowDown", "ArrowDown", "Enter"]) await page.keyboard.press(key);
            await page.getByRole("heading", { name: "Line" }).waitFor();
            await page.keyboard.press("Escape");
            const text = await page.locator(".lines").innerText();
            await page.getByRole("button", { name: "Stop" }).click();
            await page.getByText("ended", { exact: true }).waitFor();
            return text;""",
        )
    assert "SUBSCRIBE" in text
    assert "PUBLISH" in text


def test_a_viewer_sees_and_does_not_steer(place: Place) -> None:
    with Paho(place.nodes["b"], client_id="watched") as watched:
        watched.connect()
        place.open("clients/watched", "viewer")
        for path, sign in (("clients/watched", "watched"), ("clients", "watched"), ("nodes", "ready")):
            place.open(path, "viewer")
            buttons = place.browser.run(
                "viewer",
                """await page.locator("#main").getByText(given.sign).first().waitFor();
                return await page.locator("#main button").allTextContents();""",
                sign=sign,
            )
            assert not {"Kick", "Drain", "Delete session", "Add", "Remove"} & set(buttons), path
        links = place.browser.run("viewer", "return await page.locator('#nav a').allTextContents()")
        assert "Overview" in links
        assert "API keys" not in links
        status = place.browser.run(
            "viewer",
            """return await page.evaluate(async () => {
              const { csrf_token: token } = await (await fetch("api/v1/whoami")).json();
              const headers = { "X-CSRF-Token": token };
              return (await fetch("api/v1/clients/watched", { method: "DELETE", headers })).status;
            })""",
        )
        assert status == 403


def test_other_pages_show_what_is_there(place: Place) -> None:
    pages = place.browser.run(
        ADMIN, "return await page.locator('#nav a').evaluateAll((links) => links.map((one) => one.hash))"
    )
    assert len(pages) >= 17
    for each in pages:
        place.open(each.removeprefix("#/"))
        trouble = place.browser.run(
            ADMIN,
            """await page.waitForFunction(() => !document.querySelector("#main [aria-busy]"));
            for (const tab of await page.getByRole("tab").all()) {
              await tab.click();
              await page.waitForFunction(() => !document.querySelector("#main [aria-busy]"));
            }
            return await page.locator("#main .notice.bad:visible, .toast.bad").allTextContents();""",
        )
        assert trouble == [], each


def test_what_waits(place: Place) -> None:
    with Paho(place.nodes["b"], client_id="sleeper", clean=False) as sleeper:
        sleeper.connect(connect_properties=properties(PacketTypes.CONNECT, SessionExpiryInterval=600))
        sleeper.subscribe("for sleepers", qos=1)
        sleeper.subscribe("$share/sleepers/for all of them", qos=1)
    with Paho(place.nodes["c"], client_id="waker") as waker:
        waker.connect()
        waker.publish("for sleepers", b"wake up", qos=1)
        waker.publish("for all of them", b"all wake up", qos=1)
        waker.publish("$delayed/600/later", b"not yet", qos=1)
    place.open("sessions")
    place.browser.run(
        ADMIN,
        """await page.getByLabel("Client ID has").fill("sleeper");
        await page.keyboard.press("Enter");
        await page.getByRole("button", { name: "Queue of sleeper" }).click();
        await page.getByRole("button", { name: "Show the message on for sleepers" }).click();
        await page.getByText("wake up", { exact: true }).waitFor();
        await page.keyboard.press("Escape");
        await page.keyboard.press("Escape");""",
    )
    place.open("groups")
    group = place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Show $share/sleepers/for all of them" }).click();
        await page.getByRole("dialog").getByRole("link", { name: "sleeper" }).waitFor();
        await page.keyboard.press("Escape");
        return await page.getByRole("row").filter({ hasText: "sleepers" }).innerText();""",
    )
    assert "0 of 1 connected" in group
    place.open("delayed")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Show the message on later" }).click();
        await page.getByText("not yet", { exact: true }).waitFor();
        await page.keyboard.press("Escape");
        await page.getByRole("button", { name: "Delete the message on later" }).click();
        await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
        await page.getByText("No message is delayed.").waitFor();""",
    )
    place.open("sessions")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Delete the session of sleeper" }).click();
        await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
        await page.getByRole("button", { name: "Delete the session of sleeper" }).waitFor({ state: "detached" });""",
    )


def test_subscriptions(place: Place) -> None:
    place.open("subscriptions")
    place.browser.run(
        ADMIN,
        """await page.getByLabel("Matches the topic").fill("load/1");
        await page.keyboard.press("Enter");
        await page.getByRole("cell", { name: "load/1", exact: true }).waitFor();
        await page.getByRole("tab", { name: "Topic tree" }).click();
        await page.getByRole("button", { name: "Below load" }).waitFor();
        await page.getByRole("tab", { name: "Who gets it?" }).click();
        await page.getByLabel("A message on the topic").fill("load/0");
        await page.keyboard.press("Enter");
        await page.getByRole("link", { name: "load/0/to" }).waitFor();""",
    )


def test_forms_that_change_things(place: Place) -> None:
    place.open("bans")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Ban…" }).click();
        const dialog = page.getByRole("dialog");
        await dialog.getByLabel("Who").fill("a bad one");
        await dialog.getByLabel("For (seconds)").fill("600");
        await dialog.getByRole("button", { name: "Ban" }).click();
        await page.getByRole("cell", { name: "a bad one", exact: true }).waitFor();
        await page.getByRole("button", { name: "Remove the ban of a bad one" }).click();
        await dialog.getByRole("button", { name: "Remove" }).click();
        await page.getByText("Nobody is banned.").waitFor();""",
    )
    place.open("users")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "New user…" }).click();
        const dialog = page.getByRole("dialog");
        await dialog.getByLabel("Name").fill("u1");
        await dialog.getByLabel("Password").fill("a password");
        await dialog.getByLabel("Attributes").fill("site=north");
        await dialog.getByRole("button", { name: "Save" }).click();
        await page.getByRole("cell", { name: "u1", exact: true }).waitFor();
        await page.getByRole("button", { name: "Edit u1" }).click();
        await dialog.getByLabel("Superuser").check();
        await dialog.getByRole("button", { name: "Save" }).click();
        await page.getByRole("cell", { name: "superuser", exact: true }).waitFor();
        await page.getByRole("cell", { name: "site" }).waitFor();
        await page.getByRole("button", { name: "Delete u1" }).click();
        await dialog.getByRole("button", { name: "Delete" }).click();
        await page.getByText("No users in the store.").waitFor();""",
    )
    place.open("rules")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "New rule…" }).click();
        const dialog = page.getByRole("dialog");
        await dialog.getByLabel("Name").fill("10-mine");
        await dialog.getByLabel("Rule (JSON)").fill('{"permission": "none of these"}');
        await dialog.getByRole("button", { name: "Save" }).click();
        await dialog.getByRole("alert").waitFor();
        await dialog.getByRole("button", { name: "Close" }).click();""",
    )
    place.open("topics")
    place.browser.run(
        ADMIN,
        """await page.getByRole("button", { name: "Count a filter…" }).click();
        const dialog = page.getByRole("dialog");
        await dialog.getByLabel("Filter").fill("load/#");
        await dialog.getByRole("button", { name: "Count" }).click();
        await page.getByRole("cell", { name: "load/#", exact: true }).waitFor();
        await page.getByRole("button", { name: "Remove load/#" }).click();
        await dialog.getByRole("button", { name: "Remove" }).click();
        await page.getByText("No filter is counted.").waitFor();""",
    )
    place.open("logs")
    place.browser.run(
        ADMIN,
        """await page.getByRole("tab", { name: "Level" }).click();
        await page.getByLabel("Level", { exact: true }).last().selectOption("warning");
        await page.getByRole("button", { name: "Set" }).click();
        await page.getByRole("cell", { name: "warning" }).first().waitFor();
        await page.getByLabel("Level", { exact: true }).last().selectOption("info");
        await page.getByRole("button", { name: "Set" }).click();
        await page.getByRole("cell", { name: "info" }).first().waitFor();""",
    )


def test_by_keyboard_alone(place: Place) -> None:
    with Paho(place.nodes["b"], client_id="keyed") as keyed:
        keyed.connect()
        log_in(place.browser, "keys", "admin", SECRET)
        focused = place.browser.run(
            "keys",
            """const focused = () => page.evaluate(() => {
              const { textContent, name, id } = document.activeElement;
              return textContent || name || id;
            });
            const until = async (text) => {
              for (let steps = 0; steps < 60; steps += 1) {
                if ((await focused()) === text) return;
                await page.keyboard.press("Tab");
              }
              throw new Error(`no way to ${text} by Tab`);
            };
            await page.reload();
            await page.getByRole("button", { name: "Log out" }).waitFor();
            await page.evaluate(() => document.activeElement.blur());
            await page.keyboard.press("Tab");
            const found = [await focused()];
            await page.keyboard.press("Enter");
            found.push(await page.evaluate(() => document.activeElement.id));
            await page.keyboard.press("g");
            await until("Clients");
            await page.keyboard.press("Enter");
            await page.getByRole("heading", { name: "Clients", level: 1 }).waitFor();
            await page.getByRole("table").waitFor();
            await page.keyboard.press("/");
            found.push(await page.evaluate(() => document.activeElement.name));
            await page.keyboard.type("keyed");
            await page.keyboard.press("Enter");
            await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
            await until("keyed");
            await page.keyboard.press("Tab");
            await page.keyboard.press("Enter");
            await page.getByRole("dialog").waitFor();
            await page.keyboard.press("Escape");
            await page.getByRole("dialog").waitFor({ state: "detached" });
            found.push(await focused());
            await page.keyboard.press("Enter");
            await page.getByRole("dialog").waitFor();
            await until("Disconnect");
            await page.keyboard.press("Tab");
            await page.keyboard.press("Shift+Tab");
            found.push(await page.evaluate(() => document.activeElement.matches("main *, nav *")));
            await until("Disconnect");
            await page.keyboard.press("Enter");
            await page.getByText("was disconnected").waitFor();
            return found;""",
        )
        keyed.wait_gone()
    assert focused == ["Skip to the content", "main", "f-contains", "Kick", False]


def test_on_a_phone(place: Place) -> None:
    log_in(place.browser, "phone", "admin", SECRET)
    place.browser.run("phone", "await page.setViewportSize({ width: 360, height: 720 })")
    pages = place.browser.run(
        "phone", "return await page.locator('#nav a').evaluateAll((links) => links.map((one) => one.hash))"
    )
    for each in [*pages, "#/clients/load%2F0%2Fto"]:
        place.open(each.removeprefix("#/"), "phone")
        widths = place.browser.run(
            "phone",
            """await page.waitForFunction(() => !document.querySelector("#main [aria-busy]"));
            const width = (one) => document.querySelector(one).scrollWidth;
            return [await page.evaluate(width, "html"), await page.evaluate(width, "main")];""",
        )
        assert max(widths) <= 360, each
    hidden = place.browser.run(
        "phone",
        """const before = await page.locator("#nav").isVisible();
        await page.getByRole("button", { name: "Pages" }).click();
        await page.getByRole("link", { name: "Nodes" }).click();
        await page.getByRole("heading", { name: "Nodes" }).waitFor();
        return [before, await page.locator("#nav").isVisible()];""",
    )
    assert hidden == [False, False]


def test_dark_and_light(place: Place) -> None:
    colours = place.browser.run(
        "viewer",
        """const colour = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        const found = [await colour()];
        await page.emulateMedia({ colorScheme: "dark" });
        found.push(await colour());
        await page.getByRole("button", { name: "Colours: as the system" }).click();
        found.push(await colour());
        await page.getByRole("button", { name: "Colours: light" }).click();
        await page.emulateMedia({ colorScheme: "light" });
        await page.reload();
        await page.getByRole("button", { name: "Colours: dark" }).waitFor();
        found.push(await colour());
        await page.getByRole("button", { name: "Colours: dark" }).click();
        found.push(await colour());
        return found;""",
    )
    light, dark = "rgb(246, 245, 241)", "rgb(21, 24, 26)"
    assert colours == [light, dark, light, dark, light]


def test_everything_has_a_name(place: Place) -> None:
    for each in ("overview", "clients", "retained", "client", "trace", "keys", "logs"):
        place.open(each)
        nameless = place.browser.run(
            ADMIN,
            """return await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea, a")]
              .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label")))
              .map((one) => one.outerHTML));""",
        )
        assert nameless == [], each


def test_log_out(place: Place) -> None:
    log_in(place.browser, "leaving", "admin", SECRET)
    status = place.browser.run(
        "leaving",
        """await page.getByRole("button", { name: "Log out" }).click();
        await page.getByRole("button", { name: "Log in" }).waitFor();
        return await page.evaluate(async () => (await fetch("api/v1/whoami")).status);""",
    )
    assert status == 401


def test_a_lost_node(place: Place, tmp_path: Path) -> None:
    node = BrokerProcess(tmp_path / "lost", http="127.0.0.1:0", environment={"ROOKERY_ADMIN_SECRET": SECRET})
    node.start()
    assert node.http is not None
    try:
        with Pilot(f"http://{node.http}", tmp_path) as browser:
            log_in(browser, ADMIN, "admin", SECRET)
            browser.run(
                ADMIN,
                "await page.evaluate(() => { location.hash = '#/nodes'; }); await page.getByRole('table').waitFor()",
            )
            node.kill()
            browser.run(ADMIN, "await page.getByText('The node does not answer. Trying again').waitFor()")
            node.http_option = node.http
            node.start()
            # The store of this node was its memory: the login went with it, and the page says so.
            browser.run(
                ADMIN,
                """await page.getByRole("button", { name: "Log in" }).waitFor();
                await page.locator("#banner").waitFor({ state: "hidden" });""",
            )
            assert [each for each in browser.complaints() if "ERR_" not in each] == []
    finally:
        node.stop()
