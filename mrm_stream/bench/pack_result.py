"""What `bench pack` measured: each contender's runs, round by round, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mrm_stream.bench.formats import QUALITY, WIDTH
from mrm_stream.bench.peers import CONTENDERS, OURS, PIECES_PER_WORKER, Run
from mrm_stream.errors import ConfigError

FLOORS = {"pil+webdataset": 1.8, "libjpeg-turbo": 0.65}
"""Contender to the least ratio, ours over theirs, that packing is meant to keep."""


@dataclass(frozen=True, slots=True)
class PackBenchOptions:
    """What is measured."""

    count: int = 240
    """Images in the set."""
    width: int = WIDTH
    """Of an image in pixels; the height is in MIMIC's proportion."""
    rounds: int = 3
    workers: int = 1
    """Processes of each contender."""
    short_side: int = 1024
    """Of the packed images in pixels."""

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("count", 1, 100_000),
            ("width", 64, 8192),
            ("rounds", 1, 1000),
            ("workers", 1, 4096),
            ("short_side", 16, 1 << 14),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"must be between {low} and {high}", where=name)


@dataclass(frozen=True, slots=True)
class PackBench:
    """What was measured; the contenders stand in the order of `CONTENDERS`."""

    options: PackBenchOptions
    mean_image_bytes: int
    date: str
    """ISO 8601, UTC."""
    machine: dict[str, Any]
    versions: dict[str, str]
    rounds: tuple[dict[str, Run], ...]
    """Contender to its run, round by round."""

    def rates(self, name: str) -> list[float]:
        """Return a contender's records/s, round by round."""
        return [runs[name].records_per_s for runs in self.rounds]

    def ratios(self, peer: str) -> list[float]:
        """Return our records/s over a peer's, round by round."""
        return [runs[OURS].records_per_s / runs[peer].records_per_s for runs in self.rounds]

    def cpu_ms(self, name: str) -> float:
        """Return the median over the rounds of the processor's time for one record, in milliseconds."""
        return 1000 * median(runs[name].cpu_seconds for runs in self.rounds) / self.options.count

    def peak_bytes(self, name: str) -> int | None:
        """Return the memory of a contender's largest process over all rounds; None where it is not known."""
        return max((runs[name].peak_bytes or 0 for runs in self.rounds), default=0) or None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            "benchmark": "pack",
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "settings": asdict(self.options)
            | {
                "jpeg_quality": QUALITY,
                "pieces_per_worker": PIECES_PER_WORKER,
                "mean_image_bytes": self.mean_image_bytes,
            },
            "contenders": {
                name: {
                    "records_per_s": {"median": median(rates), "min": min(rates), "max": max(rates)},
                    "cpu_ms_per_record": self.cpu_ms(name),
                    "peak_bytes": self.peak_bytes(name),
                }
                for name, rates in ((name, self.rates(name)) for name in CONTENDERS)
            },
            "ratios": {
                peer: {"median": median(ratios), "rounds": ratios, "floor": FLOORS.get(peer)}
                for peer, ratios in ((peer, self.ratios(peer)) for peer in CONTENDERS if peer != OURS)
            },
            "rounds": [{name: asdict(run) for name, run in runs.items()} for runs in self.rounds],
        }
