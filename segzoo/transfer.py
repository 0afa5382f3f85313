"""Transfer learning: which part of a model is trained, and how fast.

The three scenarios of the textbooks: train from scratch, keep a pretrained encoder as a fixed
feature extractor, or fine-tune it, whole or from one of its stages on. The encoder of a model lies
in `params["backbone"]`; its property `stages` says what is frozen together.

What is fixed runs in inference mode (running statistics in batch norm, no drop-out), and the loss
is differentiated with respect to the rest alone: no gradient, no state of the optimizer and no
weight decay ever exist for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax

from segzoo.encoder import NAME as ENCODER
from segzoo.encoder import apply_with_features, encoder_stages
from segzoo.errors import SegzooError, check_choice, check_positive_int

if TYPE_CHECKING:
    from segzoo.experiment import Experiment

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What of a model is trained, and how fast.

    The weights to transfer are those of the experiment's `init_from`.

    Attributes:
        scenario: "scratch": everything, from random weights; "fixed": all but the encoder;
            "fine_tune": everything, or the encoder from `from_stage` on. By default "fine_tune"
            with `init_from` and "scratch" without.
        from_stage: of fine_tune: the first stage of the encoder that is trained, counted from 0 in
            the order of the data; those before it are fixed.
        backbone_rate: of fine_tune: the learning rate of the encoder's last stage as a factor of
            that of the rest of the model, which is the optimizer's.
        stage_decay: of fine_tune: the learning rate of a stage as a factor of that of the stage
            after it (Howard & Ruder 2018, arXiv:1801.06146, section 3.2: 1 / 2.6).
        cache: of fixed: compute the encoder's features of the training images once and keep them
            in the run folder; there must be no augmentation.
    """

    scenario: Literal["scratch", "fixed", "fine_tune"] | None = None
    from_stage: int = 0
    backbone_rate: float = 1.0
    stage_decay: float = 1.0
    cache: bool = False

    def __post_init__(self) -> None:
        check_choice("transfer.scenario", self.scenario, (None, "scratch", "fixed", "fine_tune"))
        check_positive_int("transfer.from_stage", self.from_stage, minimum=0)
        for name, largest in (("backbone_rate", math.inf), ("stage_decay", 1.0)):
            value = getattr(self, name)
            if not (0 < value <= largest and math.isfinite(value)):
                limit = "" if largest == math.inf else f" and at most {largest:g}"
                raise SegzooError(
                    f"transfer.{name} is {value!r}; expected a number above 0{limit}."
                )
        for scenario, names in (
            ("fine_tune", ("from_stage", "backbone_rate", "stage_decay")),
            ("fixed", ("cache",)),
        ):
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in names and value != field.default and self.scenario != scenario:
                    raise SegzooError(
                        f"transfer.{field.name} is {value!r}, but transfer.scenario is "
                        f"{self.scenario!r}; it is for {scenario!r} alone."
                    )


# --- what is trained -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """How fast each part of a model's encoder is trained.

    Attributes:
        rates: for each direct submodule of the encoder its learning rate as a factor of that of
            the rest of the model; 0 is fixed. Empty where all are 1.
    """

    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def fixed(self) -> frozenset[str]:
        """The encoder's submodules that are not trained."""
        return frozenset(name for name, rate in self.rates.items() if rate == 0)

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """Returns the trained part of a tree of parameters, and the fixed one; `union` joins them.

        Both are trees with the same paths as before; with nothing fixed the first is `params`.
        """
        if not self.fixed:
            return params, {}
        encoder = params[ENCODER]
        kept = {name: tree for name, tree in encoder.items() if name in self.fixed}
        rest = {name: tree for name, tree in encoder.items() if name not in self.fixed}
        trained = {name: tree for name, tree in params.items() if name != ENCODER}
        return (trained | {ENCODER: rest} if rest else trained), {ENCODER: kept}

    def scale(self, updates: Tree) -> Tree:
        """Returns the optimizer's updates of the trained parameters, each times its factor.

        The whole step is scaled, so schedule and weight decay are scaled with it.
        """
        encoder = updates.get(ENCODER, {})
        scaled = {
            name: jax.tree.map(lambda update, rate=self.rates[name]: rate * update, tree)
            for name, tree in encoder.items()
            if self.rates.get(name, 1.0) != 1.0
        }
        return union(updates, {ENCODER: scaled}) if scaled else updates

    def apply(
        self,
        model: nn.Module,
        variables: Tree,
        image: jax.Array,
        features: Mapping[int, jax.Array] | None = None,
        **options: Any,
    ) -> Any:
        """Returns `model.apply(variables, image, **options)` with what is fixed in inference mode.

        Args:
            model: the module.
            variables: its variables.
            image: `[B, *S, C]`, normalised.
            features: of a fixed encoder, by position, so that it need not be computed again; none
                to compute it.
            **options: `train`, `mutable`, `rngs`.

        Raises:
            SegzooError: when a fixed layer does not take `train=` by keyword.
        """
        if features:
            return apply_with_features(model, variables, image, features, **options)
        if not self.fixed:
            return model.apply(variables, image, **options)
        with nn.intercept_methods(self._in_inference_mode):
            return model.apply(variables, image, **options)

    def _in_inference_mode(
        self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        """Answers a call of a module's method; see `flax.linen.intercept_methods`."""
        module = context.module
        if not self._is_fixed(module):
            return call(*args, **kwargs)
        if getattr(module, "use_running_average", None) is False:
            raise SegzooError(
                f"{'/'.join(module.path)} was made to train, whatever its caller is told; to be "
                "fixed it must take train= by keyword, as segzoo.layers.Norm does."
            )
        return call(*args, **{**kwargs, **{k: v for k, v in _INFERENCE.items() if k in kwargs}})

    def _is_fixed(self, module: nn.Module) -> bool:
        if module.scope is None or module.path[:1] != (ENCODER,):
            return False
        if len(self.fixed) == len(self.rates):
            return True
        return bool(self.fixed.intersection(module.path[1:2]))


_INFERENCE = {"train": False, "deterministic": True, "use_running_average": True}


def make_plan(experiment: Experiment, model: nn.Module, image_shape: tuple[int, ...]) -> Plan:
    """Returns what an experiment trains of its model.

    Args:
        experiment: `transfer` is read from it.
        model: the experiment's model; nothing of it is run.
        image_shape: `(*S, C)` of a training image.

    Raises:
        SegzooError: when the model has no encoder, or the encoder not so many stages.
    """
    transfer = experiment.transfer
    if transfer == Transfer(transfer.scenario) and transfer.scenario != "fixed":
        return Plan()
    stages = encoder_stages(model, image_shape, experiment.model)
    if transfer.scenario == "fixed":
        return Plan({name: 0.0 for names in stages for name in names})
    if transfer.from_stage >= len(stages):
        raise SegzooError(
            f"transfer.from_stage is {transfer.from_stage}; expected 0 to {len(stages) - 1}, as "
            f"the encoder of {experiment.model!r} has {len(stages)} stages."
        )
    return Plan(
        {
            name: 0.0
            if stage < transfer.from_stage
            else transfer.backbone_rate * transfer.stage_decay ** (len(stages) - 1 - stage)
            for stage, names in enumerate(stages)
            for name in names
        }
    )


def union(one: Any, other: Any) -> Any:
    """Returns a tree with the leaves of both; where both have one, `other`'s."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    return {**one, **{k: union(one[k], v) if k in one else v for k, v in other.items()}}
