"""What was measured of one plan."""

from __future__ import annotations

from typing import Literal

from slimline.core.budget import Quantity, Violation
from slimline.core.data import Data
from slimline.core.plan import Plan


class Latency(Data):
    """Milliseconds for one call: median and 95th percentile over ``runs``, at ``threads`` and ``batch``; the median of those that were timed beside others comes from paired ratios.

    ``estimated``: nothing ran on the device; the numbers are the sum over the operations by its latency table.
    """

    median: float
    p95: float
    runs: int
    threads: int = 1
    batch: int = 1
    estimated: bool = False


class Measurement(Data):
    """Everything measured of one artefact. ``quality``: higher is better, ``None`` without data."""

    size_bytes: int
    download_bytes: int
    download_codec: str
    download_above_entropy: float | None = None
    """By what share the download is larger than the entropy of its content under its codec's own model; ``None`` where the codec has none."""
    memory_bytes: int
    rss_bytes: int | None = None
    parameters: int
    macs: int
    latency_ms: Latency
    quality: float | None = None

    def cost(self, quantity: Quantity) -> float:
        """The value of one budgeted quantity."""
        return float(
            {"size": self.size_bytes, "download": self.download_bytes, "memory": self.memory_bytes, "macs": self.macs, "latency": self.latency_ms.median}[
                quantity
            ]
        )


class Agreement(Data):
    """Outputs against reference outputs: share of equal top-1 (``None`` unless they are class scores), mean cosine, largest difference.

    ``likely_top1``: the share that is expected on other samples (``numerics.changes.expected_changes``). ``likely_drop``: of quality, if the original's calibrated
    probabilities are right (``numerics.changes.likely_drop``); ``None`` where quality is not the share of right answers.
    """

    top1: float | None
    cosine: float
    max_abs: float
    likely_top1: float | None = None
    likely_drop: float | None = None


class Trial(Data):
    """One line of the journal: a plan that was carried out, or why it failed.

    The measurement's ``quality`` and ``fidelity`` (against the original) are of the search split. ``agreement`` is
    the artefact's with the compressed model: whether lowering changed anything. ``layer_ms``: by weight, where the runtime profiles.
    ``half_width``: what the interval on the holdout is expected to add to the drop, from how the samples' scores differ from the
    original's; ``None`` where there are none.
    """

    plan: Plan
    origin: str = ""
    status: Literal["met", "missed", "failed"]
    measurement: Measurement | None = None
    predicted_loss: float | None = None
    measured_loss: float | None = None
    predicted: dict[str, float] = {}
    layer_ms: dict[str, float] = {}
    agreement: Agreement | None = None
    fidelity: Agreement | None = None
    half_width: float | None = None
    violations: tuple[Violation, ...] = ()
    error: str = ""
    seconds: float = 0.0
    environment: dict[str, str] = {}

    def changes(self, quality: float) -> tuple[float, float] | None:
        """What was lost of the original's ``quality``, and the share of answers that changed; ``None`` where either is not known."""
        if self.measurement is None or self.measurement.quality is None or self.fidelity is None or self.fidelity.top1 is None:
            return None
        return quality - self.measurement.quality, 1 - self.fidelity.top1
