"""What `bench data` measured: each stage's contenders, run by run, round by round, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mrm_stream.bench.formats import QUALITY, WIDTH
from mrm_stream.errors import ConfigError

OURS, DALI, MOSAICML = "ours", "ours, DALI", "mosaicml-streaming"
ENCODED, PAIRS_LARGE, PAIRS_SMALL, RESUME = "encoded", "pairs 1024", "pairs 512", "resume"
STAGES: dict[str, tuple[str, ...]] = {
    ENCODED: (OURS, "webdataset", MOSAICML),
    PAIRS_LARGE: (OURS, DALI, "pil+torchvision", "the same, all grey", "libjpeg-turbo"),
    PAIRS_SMALL: (OURS, DALI, "pil+torchvision", "the same, all grey", "libjpeg-turbo"),
    RESUME: (OURS, "ours, unverified"),
}
"""Stage to its contenders, as table and JSON show them; libjpeg-turbo only decodes, and is a bound, not a peer."""
TITLES = {
    ENCODED: "encoded samples, 1,024-px shards, 1 process",
    PAIRS_LARGE: "HR/LR pairs from 1,024-px shards",
    PAIRS_SMALL: "HR/LR pairs from 512-px shards",
    RESUME: "first batch after resume",
}
FLOORS: dict[str, dict[str, float]] = {
    ENCODED: {"webdataset": 5, MOSAICML: 5},
    PAIRS_LARGE: {"pil+torchvision": 5, "libjpeg-turbo": 0.65},
    PAIRS_SMALL: {"pil+torchvision": 8, "libjpeg-turbo": 0.55},
    RESUME: {},
}
"""Stage and contender to the least ratio, ours over theirs, that is meant to be kept."""
LEAST_ENCODED = 20_000
"""Samples/s of ours, at least."""
MOST_SECONDS, MOST_BYTES = 1.0, 200_000_000
"""Of the first batch after a resume."""


@dataclass(frozen=True, slots=True)
class DataBenchOptions:
    """What is measured."""

    count: int = 240
    """Distinct radiographs, and pairs that the slowest contender makes; a multiple of `batch`."""
    rounds: int = 3
    width: int = WIDTH
    """Of a radiograph before packing, in pixels."""
    batch: int = 48
    threads: int = 2
    """Threads of ours and of libjpeg-turbo, worker processes of the peers."""
    encoded: int = 2400
    """Samples of the set that is read without decoding: the radiographs, each several times."""
    resumed: int = 1_000_000
    """Samples of the epoch that is resumed in its middle."""
    samples_per_shard: int = 512
    """Of the sets that are not decoded in full."""

    def __post_init__(self) -> None:
        """Check each range."""
        for name, low, high in (
            ("count", 2, 100_000),
            ("rounds", 1, 1000),
            ("width", 64, 8192),
            ("batch", 1, 4096),
            ("threads", 1, 256),
            ("encoded", 1, 1_000_000),
            ("resumed", 1, 10**9),
            ("samples_per_shard", 1, 1 << 20),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"must be between {low} and {high}", where=name)
        if self.count % self.batch:
            raise ConfigError(f"must be a multiple of {self.batch}, the batch", where="count")


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's one run of a stage."""

    samples: int
    """Timed, once it had warmed up."""
    seconds: float
    cpu_ms: float
    """The processor's time for a sample, of all processes: on a machine that others use too, it tells more than the
    clock."""
    bytes: int | None
    """Resident memory of the largest process at its peak; when resuming, what was added to that of torch's import;
    None where unknown."""
    import_seconds: float = 0.0
    """When resuming: of torch, before the clock started."""
    import_bytes: int | None = None
    """When resuming: resident once torch was imported."""

    @property
    def rate(self) -> float:
        """Samples/s."""
        return self.samples / self.seconds


@dataclass(frozen=True, slots=True)
class DataBench:
    """What was measured."""

    options: DataBenchOptions
    mean_bytes: dict[str, int]
    """Stage to the bytes of its mean JPEG."""
    date: str
    """ISO 8601, UTC."""
    machine: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]
    """What was skipped, and why."""
    rounds: tuple[dict[str, dict[str, Run]], ...]
    """Stage to contender to its run, round by round."""

    def contenders(self, stage: str) -> list[str]:
        """Return who was measured at a stage, in order."""
        return [name for name in STAGES[stage] if name in self.rounds[0][stage]]

    def runs(self, stage: str, name: str) -> list[Run]:
        """Return a contender's runs, round by round."""
        return [stages[stage][name] for stages in self.rounds]

    def ratios(self, stage: str, peer: str) -> list[float]:
        """Return our samples/s over a peer's, round by round."""
        pairs = zip(self.runs(stage, OURS), self.runs(stage, peer), strict=True)
        return [ours.rate / theirs.rate for ours, theirs in pairs]

    def cpu_ratio(self, stage: str, peer: str) -> float:
        """Return a peer's processor time for a sample over ours: the median of the rounds."""
        pairs = zip(self.runs(stage, OURS), self.runs(stage, peer), strict=True)
        return median(theirs.cpu_ms / ours.cpu_ms for ours, theirs in pairs)

    def peak_bytes(self, stage: str, name: str) -> int | None:
        """Return the most memory over all rounds; None where it is not known."""
        return max((run.bytes or 0 for run in self.runs(stage, name)), default=0) or None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            "benchmark": "data",
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "settings": asdict(self.options) | {"jpeg_quality": QUALITY, "mean_jpeg_bytes": self.mean_bytes},
            "notes": list(self.notes),
            "stages": {stage: self._stage_json(stage) for stage in STAGES},
            "rounds": [
                {stage: {name: asdict(run) for name, run in runs.items()} for stage, runs in stages.items()}
                for stages in self.rounds
            ],
        }

    def _stage_json(self, stage: str) -> dict[str, Any]:
        names = self.contenders(stage)
        content: dict[str, Any] = {"contenders": {name: self._contender_json(stage, name) for name in names}}
        if stage == RESUME:
            return content | {"most_seconds": MOST_SECONDS, "most_bytes": MOST_BYTES}
        content["ratios"] = {
            peer: {
                "median": median(self.ratios(stage, peer)),
                "of_cpu_time": self.cpu_ratio(stage, peer),
                "rounds": self.ratios(stage, peer),
                "floor": FLOORS[stage].get(peer),
            }
            for peer in names
            if peer != OURS
        }
        return content | ({"least_samples_per_s": LEAST_ENCODED} if stage == ENCODED else {})

    def _contender_json(self, stage: str, name: str) -> dict[str, Any]:
        runs = self.runs(stage, name)
        if stage == RESUME:
            seconds = [run.seconds for run in runs]
            return {
                "seconds": _spread(seconds),
                "added_bytes": self.peak_bytes(stage, name),
                "import_seconds": median(run.import_seconds for run in runs),
                "import_bytes": max(run.import_bytes or 0 for run in runs) or None,
            }
        return {
            "samples_per_s": _spread([run.rate for run in runs]),
            "cpu_ms_per_sample": median(run.cpu_ms for run in runs),
            "peak_bytes": self.peak_bytes(stage, name),
        }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
