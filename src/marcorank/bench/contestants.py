"""Who takes part, and whose failure is worth a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank.bench.engines import PEERS
from marcorank.bench.records import MARCORANK, Contestant
from marcorank.settings import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from marcorank.bench.records import Row, Settings

_AUTO = "auto"
# CPUs compute fp16 slowly or by way of fp32; who wants to see it asks for it.
_NOT_UNASKED = {_AUTO, "fp16"}


def contestants(settings: Settings) -> Iterator[Contestant]:
    """Yield everyone who is to be measured: for each model the peers that are installed, then marcorank."""
    backends = settings.backends or tuple(name for name in BACKENDS if name != _AUTO)
    on_cpu = settings.device in {None, "cpu"}
    precisions = settings.precisions or tuple(
        name for name in PRECISIONS if name != _AUTO and (name not in _NOT_UNASKED or not on_cpu)
    )
    for model in dict.fromkeys(settings.models):
        for peer in settings.peers:
            if PEERS[peer].installed:
                yield Contestant(model, peer, "", "fp32")
        for backend in backends:
            for precision in precisions:
                yield Contestant(model, MARCORANK, backend, precision)


def worth_reporting(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """Leave out the combinations that marcorank does not have and nobody named, such as bf16 in onnxruntime."""
    if settings.backends and settings.precisions:
        return list(rows)
    possible = {row.contestant.model for row in rows if _of_marcorank(row) and not _contradicts_itself(row)}
    return [row for row in rows if not (row.contestant.model in possible and _contradicts_itself(row))]


def _of_marcorank(row: Row) -> bool:
    return row.contestant.engine == MARCORANK


def _contradicts_itself(row: Row) -> bool:
    return row.reason_kind == "InvalidInputError"
