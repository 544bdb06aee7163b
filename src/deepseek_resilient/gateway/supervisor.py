"""The gateway's first process: it binds, keeps the workers alive, and is the one that signals are for.

    SIGTERM, SIGINT   drain: no new connections, calls in flight end, at most `drain` seconds; a second one ends at once
    SIGHUP            read the file again; a file that is wrong is told, and the old settings stay

The listening socket is bound once and shared: a worker that dies takes the calls it had, and no connection that was not
accepted yet; another takes its place, after a pause that doubles while it keeps dying. Workers end with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deepseek_resilient.errors import ConfigError
from deepseek_resilient.gateway.egress import ProxyError, proxy_for
from deepseek_resilient.gateway.metrics import exposition
from deepseek_resilient.gateway.outgoing import place_of
from deepseek_resilient.gateway.pages import Pages
from deepseek_resilient.gateway.serving import address_of, bind, log_to_stderr, make_server
from deepseek_resilient.gateway.settings import Limits
from deepseek_resilient.gateway.spending import Spending
from deepseek_resilient.gateway.status import merged
from deepseek_resilient.gateway.workers import Worker
from deepseek_resilient.proxies import proxies_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepseek_resilient.gateway.settings import GatewaySettings

log = logging.getLogger("deepseek_resilient.gateway")

_GRACE = 2.0
_SAVE = 1.0
_FIXED = ("listen", "admin", "workers", "drain", "limits", "telemetry", "spent_file")
"""What a running gateway cannot change: it is checked with these, for they stay."""


class Supervisor:
    """Runs a gateway until it is told to end.

    Args:
        load: the settings, read anew at each SIGHUP. Raises ConfigError.
        announce: is told once, with the addresses of the gateway and of its pages.
    """

    def __init__(self, load: Callable[[], GatewaySettings], announce: Callable[[str, str], None]) -> None:
        self._load = load
        self._announce = announce
        self.settings = load()
        log_to_stderr(self.settings.log)
        if self.settings.api_key is None and not self.settings.policy.routing.upstreams:
            log.warning("no key: DEEPSEEK_API_KEY is not set, so the upstream may refuse every call")
        _check_ways(self.settings)
        self.listening = bind(self.settings.listen)
        try:
            self._admin = bind(self.settings.admin)
            try:
                self.spending = Spending(self.settings.spent_file, time.time)
            except ConfigError:
                self._admin.close()
                raise
        except (OSError, ConfigError):
            self.listening.close()
            raise
        self.ending = asyncio.Event()
        self._workers = [Worker(number, self) for number in range(self.settings.workers)]
        self._pages = Pages(self.status, self.metrics, self._is_ready, self.settings.admin_key)
        self._announced = False
        self._reloading: asyncio.Task[None] | None = None
        self._address = address_of(self.listening)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        pages = make_server(self._pages, Limits(), drain=1.0, lifespan=False)
        admin = asyncio.create_task(pages.serve(sockets=[self._admin]))
        keeping = [asyncio.create_task(worker.keep()) for worker in self._workers]
        saving = asyncio.create_task(self._save())
        try:
            await self.ending.wait()
            self.listening.close()
            await asyncio.gather(*(worker.end(self.settings.drain + _GRACE) for worker in self._workers))
        finally:
            for worker in self._workers:
                worker.kill()
            saving.cancel()
            await asyncio.gather(*keeping, saving, return_exceptions=True)
            await asyncio.to_thread(self.spending.save)
            self._pages.end()
            pages.should_exit = True
            await admin

    async def status(self) -> dict[str, Any]:
        """Of all workers together."""
        settling = asyncio.gather(*(worker.settle() for worker in self._workers))
        told = await asyncio.gather(*(worker.status() for worker in self._workers))
        await settling
        known = [status for status in told if status is not None]
        return {
            "ready": self._is_ready(),
            "address": self._address,
            "workers": [{"number": worker.number, "ready": worker.ready} for worker in self._workers],
            **merged(known, self.spending.totals()),
        }

    async def metrics(self) -> bytes:
        """Of all workers together, for Prometheus."""
        texts = await asyncio.gather(*(worker.metrics() for worker in self._workers))
        return exposition(texts, await self.status())

    def report_ready(self) -> None:
        """A worker takes calls."""
        if not self._announced and self._is_ready():
            self._announced = True
            self._announce(address_of(self.listening), address_of(self._admin))

    async def _save(self) -> None:
        """Beside everything else: disks can be slow."""
        while True:
            await asyncio.sleep(_SAVE)
            await asyncio.to_thread(self.spending.save)

    async def pause(self, seconds: float) -> None:
        """That long, or until the gateway ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)

    def _is_ready(self) -> bool:
        return not self.ending.is_set() and all(worker.ready for worker in self._workers)

    def _end(self) -> None:
        if self.ending.is_set():
            log.warning("told twice: ending at once")
            for worker in self._workers:
                worker.kill()
        self.ending.set()

    def _reload(self) -> None:
        try:
            wanted, before = self._load(), self.settings
            settings = replace(wanted, **{name: getattr(before, name) for name in _FIXED})
            _check_ways(settings)
        except ConfigError as error:
            log.error("the settings stay as they are: %s", error)
            return
        for name in _FIXED:
            if getattr(wanted, name) != getattr(before, name):
                log.warning("%s has changed: that needs a restart", name)
        self.settings, self._pages.key = settings, settings.admin_key
        self._reloading = asyncio.create_task(self._tell(settings))

    async def _tell(self, settings: GatewaySettings) -> None:
        took = await asyncio.gather(*(worker.tell(settings) for worker in self._workers))
        if all(took):
            log.info("reloaded")
        else:
            log.error("%d of %d workers did not take the new settings in time", took.count(False), len(took))


def _check_ways(settings: GatewaySettings) -> None:
    """Say which upstreams are reached through a proxy. Raises ConfigError where one cannot be."""
    proxies = proxies_from_environment()
    for url in dict.fromkeys((settings.base_url, *(each.base_url for each in settings.policy.routing.upstreams))):
        place = place_of(url)
        try:
            proxy = proxy_for(place, proxies)
        except ProxyError as error:
            allowed = "reached without a proxy (NO_PROXY), or through one at an http:// address"
            raise ConfigError(f"the way to {place.host}", str(error), allowed) from None
        if proxy is not None:
            log.info("%s is reached through the proxy %s:%d", place.host, proxy.host, proxy.port)


def serve(load: Callable[[], GatewaySettings], announce: Callable[[str, str], None]) -> None:
    """Run a gateway in this process until a signal ends it. Raises ConfigError, OSError."""

    async def run() -> None:
        await Supervisor(load, announce).run()

    asyncio.run(run())
