"""Pictures of the dashboard for the documentation: `make screenshots` writes them into docs/images."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tests.browser.dashboard import SECRET, Place, log_in, three_nodes, working
from tests.browser.pilot import Pilot
from tests.integration.paho_client import Paho
from tests.kit.broker_process import BrokerProcess

FOLDER = Path(__file__).parents[2] / "docs" / "images"
HALLS = ("assembly", "paint-shop", "warehouse")
KINDS = ("temperature", "humidity", "power")


def _sensors(node: BrokerProcess, hall: str, pause_s: float) -> Callable[[threading.Event], None]:
    def job(stopping: threading.Event) -> None:
        clients = {kind: Paho(node, client_id=f"{hall}-{kind}", version=5) for kind in KINDS}
        for client in clients.values():
            client.connect()
        number = 0
        # Uneven, so that there is something to see.
        while not stopping.wait(pause_s * (1 + (number // 40) % 4)):
            for kind, client in clients.items():
                number += 1
                payload = json.dumps({"value": 20 + number % 17, "unit": kind[0]}).encode()
                client.publish(f"plant/{hall}/{kind}", payload, qos=1, retain=True)
        for client in clients.values():
            client.close()

    return job


def _panel(node: BrokerProcess, client_id: str, topic_filter: str) -> Callable[[threading.Event], None]:
    def job(stopping: threading.Event) -> None:
        with Paho(node, client_id=client_id) as client:
            client.connect()
            client.subscribe(topic_filter, qos=1)
            stopping.wait()

    return job


def _take(place: Place, path: str, name: str, page: str = "admin", code: str = "") -> None:
    place.open(path, page)
    place.browser.run(
        page,
        f"{code}\nawait page.waitForLoadState('networkidle').catch(() => null);"
        "await page.screenshot({ path: given.to, animations: 'disabled' });",
        to=str(FOLDER / name),
    )


def main(seconds: float) -> None:
    """Let a plant run for a while, and look at it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rookery-") as text:
        folder = Path(text)
        with three_nodes(folder) as nodes:
            every = list(nodes.values())
            jobs = [_sensors(every[n % 3], hall, 0.02 + 0.01 * n) for n, hall in enumerate(HALLS)]
            jobs += [_panel(every[n % 3], f"panel-{n}", f"plant/{hall}/#") for n, hall in enumerate(HALLS)]
            jobs += [_panel(every[n % 3], f"archive-{n}", "$share/archive/plant/#") for n in range(3)]
            with working(*jobs), Pilot(f"http://{nodes['a'].http}", folder) as browser:
                place = Place(nodes, browser)
                log_in(browser, "admin", "admin", SECRET)
                threading.Event().wait(seconds)
                _pictures(place)


def _pictures(place: Place) -> None:
    dark = "await page.emulateMedia({ colorScheme: 'dark' });"
    light = "await page.emulateMedia({ colorScheme: 'light' });"
    moving = "await page.waitForTimeout(3000);"
    _take(place, "overview", "overview-light.png", code=moving)
    _take(place, "overview", "overview-dark.png", code=dark + moving)
    _take(place, "clients", "clients.png", code=light + "await page.getByRole('table').waitFor();")
    _take(
        place,
        "retained",
        "retained.png",
        code="""await page.getByRole("button", { name: "Below plant", exact: true }).click();
        await page.getByRole("button", { name: "Below plant/assembly", exact: true }).click();
        await page.getByRole("button", { name: "Show plant/assembly/power" }).click();
        await page.getByRole("button", { name: "JSON" }).waitFor();""",
    )
    _take(
        place,
        "trace",
        "trace.png",
        code="""await page.getByLabel("Which").fill("paint-shop-power");
        await page.getByRole("button", { name: "Start" }).click();
        await page.locator(".lines div").nth(30).waitFor();
        await page.getByRole("button", { name: "Hold" }).click();""",
    )
    log_in(place.browser, "phone", "admin", SECRET)
    place.browser.run("phone", "await page.setViewportSize({ width: 360, height: 740 })")
    _take(place, "clients", "phone.png", "phone", "await page.getByRole('table').waitFor();")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long the charts have been running")
    main(parser.parse_args().seconds)
