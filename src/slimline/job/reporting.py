"""The report with its reasons, and the files that go with it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy import stats

from slimline.core.contracts import Artifact
from slimline.core.formats import Affine, Codebook, Masked, Product
from slimline.core.plan import Method, Plan
from slimline.core.result import (
    UNPRICED,
    Alternative,
    ArchiveStage,
    ArtefactFile,
    Cost,
    DecisionRecord,
    Elsewhere,
    Point,
    Prediction,
    Predictions,
    Price,
    Reference,
    Refused,
    Report,
    Verdict,
    ratios,
)
from slimline.core.site import Site
from slimline.core.trial import Measurement, Trial
from slimline.errors import ModelError
from slimline.job.certificate import Outcome
from slimline.job.closeup import look_closer
from slimline.job.context import Job, environment, sha256
from slimline.job.finishing import Finalist
from slimline.job.found import Found, believed_drop
from slimline.job.recovery import objective
from slimline.model import stored
from slimline.model.program import Program
from slimline.model.trace import quiet, trace
from slimline.numerics.entropy import coded_bytes
from slimline.report import operations
from slimline.report.sentence import bytes_text, obstacle_texts, only_text, percent_text, sentence
from slimline.search.prices import alternatives, prices
from slimline.search.space import Option
from slimline.search.timing import per_layer
from slimline.search.workshop import Built

PRICING = 0.02  # of the time budget, and at least five seconds (ResNet-20: four): how long may be solved again for the report
SURELY = 0.98  # of the objective: less is better by more than noise


def build_report(
    job: Job,
    found: Found,
    outcome: Outcome,
    base: Measurement,
    result: Measurement,
    compared: dict[str, Reference],
    finalists: Sequence[Finalist],
    *,
    interrupted: bool,
    elsewhere: Elsewhere | None = None,
) -> Report:
    """Everything together. The runtime's profile of the result is read, prices are solved for, and what cannot be said is noted in ``job``."""
    obstacles = obstacle_texts(job.request.budget.violations(result), result.latency_ms.estimated, outcome.interval, outcome.baseline_quality)
    verdict: Verdict = outcome.verdict
    if not (interrupted and outcome.certificate is None) and [v for v in job.request.budget.violations(result) if v.quantity != "drop"]:
        verdict = "fail"
    schedule = found.schedule.model_copy(update={"spent": dict(job.spent), "schedule_truncated": job.truncated})
    return Report(
        slimline=environment()["slimline"],
        verdict=verdict,
        sentence=sentence(verdict, base, result, outcome.interval, obstacles, job.request.budget.minimize)
        + (f" {only_text(elsewhere, base.quality)}" if elsewhere is not None else ""),
        interrupted=interrupted,
        model=job.source.name,
        target=job.target.name,
        device=job.request.device,
        metric=job.metric_name,
        minimize=job.request.budget.minimize,
        seed=job.request.seed,
        command=job.request.command,
        schedule=schedule,
        budget=job.request.budget.model_dump(mode="json"),
        baseline=base,
        compressed=result,
        ratio=ratios(base, result),
        compression_ratio=result.size_bytes / base.size_bytes,
        drop=outcome.interval,
        certificate=outcome.certificate,
        elsewhere=elsewhere,
        agreement=outcome.close,
        fidelity=outcome.fidelity,
        references=compared,
        pareto=_points(job, found, outcome, finalists),
        archive_stages=_archive_stages(job),
        decisions=_decisions(job, found, outcome.finalist),
        refused=tuple(Refused(where=r.where, reason=r.reason) for r in found.refused),
        predictions=_predictions(found),
        prices=_prices(job, found, outcome),
        losses_in=_losses_in(job),
        cheaper=_cheaper(job, found, outcome.finalist.trial),
        close_up=look_closer(job, outcome),
        artefact=ArtefactFile(file=f"model{outcome.finalist.artifact.suffix}", sha256=sha256(outcome.finalist.artifact.payload)),
        not_checked=tuple(job.notes),
        environment=environment(),
        obstacles=obstacles,
    )


def _points(job: Job, found: Found, outcome: Outcome, finalists: Sequence[Finalist]) -> tuple[Point, ...]:
    last = {f.trial.plan.digest: f for f in finalists}
    base = found.baseline_measurement.quality
    trials = [t for t in found.trials if t.measurement is not None] + [f.trial for f in finalists]
    best = _front_of(job, found, trials)
    points = []
    for trial in trials:
        m = trial.measurement
        assert m is not None
        finalist = last.get(trial.plan.digest)
        done = finalist is not None and trial is finalist.trial
        points.append(
            Point(
                plan=trial.plan.digest,
                label=_label(trial),
                size_bytes=m.size_bytes,
                download_bytes=m.download_bytes,
                latency_ms=m.latency_ms.median,
                memory_bytes=m.memory_bytes,
                macs=m.macs,
                quality=m.quality,
                drop=None if base is None or m.quality is None else base - m.quality,
                chosen=done and finalist is outcome.finalist,
                on_front=id(trial) in best,
                fidelity=trial.fidelity,
            )
        )
    return tuple(points)


def _front_of(job: Job, found: Found, trials: Sequence[Trial]) -> set[int]:
    """Trials that no other beats in size (in download, too, where that counts), latency and quality at once; of few samples drops are not believed (``believed_drop``)."""
    drop, coded = believed_drop(job, found), "download" in job.request.budget.asked

    def corner(t: Trial) -> tuple[float, float, float, float]:
        m = t.measurement
        assert m is not None
        return m.size_bytes, m.download_bytes if coded else 0.0, m.latency_ms.median, 0.0 if m.quality is None else drop(m.quality, t.fidelity)

    corners = [(id(t), corner(t)) for t in trials]
    return {i for i, a in corners if not any(all(x <= y for x, y in zip(b, a, strict=True)) and b != a for _, b in corners)}


def _stages_told(job: Job) -> Iterable[dict[str, Any]]:
    """What the journal has of the stages of training for a small archive; a run that goes on goes through them again."""
    return {e["plan"]: e for e in job.journal.events("price")}.values()


def _archive_stages(job: Job) -> tuple[ArchiveStage, ...]:
    return tuple(ArchiveStage(plan=e["plan"], price=e["price"], download_bytes=e["download"], drop=e["drop"], kept=e["kept"]) for e in _stages_told(job))


def _label(trial: Trial) -> str:
    counts: dict[str, int] = {}
    for d in trial.plan.decisions:
        name = d.method.name + (f" {bits} bits" if (bits := getattr(d.method, "bits", None)) else "")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{n} x {name}" for name, n in counts.items()) or "nothing changed"


def _predictions(found: Found) -> Predictions:
    known = [t for t in found.trials if t.predicted_loss is not None and t.measured_loss is not None and t.measurement is not None]
    pairs = tuple(Prediction(plan=t.plan.digest, predicted=t.predicted_loss or 0.0, measured=t.measured_loss or 0.0) for t in known)
    correlation = float(stats.spearmanr([p.predicted for p in pairs], [p.measured for p in pairs]).statistic) if len(pairs) > 2 else None

    def error(name: str, quantity: Any) -> float | None:
        ratios_ = [abs(t.predicted[name] / t.measurement.cost(quantity) - 1) for t in known if name in t.predicted and t.measurement is not None]
        return sum(ratios_) / len(ratios_) if ratios_ else None

    correlation = None if correlation is None or math.isnan(correlation) else correlation
    return Predictions(candidates=pairs, rank_correlation=correlation, size_error=error("size", "size"), latency_error=error("latency", "latency"))


def _prices(job: Job, found: Found, outcome: Outcome) -> tuple[Price, ...]:
    """What more of each budget would buy; nothing where a plan was given, since then there is nothing else to choose, and it is said."""
    choice = found.space.choice(outcome.finalist.trial.plan)
    if job.request.plan is not None:
        job.note(f"{UNPRICED}a given plan was carried out, with nothing else to choose from; the report of the run that searched for it has its prices")
        return ()
    if outcome.finalist.trial.plan.recovery.penalty:
        job.note(
            f"{UNPRICED}all weights were trained together for a small archive, so none has a price of its own; what the stages of that came to tells what more drop buys"
        )
        return ()
    if choice is None:
        job.note(f"{UNPRICED}the plan is not made of the options that were measured")
        return ()
    drop = outcome.interval.observed if outcome.interval is not None else None
    start = time.monotonic()
    made = prices(
        found.space, job.request.budget, choice, found.trials, drop=drop, over=lambda: time.monotonic() - start > max(5.0, PRICING * job.clock.seconds)
    )
    if not made or made[-1].quantity != "loss":
        job.note(f"{UNPRICED}no time was left to solve again")
    return made


def _cheaper(job: Job, found: Found, taken: Trial) -> int:
    """Candidates that met every limit but the drop, and were better than what was taken by more than two measurements of one file differ; stages of training for a small archive, too."""
    fit = [t for t in found.trials if t.measurement is not None and not [v for v in t.violations if v.quantity != "drop"]]
    m = taken.measurement
    smaller = [e for e in _stages_told(job) if m is not None and e["download"] < SURELY * m.download_bytes and e.get("fits", True)]
    return sum(objective(job, found, t) < SURELY * objective(job, found, taken) for t in fit) + len(smaller)


def _rank(method: Method) -> int | None:
    """A factorisation's rank where it is a number; ``tucker`` has two, chosen by the weights."""
    found = getattr(method, "rank", None)
    return found if isinstance(found, int) else None


def _decisions(job: Job, found: Found, finalist: Finalist) -> tuple[DecisionRecord, ...]:
    budget = job.request.budget
    before = per_layer(job.target.operations(found.baseline, job.usual, threads=budget.threads), found.baseline_measurement.latency_ms)
    assert finalist.trial.measurement is not None
    after = per_layer(job.target.operations(finalist.artifact, job.usual, threads=budget.threads), finalist.trial.measurement.latency_ms)
    plan, space = finalist.trial.plan, found.space
    choice = space.choice(plan) or space.nothing
    total = max(space.loss(choice), 1e-9)
    given = job.request.plan is not None  # then nothing was chosen, so nothing was left out for a reason
    trained_small = bool(plan.recovery.penalty) and not given  # nor where all weights were trained together for a small archive
    contenders: Sequence[tuple[Alternative, ...]] = [()] * len(space.places) if given or trained_small else alternatives(space, budget, choice, found.trials)
    records = []
    for place, taken, rivals in zip(space.places, choice, contenders, strict=True):
        site, option = place.site, place.options[taken]
        others = sorted([o for i, o in enumerate(place.options) if i != taken], key=lambda o: o.loss)
        use = found.workshop.program.weights.get(site.id)
        new = finalist.built.program.weights.get(site.id)
        out = site.id in finalist.built.read  # channels that added nothing in the end, whatever the plan says
        gone = site.kind != "block" and any(site.module == b or site.module.startswith(b + ".") for b in _dropped(plan))
        names = [n for n in finalist.built.program.weights if n == site.id or (option.factors and n.startswith(site.module + "."))]
        stored = sum(_stored_bytes(finalist.built, n) for n in names)
        cost = Cost(loss_predicted=option.loss)
        if use is not None:
            cost = Cost(
                bytes_before=4 * math.prod(use.shape),
                bytes_predicted=0 if gone else sum(map(option.format.estimate, option.factors or (new.shape if new is not None else use.shape,))),
                bytes_measured=0 if gone else stored,
                ms_before=before.get(site.id),
                ms_predicted=None
                if gone
                else space.timing.of(site.id, option.execute, math.prod(new.shape) / math.prod(use.shape) if new is not None else 1.0),
                ms_measured=0.0 if gone else sum(after.get(n, 0.0) for n in names) if names else None,
                loss_predicted=option.loss,
            )
        decision = option.decisions[0] if option.decisions else None
        records.append(
            DecisionRecord(
                site=site.id,
                op=site.op,
                method="removed" if gone else "taken out" if out else decision.method.name if decision is not None else "keep",
                label="removed" if gone else "taken out" if out else option.label,
                options={} if gone or decision is None else decision.method.model_dump(mode="json"),
                why=_why_small(finalist.built, site) if trained_small or out else _why(site.kind, option, others, total, gone, given, _losses_in(job)),
                before=_shape(use.shape) if use is not None else _present(site),
                after="removed" if gone or option.dropped else _shape(new.shape) if new is not None else _present(site, option, finalist.built),
                bits=None if gone or use is None else option.format.bits,
                rank=_rank(decision.method) if decision is not None and not gone else None,
                width=(site.features, left) if (left := _left(site, option, finalist.built)) is not None else None,
                cost=cost,
                considered=() if given or trained_small else tuple(f"{o.label}: loss {o.loss:.4g}" for o in others[:6]),
                alternatives=rivals,
            )
        )
    return tuple(records)


def _stored_bytes(built: Built, name: str) -> int:
    """Bytes of a weight's parts in the artefact, or of the float weight."""
    encoded = built.stored.encoded.get(name) if built.stored is not None else None
    return encoded.format.nbytes(encoded.parts) if encoded is not None else 4 * built.program.parameter(name).numel()


def _dropped(plan: Plan) -> list[str]:
    return [d.site.removesuffix("#block") for d in plan.decisions if d.method.name == "block_drop"]


def _left(site: Site, option: Option, built: Built) -> int | None:
    """The channels or features that stay; ``None`` where all do."""
    return len(built.read[site.id]) if site.id in built.read else option.channels


def _present(site: Site, option: Option | None = None, built: Built | None = None) -> str:
    """What a site that is no weight comes to, before or with an option."""
    count = _left(site, option, built) if option is not None and built is not None else site.features
    if count:
        return f"{count} {'features' if site.kind == 'input' else 'channels'}"
    if site.kind not in ("input", "model") or (site.kind == "model" and (option is None or not option.decisions)):
        return "present"
    return option.label if option is not None and option.decisions else f"{site.shape[1]} positions" if site.tokens else f"{_shape(site.shape[2:])} pixels"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _losses_in(job: Job) -> str:
    return "nats" if job.classes else "relative squared error"


def _why(kind: str, option: Any, others: Sequence[Any], total: float, gone: bool, given: bool = False, unit: str = "nats") -> str:
    """The reason in one sentence, from the numbers that decided."""
    if gone:
        return "it lies in a block that is dropped"
    share = option.loss / total
    cheaper = [o for o in others if o.loss > option.loss]
    spent = f"it loses {option.loss:.2g} {unit}, {percent_text(share)} of what the plan loses before recovery"
    if option.dropped:
        return f"dropping the whole block removes all its time and bytes; {spent}"
    if given and not option.decisions:
        return "the given plan leaves it as it is"
    if not option.decisions:
        if not others:
            return "no method offers anything here"
        least = others[0]
        return f"everything else costs more quality than it saves: the mildest, {least.label}, loses {least.loss:.2g} {unit}"
    text = f"{spent}" if option.loss > 1e-6 else "it loses nothing measurable"
    if cheaper and not given:
        text += f"; the next step, {cheaper[0].label}, would lose {cheaper[0].loss:.2g}"
    milder = [o for o in others if o.loss <= option.loss and o.decisions]
    if milder and kind != "weight" and not given:
        text += f"; a milder one, {milder[-1].label}, would save less"
    if isinstance(option.format, Masked):
        text += "; its zeros save bytes and no time, since the runtime has no sparse kernels"
    elif isinstance(option.format, Codebook | Product):
        text += "; shared values save bytes and no time, since they are decoded when the file is loaded"
    return text


def _why_small(built: Built, site: Site) -> str:
    """What a site of a model that was trained for a small archive takes in it, by the frequencies of its integers."""
    if site.id in built.read:
        return f"trained for a small archive, {site.features - len(built.read[site.id]):,} of its {site.features:,} channels were in the end read by nothing or always the same, and were taken out"
    if site.kind == "channels":
        return "training for a small archive takes out channels that in the end nothing reads or that are always the same: here none"
    if site.kind != "weight":
        return "training for a small archive leaves it as it is"
    encoded = built.stored.encoded.get(site.id) if built.stored is not None else None
    if encoded is None or not isinstance(encoded.format, Affine):
        return "it stays as it is: no grid of integers is offered here"
    values, use = encoded.parts["values"], built.program.weights[site.id]
    outputs = values.movedim(use.axis, 0).flatten(1).any(1)
    rows = "" if outputs.all() or use.op == "embedding" else f", and {int((~outputs).sum()):,} of its {len(outputs):,} outputs read nothing"
    taken = coded_bytes(encoded.parts)
    return f"trained for a small archive: {percent_text(float((values == 0).float().mean()))} of its integers are zero{rows}; one takes {8 * taken / values.numel():.2g} bits, all of them {bytes_text(taken)}"


def decoded(built: Built) -> Program:
    """The float program with the weights that the artefact has: trained, and rounded to what is stored."""
    program = built.program.copy()
    encoded = built.stored.encoded if built.stored is not None else {}
    with torch.no_grad():
        for name, value in program.parameters().items():
            value.copy_(encoded[name].format.decode(encoded[name].parts) if name in encoded else built.training.parameter(name))
    return program


def _operations(job: Job, artifact: Artifact) -> bytes:
    threads = job.request.budget.threads
    found = job.target.operations(artifact, job.usual, threads=threads)
    return operations.dumps(job.target.name, job.target.version(), found, threads).encode()


def around(job: Job, outcome: Outcome) -> dict[str, bytes]:
    """What the source says stays with the artefact, or makes of it; what could not be made is noted."""
    artifact, files = outcome.finalist.artifact, dict(getattr(job.source, "beside", {}))
    try:
        files |= job.source.made_of(artifact.suffix, artifact.payload) if hasattr(job.source, "made_of") else {}
    except ModelError as error:
        job.note(f"the artefact together with what stays as it is was not written: {error.message}")
    return files


def files_of(job: Job, found: Found, outcome: Outcome) -> dict[str, bytes]:
    """The artefact, the plan, what the plan resolved to, and the compressed model as a program that trains."""
    import io

    from safetensors.torch import save

    from slimline.core.edits import Keep
    from slimline.core.site import INPUT
    from slimline.model.apply import kept_positions

    built, plan = outcome.finalist.built, outcome.finalist.trial.plan
    tensors: dict[str, torch.Tensor] = {}
    edits = (*found.workshop.structure_edits(plan.stage("structure")), *found.workshop.keeping(built.read))
    for name, dims in kept_positions(found.workshop.model, edits).items():
        tensors |= {f"keep/{name}/{dim}": torch.tensor(positions, dtype=torch.int64) for dim, positions in dims.items()}
    for edit in edits:
        if isinstance(edit, Keep) and edit.member.parameter.startswith(INPUT):
            tensors[f"keep/{edit.member.parameter}/{edit.member.dim}"] = torch.tensor(edit.member.positions(edit.index), dtype=torch.int64)
    if built.stored is not None:
        for name, encode in built.stored.encoded.items():
            tensors |= {f"parts/{name}/{part}": t.contiguous() for part, t in encode.parts.items()}
    program = decoded(built)
    tensors |= {f"float/{name}": t.detach().contiguous().clone() for name, t in program.parameters().items()}
    stream = io.BytesIO()
    with quiet():
        torch.export.save(trace(program.module, job.usual), stream)
    return {
        **outcome.finalist.artifact.files("model"),
        **(job.target.products(outcome.finalist.artifact, "model") if hasattr(job.target, "products") else {}),
        "operations.json": _operations(job, outcome.finalist.artifact),
        "plan.json": plan.model_dump_json(indent=2).encode(),
        "plan.safetensors": save(tensors),
        "program.pt2": stream.getvalue(),
        **({} if built.stored is None else {"stored.pt2": stored.save(built.stored, job.usual)}),
    }
