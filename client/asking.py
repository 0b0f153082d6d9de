"""A question that any broker can answer, asked of one after the other until one does.

Who is asked first may be gone without a word, or stand still. So the next one is asked, too, when
nothing has come for ``NEXT_S``; the first answer counts. For questions that change nothing.
"""

from functools import partial

import anyio

from tailrace.client.brokers import Broker, Brokers
from tailrace.client.channel import Lost, Outcome, Written, name_of
from tailrace.client.runtime import Runtime
from tailrace.protocol import texts_client
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import Request, Response

NEXT_S = 0.3


class Asking:
    """One question. ``ask`` once; ``poke`` when a broker may have become reachable."""

    def __init__(self, runtime: Runtime, brokers: Brokers, message: Request) -> None:
        self._runtime = runtime
        self._brokers = brokers
        self._message = message
        self.answered_by = ""  # a broker id, once there is an answer
        self._asked: dict[str, bool] = {}  # by broker id: whether it is still to answer
        self._answer: Response | None = None
        self._error: TailraceError | None = None  # the last one
        self._news = anyio.Event()
        self._waited = False

    async def ask(self, timeout: float) -> Response:
        """The first answer within ``timeout`` seconds.

        Raises what the last one says if all have refused, RequestTimeout T034 if nobody answers.
        Cancelled: answers are dropped.
        """
        began = self._runtime.clock.now()
        with anyio.move_on_after(timeout):
            while self._answer is None:
                broker = self._next()
                if broker is not None:
                    self._post(broker)
                elif self._error is not None and not self._may_be_answered():
                    raise self._error
                await self._wait()
        if self._answer is not None:
            return self._answer
        raise self._error or texts_client.request_timeout(
            name_of(self._message),
            address=self._where(),
            waited_s=self._runtime.clock.now() - began,
        )

    def poke(self) -> None:
        """Look again whom to ask."""
        self._news.set()

    def _next(self) -> Broker | None:
        for broker in self._brokers.in_turn():
            channel = broker.control.channel
            if broker.broker_id in self._asked or channel is None:
                continue
            doubted = self._brokers.doubted(broker)
            if doubted and self._brokers.others_may_come() and not self._waited:
                continue
            if channel.in_flight < channel.hello.in_flight_max:
                if doubted:
                    self._brokers.wake()  # for the next question: this one may be in vain
                return broker
        self._brokers.wake()
        return None

    def _may_be_answered(self) -> bool:
        coming = not self._waited and self._brokers.others_may_come()
        return coming or any(self._asked.values())

    def _post(self, broker: Broker) -> None:
        channel = broker.control.channel
        assert channel is not None
        self._asked[broker.broker_id] = True
        channel.post(self._message, (), partial(self._heard, broker.broker_id))

    def _heard(self, broker_id: str, outcome: Outcome, _: memoryview) -> None:
        self._asked[broker_id] = False
        if isinstance(outcome, TailraceError | Lost):
            self._error = outcome if isinstance(outcome, TailraceError) else outcome.error(0.0)
            self._brokers.doubt(broker_id)
        elif self._answer is None:
            assert not isinstance(outcome, Written)
            self._answer = outcome
            self.answered_by = broker_id
            self._brokers.trust(broker_id)
            self._brokers.home = self._brokers.by_id.get(broker_id, self._brokers.home)
        self._news.set()

    async def _wait(self) -> None:
        with anyio.move_on_after(NEXT_S) as limit:
            await self._news.wait()
        self._news = anyio.Event()
        if limit.cancelled_caught:
            self._waited = True
            for broker_id, broker in self._brokers.by_id.items():
                broker.late = not broker.up
                if self._asked.get(broker_id):
                    self._brokers.doubt(broker_id)

    def _where(self) -> str:
        silent = [
            str(self._brokers.by_id[name].address)
            for name in self._asked
            if name in self._brokers.by_id
        ]
        return ", ".join(silent) or "the cluster"
