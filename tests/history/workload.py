"""A load that uses everything at once: all QoS, all kinds of sessions, groups, retained topics, wills, delays."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from broker.codec.packets import V311
from tests.history.client import Profile, RecordedClient, WillOptions
from tests.history.run import Run

#: Settings of nodes under this load: nothing may be refused for want of room while a fault lasts.
ROOMY = (
    "--max-queued-messages", "200000", "--max-queued-bytes", "1GiB", "--max-group-queue", "200000",
)  # fmt: skip

HOUR_S = 3600
RETAINED = tuple(f"kept/{number}" for number in range(4))
WILLS = "gone/#"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What the load consists of; rates are messages a second of all publishers of a kind together."""

    rate: float = 120.0
    group_rate: float = 30.0
    retained_rate: float = 5.0
    delayed_rate: float = 2.0
    #: Connections reset by their clients, per second, of all clients together.
    churn: float = 0.5
    groups: bool = True
    wills: bool = True
    patience_s: float = 8.0


class Workload:
    """Clients of a run that publish until told to stop."""

    def __init__(self, run: Run, mix: Mix | None = None) -> None:
        self.run = run
        self.mix = mix or Mix()
        self.publishers: list[RecordedClient] = []
        self.subscribers: list[RecordedClient] = []
        self.members: list[RecordedClient] = []
        #: Payloads of wills that have to be published.
        self.due_wills: list[str] = []
        self._doomed = 0
        self._stopping = False
        self._scope = trio.CancelScope()

    def _client(self, name: str, **profile: object) -> RecordedClient:
        profile.setdefault("patience_s", self.mix.patience_s)
        return self.run.client(name, profile=Profile(**profile))  # type: ignore[arg-type]

    async def begin(self) -> None:
        """Connect and subscribe all; returns when the load can begin."""
        both = (("load/#", 2),)
        self.subscribers = [
            self._client("sub-persistent-2", expiry_s=HOUR_S, subscriptions=both),
            self._client("sub-persistent-2-slow", expiry_s=HOUR_S, subscriptions=both, hold=30),
            self._client("sub-persistent-1", expiry_s=HOUR_S, subscriptions=(("load/#", 1),)),
            self._client("sub-persistent-v3", version=V311, expiry_s=HOUR_S, subscriptions=(("load/+/2", 2),)),
            self._client("sub-ephemeral-2", subscriptions=both),
            self._client("sub-ephemeral-0", subscriptions=(("load/#", 0),)),
            self._client("sub-kept", subscriptions=(("kept/#", 1), ("later/#", 2))),
            self._client("sub-later", expiry_s=HOUR_S, subscriptions=(("later/#", 2),)),
            self._client("observer", expiry_s=HOUR_S, subscriptions=((WILLS, 2),)),
        ]
        if self.mix.groups:
            for qos in (1, 2):
                for number in range(3):
                    self.members.append(
                        self._client(
                            f"member-{qos}-{number}",
                            expiry_s=0 if number == 2 else HOUR_S,
                            subscriptions=((f"$share/g{qos}/work/{qos}/#", qos),),
                            hold=5 if number == 1 else 0,
                        )
                    )
        self.publishers = [
            self._client("pub-0"),
            self._client("pub-1-ephemeral"),
            self._client("pub-1", expiry_s=HOUR_S),
            self._client("pub-1-v3", version=V311, expiry_s=HOUR_S),
            self._client("pub-2", expiry_s=HOUR_S),
            self._client("pub-2-other", expiry_s=HOUR_S),
        ]
        await self.run.ready()

    async def serve(self, nursery: trio.Nursery) -> None:
        """Start all publishers; they go on until `stop`."""
        mix = self.mix
        each = mix.rate / len(self.publishers)
        for publisher in self.publishers:
            qos = int(publisher.name.split("-")[1])
            topics = tuple(f"load/{publisher.name}-{number}/{qos}" for number in range(2))
            nursery.start_soon(self._publish, publisher, topics, qos, each)
        if mix.groups:
            for qos in (1, 2):
                publisher = self._client(f"pub-work-{qos}", expiry_s=HOUR_S)
                topics = tuple(f"work/{qos}/{number}" for number in range(3))
                nursery.start_soon(self._publish, publisher, topics, qos, mix.group_rate / 2)
        if mix.retained_rate:
            publisher = self._client("pub-kept", expiry_s=HOUR_S)
            nursery.start_soon(self._publish, publisher, RETAINED, 1, mix.retained_rate, True)
        if mix.delayed_rate:
            publisher = self._client("pub-later", expiry_s=HOUR_S)
            nursery.start_soon(
                self._publish, publisher, ("$delayed/2/later/a", "$delayed/3/later/b"), 2, mix.delayed_rate
            )
        if mix.churn:
            nursery.start_soon(self._churn)
        if mix.wills:
            nursery.start_soon(self._doom)

    def stop(self) -> None:
        """No new messages from now on."""
        self._stopping = True

    async def _publish(
        self, client: RecordedClient, topics: tuple[str, ...], qos: int, rate: float, retain: bool = False
    ) -> None:
        number = 0
        while not self._stopping:
            # A client that is away does not pile up more than it would send in a second.
            if client.backlog < rate:
                client.publish(topics[number % len(topics)], qos, retain)
                number += 1
            await trio.sleep(self.run.random.uniform(0.5, 1.5) / rate)

    async def _churn(self) -> None:
        while not self._stopping:
            await trio.sleep(self.run.random.expovariate(self.mix.churn))
            moving = [*self.subscribers[:5], *self.members, *self.publishers]
            if not self._stopping:
                self.run.random.choice(moving).drop()

    async def _doom(self) -> None:
        """Clients with a will that come, and then leave in one way or the other, for good."""
        while not self._stopping:
            self._doomed += 1
            name = f"doomed-{self._doomed}"
            will = WillOptions(topic=f"gone/{name}")
            client = self._client(name, will=will)
            with trio.move_on_after(5):
                await client.connected.wait()
            link = client.link
            bye = self._doomed % 2 == 0
            if link is not None and not link.given_up and not bye:
                self.due_wills.append(f"will:{name}:{link.number}")
            client.stop(bye)
            await trio.sleep(1.0)
