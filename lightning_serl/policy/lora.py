"""Low-rank adapters through peft: their options, adding one to a model, and computing with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_serl.errors import InputError, did_you_mean, reason, short
from lightning_serl.policy.finite import check_finite
from lightning_serl.policy.parts import beside_text, experts, read_by_kernels, routers

# peft is imported in functions: it takes a quarter of the time that importing `lightning_serl.module` does.

#: peft's name of the adapter that is trained.
TRAINED = "default"
# peft's options that LoraOptions has under its own names.
_OURS = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}
_FIXED = {"task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
# These train the base or change its layers: the disabled adapter would be no reference, and engines keep the base.
_CHANGES_BASE = {
    "alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config",
    "target_parameters", "trainable_token_indices",
}  # fmt: skip
_INITIAL_WEIGHTS = (True, False, "gaussian", "orthogonal")
# Layers of experts and their router in former releases of transformers, now parts of one tensor.
_EXPERT_LAYERS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# Names of the modules that hold an adapter's two factors.
_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


# -- options -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (Hu et al., 2106.09685) through peft.

    Args:
        r: Rank of the adapter.
        alpha: Scale; the update is multiplied by ``alpha / r`` (``alpha / sqrt(r)`` with ``use_rslora``).
        dropout: Dropout before the adapter while training.
        target_modules: Module names to adapt, a pattern, or ``all-linear``.
        peft: Any further options of ``peft.LoraConfig`` by name, such as ``use_rslora``, ``use_dora``,
            ``rank_pattern``, ``alpha_pattern``, ``modules_to_save``, ``init_lora_weights``, ``exclude_modules`` and
            ``layers_to_transform``.
        start_from: Directory of an adapter to go on training, as peft saves it. It brings its own rank, scale and
            targets, and a frozen copy of it is the reference policy.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    peft: dict[str, Any] | None = field(default_factory=dict)
    start_from: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"model.lora.r must be at least 1, got {self.r}")
        if self.alpha <= 0:
            raise ValueError(f"model.lora.alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout must be at least 0 and below 1, got {self.dropout}")

    def config(self) -> Any:
        """The ``peft.LoraConfig`` of these options, or of the adapter to start from; refuses bad options by name."""
        from peft import LoraConfig

        if self.start_from is not None:
            return _stored_config(self.start_from)
        further = self.peft or {}
        for name, value in further.items():
            _check_peft_option(name, value)
        try:
            config = LoraConfig(
                task_type="CAUSAL_LM", **{theirs: getattr(self, ours) for theirs, ours in _OURS.items()}, **further
            )
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(f"model.lora.peft is refused by peft ({reason(error)}); change the option") from error
        _check_base_stays(config, "model.lora.peft")
        return config


def _check_peft_option(name: str, value: Any) -> None:
    """Refuse an option that peft does not have, that has another name here, or of the wrong kind."""
    from peft import LoraConfig

    where = f"model.lora.peft.{name}"
    if name in _OURS:
        raise InputError(f"{where} is an option of model.lora: set model.lora.{_OURS[name]} instead")
    known = {n for n, f in LoraConfig.__dataclass_fields__.items() if f.init} - _FIXED
    if name not in known:
        advice = did_you_mean(str(name), sorted(known)) or "; see peft.LoraConfig for its options"
        raise InputError(f"model.lora.peft has no option {short(str(name))}{advice}")
    default = getattr(LoraConfig(), name)
    for kind, expected in ((bool, "true or false"), (dict, "a mapping")):
        if isinstance(default, kind) and not isinstance(value, kind) and name != "init_lora_weights":
            raise InputError(f"{where} must be {expected}, got {short(str(value))}")


def _check_base_stays(config: Any, where: str) -> None:
    """Refuse options that train or rewrite weights of the base."""
    if config.init_lora_weights not in _INITIAL_WEIGHTS:
        raise InputError(
            f"{where}: init_lora_weights {config.init_lora_weights!r} rewrites the base or needs data, but the base "
            "must not change; use true, false, gaussian or orthogonal"
        )
    if config.bias != "none":
        raise InputError(f"{where}: bias {config.bias!r} trains weights of the base, which must not change; use none")
    for name in sorted(_CHANGES_BASE):
        if getattr(config, name, None):
            raise InputError(f"{where}: {name} changes the layers of the base, which is not supported; leave it out")


def _stored_config(directory: str) -> Any:
    from peft import LoraConfig, PeftConfig

    where, path = f"model.lora.start_from {short(directory)}", Path(directory).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise InputError(
            f"{where} is no directory with an adapter_config.json; give one that peft has saved, or an export of form "
            "adapter"
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
    except Exception as error:  # damaged files raise whatever the library that reads them raises
        raise InputError(f"{where} cannot be read ({reason(error)})") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"{where} is no LoRA adapter but {config.peft_type.value}")
    _check_base_stays(config, where)
    config.inference_mode = False
    return config


# -- adding an adapter -------------------------------------------------------------------------------------------------


def add_lora(model: nn.Module, options: LoraOptions, load: bool = True) -> nn.Module:
    """Freeze a model and wrap it in a new adapter, or in the one to start from, with its weights if ``load``.

    Raises :class:`InputError` if the options match no layer, or the adapter to start from is of another model.
    """
    from peft import get_peft_model

    config = options.config()
    config.base_model_name_or_path = None  # set by peft, which would warn of a base of another name
    linear = sorted({_leaf(n) for n, m in model.named_modules() if isinstance(m, nn.Linear)})
    known = short(", ".join(linear))[1:-1]
    left_out = _leave_out(model, config)
    _check_targets(model, config, known)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]
    targets = f"model.lora.target_modules {short(str(options.target_modules))}"
    try:
        adapted = get_peft_model(model, config)
    except re.error as error:
        raise InputError(f"{targets} is no pattern ({reason(error)}); linear layers: {known}") from error
    except ValueError as error:
        raise InputError(f"{targets} cannot be adapted ({reason(error)}); linear layers: {known}") from error
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    if tied and any(hasattr(end, "base_layer") or hasattr(end, "modules_to_save") for end in ends):
        raise InputError(
            "model.lora.target_modules or modules_to_save names the embedding or output layer, which share one tensor "
            "in this model; leave both out, since merging one would change the other"
        )
    _check_patterns(adapted, config)
    if options.start_from is not None and load:
        _load(adapted, options.start_from)
    if left_out and load:
        rank_zero_info(f"model.lora adapts {left_out}")
    return adapted


def untie_for(model: Any, options: LoraOptions) -> None:
    """Give the output layer a separate tensor, if an adapter changes it or the embedding it shares one with.

    peft keeps an adapted output layer or embedding apart from the other one, so that a model which shares one tensor
    between them could not hold the merged weights.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    config = options.config()
    everything = isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"
    names = [name for name, module in model.named_modules() if module is head or module is embedding]
    saved = config.modules_to_save or ()
    targeted = () if everything else (name for name in names if check_target_module_exists(config, name))
    if any(targeted) or any(_named(name, end) for name in names for end in saved):
        head.weight = nn.Parameter(head.weight.detach().clone())
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False


def _leave_out(model: nn.Module, config: Any) -> str:
    """Take out of the targets what cannot or should not be adapted; returns it in words, "" for nothing.

    Fused experts are no layers that can be adapted; a router that moves would choose experts for which the frozen ones
    were not trained; a vision tower gets no gradient; Mamba's kernels skip an adapter around some projections.
    A model without such parts keeps its targets as they are.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    wanted, head = config.target_modules, model.get_output_embeddings()  # type: ignore[operator]
    everything = isinstance(wanted, str) and wanted.lower() == "all-linear"
    blocks, media, projections = experts(model), beside_text(model), read_by_kernels(model) if everything else []
    if not (blocks or media or projections):
        return ""
    apart, renamed = {*blocks, *media, *projections, *routers(model)}, _renamed_by_peft(model) if blocks else set()
    inside, named = tuple(f"{name}." for name in apart), dict(model.named_modules())
    if everything:
        matched = [n for n, m in named.items() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    else:
        matched = [n for n in named if n and check_target_module_exists(config, n)]
    chosen = [n for n in matched if n not in apart and not n.startswith(inside) and _leaf(n) not in renamed]
    inner = (
        _EXPERT_LAYERS | {_leaf(n) for name in blocks for n, _ in named[name].named_parameters()} if blocks else set()
    )
    listed = [] if isinstance(wanted, str) else [t for t in wanted if not any(_named(n, t) for n in named)]
    unknown = [t for t in listed if _leaf(t) not in inner]
    if not (chosen or unknown) and (matched or listed):
        raise InputError(
            f"model.lora.target_modules {short(str(wanted))} names only experts, routers or parts that no text passes, "
            "which keep their weights; name layers of attention, or use all-linear"
        )
    leaves = {_leaf(n) for n in chosen}
    exact = {n for n in named if _leaf(n) in leaves} != set(chosen)
    config.target_modules = {*(chosen if exact else leaves), *unknown}
    said = [f"experts and routers of {len(blocks)} layers"] if blocks else []
    said += [f"{' and '.join(sorted({_leaf(n) for n in projections}))} of Mamba layers"] if projections else []
    return f"{', '.join(sorted(leaves))}; without an adapter stay {', '.join([*said, *media])}"


def _renamed_by_peft(model: nn.Module) -> set[str]:
    """Names of layers that peft takes for the experts of former releases of transformers, in this architecture."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    trial = LoraConfig(target_modules=sorted(_EXPERT_LAYERS))
    convert_peft_config_for_transformers(trial, model, None)
    return _EXPERT_LAYERS - set(trial.target_modules or ())


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _check_targets(model: nn.Module, config: Any, known: str) -> None:
    """Refuse listed modules that the model does not have; peft accepts a list if any of it matches."""
    options = {"target_modules": config.target_modules, "peft.modules_to_save": config.modules_to_save}
    for option, targets in options.items():
        for target in () if isinstance(targets, str) else sorted(targets or ()):
            if not any(_named(n, target) for n, _ in model.named_modules()):
                raise InputError(f"model.lora.{option} {short(target)} matches no layer; linear layers: {known}")


def _check_patterns(adapted: nn.Module, config: Any) -> None:
    layers = [n for n, m in adapted.named_modules() if hasattr(m, "lora_A")]
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, name):
            if not any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers):
                raise InputError(f"model.lora.peft.{name} {short(pattern)} matches no adapted layer; change it")


def _load(model: Any, directory: str) -> None:
    """Read the weights of the trained adapter from files."""
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    where = f"model.lora.start_from {short(directory)}"
    try:
        state = load_peft_weights(str(Path(directory).expanduser()), device="cpu")
        wanted, held = set(get_peft_model_state_dict(model, save_embedding_layers=False)), model.state_dict()
        # peft saves a copy of the base's embedding beside an adapter of it
        spare = {n: t for n, t in state.items() if n not in wanted and n in held and held[n].shape == t.shape}
        copies = {n for n, t in spare.items() if torch.equal(held[n].cpu(), t.to(held[n].dtype))}
        state = {n: t for n, t in state.items() if n not in copies}
        odd = sorted(set(state) ^ wanted)
        if odd:
            raise InputError(f"{where} is of another model: {len(odd)} tensors differ in name, such as {odd[0]}")
        check_finite(state, f"the adapter of {where}")
        set_peft_model_state_dict(model, state)
    except InputError:
        raise
    except Exception as error:  # damaged or foreign files raise whatever the library that reads them raises
        raise InputError(f"{where} does not fit the model or is damaged ({reason(error)})") from error
    config = model.peft_config[TRAINED]
    rank_zero_info(
        f"adapter of {directory}: rank {config.r}, alpha {config.lora_alpha}; its own options count, not model.lora's"
    )


# -- computing with an adapter -----------------------------------------------------------------------------------------


@contextmanager
def adapter_in_autocast_dtype(model: nn.Module, device: str) -> Iterator[None]:
    """Replace a device type's autocast by an adapter that is cast once, for many small passes without gradients.

    Where the base already has autocast's dtype, autocast only casts the adapter's factors, in every layer of every
    pass; casting them once gives the same numbers. Any other model keeps its autocast.
    """
    dtype = torch.get_autocast_dtype(device)
    to_cast = [
        (path, module, name, parameter)
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype
    ]
    only_factors = all(not _FACTORS.isdisjoint(path.split(".")) for path, *_ in to_cast)
    if not (torch.is_autocast_enabled(device) and only_factors):
        yield
        return
    try:
        # other parameters, not other data: DDP's hooks are on those that train
        for _, module, name, parameter in to_cast:
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for _, module, name, parameter in to_cast:
            module._parameters[name] = parameter
