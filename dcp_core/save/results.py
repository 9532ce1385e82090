"""What one rank wrote in one save, on its way to the coordinator."""

from __future__ import annotations

from collections.abc import Iterable

from torch.distributed.checkpoint.storage import WriteResult

__all__ = ["RankResults"]


class RankResults(list[WriteResult]):
    """Write results that know which checkpoint they are of.

    torch gathers the results of all ranks with one collective. Where saves overlap on one process group,
    ranks may enter it in different orders, and the coordinator is handed another save's results.
    """

    def __init__(self, url: str, results: Iterable[WriteResult]) -> None:
        super().__init__(results)
        self.url = url

    def __reduce__(self) -> tuple[type[RankResults], tuple[str, list[WriteResult]]]:
        return RankResults, (self.url, list(self))
