"""Three real nodes on one real Redis that carry load, and the dashboard of one of them in a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.browser.pilot import Pilot
from tests.integration.paho_client import Paho
from tests.kit.broker_process import BrokerProcess
from tests.kit.redis_server import redis_server

NAMES = ("a", "b", "c")
SECRET = "an admin secret"
_END_S = 30.0


class Place(NamedTuple):
    """Nodes by name, and a browser at the dashboard of the first one."""

    nodes: dict[str, BrokerProcess]
    browser: Pilot

    def open(self, path: str, page: str = "admin") -> None:
        """Go to a page of the dashboard, and wait for its heading."""
        self.browser.run(
            page,
            """if (new URL(page.url()).hash === `#/${given.path}`) await page.reload();
            else await page.evaluate((path) => { location.hash = `#/${path}`; }, given.path);
            await page.locator(`#main > .${given.path.split("/")[0]} h1`).waitFor();""",
            path=path,
        )


def log_in(browser: Pilot, page: str, name: str, secret: str) -> None:
    """Through the form, as people do."""
    browser.run(
        page,
        """await page.goto("/");
        await page.getByLabel("Name").fill(given.name);
        await page.getByLabel("Secret").fill(given.secret);
        await page.getByRole("button", { name: "Log in" }).click();
        await page.getByRole("button", { name: "Log out" }).waitFor();""",
        name=name,
        secret=secret,
    )


@contextmanager
def working(*jobs: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each job runs in a thread, until the event that it is given is set."""
    stopping = threading.Event()
    threads = [threading.Thread(target=job, args=(stopping,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(_END_S)


@contextmanager
def three_nodes(folder: Path) -> Iterator[dict[str, BrokerProcess]]:
    """By name; each listens to TCP first, then to WebSockets."""
    made: dict[str, BrokerProcess] = {}
    with redis_server() as store:
        try:
            for name in NAMES:
                made[name] = BrokerProcess(
                    folder / name,
                    f"redis://127.0.0.1:{store.address.port}/0",
                    listen=("tcp://127.0.0.1:0", "ws://127.0.0.1:0/mqtt"),
                    http="127.0.0.1:0",
                    arguments=("--node-name", name),
                    environment={"ROOKERY_ADMIN_SECRET": SECRET},
                )
                made[name].start()
            yield made
        finally:
            for node in made.values():
                node.stop()


@contextmanager
def loaded_nodes(folder: Path) -> Iterator[dict[str, BrokerProcess]]:
    """Three nodes; messages go from one to another all the time, as fast as they are acknowledged."""
    with three_nodes(folder) as nodes:
        jobs = [
            lambda stopping: _load(nodes["a"], nodes["b"], "load/0", stopping),
            lambda stopping: _load(nodes["b"], nodes["b"], "load/1", stopping),
        ]
        with working(*jobs):
            yield nodes


def _load(source: BrokerProcess, target: BrokerProcess, topic: str, stopping: threading.Event) -> None:
    with Paho(target, client_id=f"{topic}/to") as receiver, Paho(source, client_id=f"{topic}/from") as sender:
        receiver.connect()
        sender.connect()
        receiver.subscribe(topic)
        while not stopping.is_set():
            sender.publish(topic, b"load", qos=1)
            receiver.take()
