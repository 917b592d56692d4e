"""A plan is data: what was decided where, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from slimline.core.data import Data, checked
from slimline.core.registry import find
from slimline.errors import UsageError

if TYPE_CHECKING:
    from slimline.core.edits import Edit
    from slimline.core.site import Kind, Site

Stage = Literal["structure", "numerics"]


class Method(Data):
    """Base of all methods: a frozen options object with pure functions.

    A subclass sets the class variables, declares its options as fields with defaults, and defines
    ``candidates`` and ``rewrite``. It never changes a model and never hears of a runtime.

    ``rewrite(model, site, statistics)`` gets the ``nn.Module`` in the structure stage and the exported
    ``Program`` in the numerics stage, reads it, and returns the edits that it wants there.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage] = "numerics"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be there: ``calibration`` (samples), ``labels``, ``train`` (samples that recovery can train on)."""
    summary: ClassVar[str] = ""
    """One line for ``slimline methods``: what it is good for."""
    reference: ClassVar[str] = ""
    """The paper."""

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """The options that this method offers at ``site``; none where it does not apply."""
        raise NotImplementedError

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The edits wanted at ``site``.

        Raises:
            UnsupportedSite: these options are not legal here.
        """
        raise NotImplementedError

    @property
    def gains(self) -> tuple[str, ...]:
        """The quantities that this option can bring down; it is offered where one of them is limited or minimised. Empty: any of them."""
        return ()

    @property
    def caveat(self) -> str:
        """What a certificate says nothing about where a plan has this option, or nothing: it stands under what was not checked."""
        return ""

    def reduced(self) -> Method:
        """The same for a runtime whose integer kernels saturate where weights use all of their 8 bits."""
        return self

    @property
    def label(self) -> str:
        """Short text for tables: the name and the options that differ from the defaults."""
        given = {k: v for k, v in self.model_dump(mode="json").items() if v != type(self).model_fields[k].default}
        return self.name + (f"({', '.join(f'{k}={v:.3g}' if isinstance(v, float) else f'{k}={v}' for k, v in given.items())})" if given else "")


class Decision(Data):
    """``method``, with its options, at ``site``."""

    site: str
    method: pydantic.SerializeAsAny[Method]

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "name" in value:
            options = dict(value)
            return find("methods", options.pop("name")).model_validate(options)
        return value

    @pydantic.field_serializer("method", mode="plain")
    def _with_name(self, method: Method) -> dict[str, Any]:
        return {"name": method.name, **method.model_dump(mode="json")}


class Fingerprint(Data):
    """What a plan was made for: digests of the architecture, of the weights, and of the data."""

    architecture: str
    weights: str
    data: str = ""


class Recovery(Data):
    """Training after compression. ``steps`` of ``batch`` samples; 0 steps: calibration only. ``penalty``: nats of loss for a mean coded bit of a weight, at last (``steps`` are
    then of all stages so far, with those that were not gone on from). ``gradual``: masks grow while
    training with quantizers begins, in place of being there at once."""

    steps: int = pydantic.Field(default=0, ge=0)
    batch: int = pydantic.Field(default=128, gt=0)
    learning_rate: float = pydantic.Field(default=0.02, gt=0)
    penalty: float = pydantic.Field(default=0.0, ge=0)
    gradual: bool = False

    @pydantic.model_serializer(mode="wrap")
    def _without_what_is_not_used(self, write: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No ``penalty`` and no ``gradual`` where there is none: plans keep the digests that they had before there was one."""
        return {name: value for name, value in write(self).items() if name not in ("penalty", "gradual") or value}


class Plan(Data):
    """An immutable list of decisions, with the recovery that follows them.

    Example:
        >>> plan = Plan(model=Fingerprint(architecture="a", weights="w"))
        >>> Plan.model_validate_json(plan.model_dump_json()) == plan
        True
    """

    schema_version: Literal[1] = 1
    model: Fingerprint
    decisions: tuple[Decision, ...] = ()
    recovery: Recovery = Recovery()
    seed: int = 0

    @classmethod
    def read(cls, given: Path | Mapping[str, Any]) -> Plan:
        """A plan that an earlier run wrote: its ``plan.json``, or the content of one.

        Raises:
            UsageError: the file cannot be read, or holds something else.
        """
        file = given if isinstance(given, Path) else "The given plan"
        try:
            with checked(f"{file} is not a plan", "Give the plan.json of an earlier run."):
                return cls.model_validate_json(given.read_bytes()) if isinstance(given, Path) else cls.model_validate(given)
        except OSError as error:
            raise UsageError(f"The plan {file} cannot be read: {error.strerror}.", hint="Give the plan.json of an earlier run.") from error

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, 16 hex digits: names the trial."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, site: str) -> tuple[Method, ...]:
        """What was decided at a site."""
        return tuple(d.method for d in self.decisions if d.site == site)

    def stage(self, stage: Stage) -> tuple[Decision, ...]:
        """The decisions of one stage, in order."""
        return tuple(d for d in self.decisions if d.method.stage == stage)
