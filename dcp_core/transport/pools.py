"""Connection pools of urllib3 whose sends have a time limit of their own, and whose requests can be ended.

Nothing here imports urllib3 or requests: the backends' SDKs bring them, and hand over their classes.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from dcp_core.transport.in_flight import on_socket

__all__ = ["tune_pools", "tuned_adapter", "tuned_pool_classes"]


#: urllib3's own default, and TCP keep-alive.
_KEPT_ALIVE = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))


def tuned_pool_classes(pools: Mapping[str, Any], stall_timeout: float) -> dict[str, Any]:
    """Pools like ``pools``, a pool manager's ``pool_classes_by_scheme``, whose sends take up to
    ``stall_timeout`` seconds.

    urllib3 sends with the time limit for connecting, whose value suits neither a dead nor a slow link, and
    still does so through an HTTP proxy and with a client certificate.
    """
    return {scheme: _tuned_pool(pool, stall_timeout) for scheme, pool in pools.items()}


def tune_pools(manager: Any, stall_timeout: float) -> None:
    """Have a pool manager make such pools from now on."""
    manager.pool_classes_by_scheme = tuned_pool_classes(manager.pool_classes_by_scheme, stall_timeout)


def tuned_adapter(base: Any, stall_timeout: float, **options: Any) -> Any:
    """An adapter of requests, an instance of ``base`` with ``options``, on pools of that kind; its
    connections are kept alive."""

    class Adapter(base):  # type: ignore[misc]  # a class that is known at run time only
        def init_poolmanager(self, *arguments: Any, **given: Any) -> None:
            super().init_poolmanager(*arguments, socket_options=_KEPT_ALIVE, **given)
            tune_pools(self.poolmanager, stall_timeout)

        def proxy_manager_for(self, proxy: str, **given: Any) -> Any:
            new = proxy not in self.proxy_manager
            manager = super().proxy_manager_for(proxy, socket_options=_KEPT_ALIVE, **given)
            if new:
                tune_pools(manager, stall_timeout)
            return manager

    return Adapter(**options)


def _tuned_pool(pool: Any, stall_timeout: float) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # a class that is known at run time only
        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            if self.sock.gettimeout() != stall_timeout:
                self.sock.settimeout(stall_timeout)
            on_socket(self.sock)
            super().send(data)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool
