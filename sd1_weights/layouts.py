"""Any layout in, canonical names out; nothing is judged here but the files themselves.

- `compvis`: one file, safetensors or torch's, with all three networks under the names of the
  original code, perhaps with averaged weights (EMA) beside;
- `diffusers`: a folder with `unet/`, `vae/` and `text_encoder/`, each with `config.json` and a file
  of weights under today's names or those of older versions;
- `clip`: the text encoder alone, as transformers saves it: one file, or a folder with its config;
- `toy`: the file of `sd1_weights.toy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd1_weights import names
from sd1_weights.config_files import read_config
from sd1_weights.configs import BEYOND_SIZES
from sd1_weights.errors import CheckpointError, listed
from sd1_weights.folders import Folder
from sd1_weights.safetensors_file import LENGTH, mapped, read_safetensors
from sd1_weights.schedule import check_schedule
from sd1_weights.sizes import Shapes, names_of, recognised, sizes
from sd1_weights.stored import WEIGHTS, Stored
from sd1_weights.torch_file import is_torch, not_weights, read_torch
from sd1_weights.toy import TOKENS, split_toy

COMPVIS, DIFFUSERS, CLIP, TOY = "compvis", "diffusers", "clip", "toy"

_PREFIXLESS = "text_model."
_POSITIONS = "embeddings.position_ids"
CONTEXT = 77
"""Position ids of the text encoder: 0 to 76."""


@dataclass(frozen=True)
class Network:
    """The weights of one network, by canonical name.

    Attributes:
        name: `unet`, `vae` or `text_encoder`.
        tensors: What the file has of it; a tensor's `key` is its name there.
        unexpected: Keys that no weight of any size has.
        unread: Keys that are no weights of SD v1, and are not read.
        file: The file of the weights.
        config: Its `config.json`, or None in a single file.
        spelling: Returns what the file calls, or would call, a weight of a canonical name.
    """

    name: str
    tensors: dict[str, Stored]
    file: str
    unexpected: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    config: Path | None = None
    spelling: Callable[[str], str] = str

    @property
    def shapes(self) -> Shapes:
        """Return the shapes as they are in the file."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def size(self) -> str:
        """Return the known size that the weights have.

        Raises:
            CheckpointError: They have none.
        """
        return recognised(self.name, self.shapes, self.file)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Return the numbers of its config that its size does not have.

        Returns:
            By the names of `golden/spec/variants.json` the config's number and the size's; nothing
            of a single file, which has no config.

        Raises:
            CheckpointError: The config is not that of an SD v1 network, or the size is unknown.
        """
        if self.config is None:
            return {}
        known = BEYOND_SIZES | sizes(self.name)[self.size]
        pairs = {
            key: (own, known.get(key, own))
            for key, own in read_config(self.name, self.config).items()
        }
        return {
            key: (own, other)
            for key, (own, other) in pairs.items()
            if own != (tuple(other) if isinstance(other, list) else other)
        }

    def faults(self, wanted: Shapes) -> tuple[list[str], list[str]]:
        """Return what is missing and what is unexpected, by the names in the file."""
        missing = [self.spelling(name) for name in wanted if name not in self.tensors]
        left = [t.key for name, t in self.tensors.items() if name not in wanted]
        return missing, left + self.unexpected

    def fitted(self, wanted: Shapes) -> dict[str, Stored]:
        """Return the weights of an architecture, all of them and no others.

        Args:
            wanted: Their shapes by canonical name.

        Returns:
            The weights in that order; a 1x1 convolution's may have been those of a linear layer.

        Raises:
            CheckpointError: Some are missing, left over, of another shape, or no numbers with a
                fraction.
        """
        missing, unexpected = self.faults(wanted)
        if missing or unexpected:
            faults = f"{listed('missing', missing)}, {listed('unexpected', unexpected)}"
            raise CheckpointError(f"{self.file}: {faults}")
        return {name: self._fitted(name, shape) for name, shape in wanted.items()}

    def _fitted(self, name: str, shape: tuple[int, ...]) -> Stored:
        tensor = self.tensors[name]
        own = tensor.shape
        if name in names.either(self.name) and _plain(own) == _plain(shape):
            own = shape
        if own != shape or not tensor.is_weight:
            raise CheckpointError(
                f"{self.file}: {tensor.key} is {tensor.dtype} of shape {tensor.shape}, "
                f"expected shape {shape} and one of {', '.join(WEIGHTS.values())}"
            )
        return tensor if tensor.shape == shape else tensor.reshaped(shape)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a linear layer's weight for that of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else shape


@dataclass(frozen=True)
class Checkpoint:
    """What files hold.

    Attributes:
        path: File or folder.
        layout: `compvis`, `diffusers`, `clip` or `toy`.
        networks: By name.
        ema: How many averaged weights a single file has.
        uses_ema: Whether the UNet's are those.
        unread: Entries of a single file that are no weights of a network.
        scheduler: `scheduler_config.json`, or None.
    """

    path: Path
    layout: str
    networks: dict[str, Network]
    ema: int = 0
    uses_ema: bool = False
    unread: list[str] = field(default_factory=list)
    scheduler: Path | None = None

    def network(self, name: str) -> Network:
        """Return a network.

        Raises:
            CheckpointError: It is not there.
        """
        if name not in self.networks:
            raise CheckpointError(
                f"{self.path} is of layout {self.layout} and has no {name}, only "
                f"{', '.join(self.networks)}"
            )
        return self.networks[name]


def read_checkpoint(path: str | Path, *, ema: bool = False, files: str = "") -> Checkpoint:
    """Open weights in any layout; what is in them is read when it is asked for.

    Args:
        path: A file or folder.
        ema: Take the averaged weights of a single file's UNet, where the default is those that
            training went on with: the choice of the original code's configuration
            (``use_ema: False``) and of diffusers (``extract_ema=False``).
        files: Which files of a folder: `fp16` for `diffusion_pytorch_model.fp16.safetensors`.
            By default the plain ones, or where there are none the `fp16` ones.

    Returns:
        Its networks. Whether they are whole is for `Network.fitted` to say.

    Raises:
        CheckpointError: Files are missing, unreadable, hostile or of no layout that is known.
    """
    path = Path(path)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if is_folder:
        if ema:
            raise CheckpointError(
                f"{path} is a folder, which holds one set of weights: only single files have "
                "averaged ones beside"
            )
        return _read_folder(path, files)
    if files:
        raise CheckpointError(f"{path} is one file: there are no {files} files to choose")
    return _read_file(path, ema=ema)


def read_file(path: Path) -> tuple[dict[str, Stored], list[str]]:
    """Open a file of weights, safetensors or torch's.

    Returns:
        Its tensors by name, and the names of what it holds beside them.

    Raises:
        CheckpointError: It is neither, or damaged.
    """
    raw = mapped(path)
    if is_torch(raw):
        file = read_torch(path)
        return file.tensors, file.others
    hint = not_weights(raw)
    if hint:
        raise CheckpointError(f"{path}: {hint}")
    if bytes(raw[LENGTH : LENGTH + 1]) != b"{":
        raise CheckpointError(f"{path} is neither safetensors nor a torch archive")
    return read_safetensors(path), []


def _read_file(path: Path, *, ema: bool) -> Checkpoint:
    tensors, others = read_file(path)
    if any(key.startswith(tuple(map(names.prefix, names.NETWORKS))) for key in tensors):
        return _read_compvis(path, tensors, others, ema=ema)
    if ema:
        raise CheckpointError(f"{path} has no averaged weights (model_ema.*)")
    if TOKENS in tensors:
        networks = split_toy(tensors, path)
        own = {name: _network(name, part, str(path)) for name, part in networks.items()}
        strange = [key for key in tensors if key != TOKENS and key.partition("/")[0] not in own]
        return Checkpoint(path, TOY, own, unread=[*others, *strange])
    if any(key.removeprefix(_PREFIXLESS).startswith("embeddings.token_") for key in tensors):
        network = _network("text_encoder", tensors, str(path))
        return Checkpoint(path, CLIP, {network.name: network}, unread=others)
    shown = listed("keys", list(tensors), 3)
    if any("lora" in key.lower() for key in tensors):
        raise CheckpointError(
            f"{path} is a LoRA file ({shown}): what it changes is not here; merge it into a model"
        )
    raise CheckpointError(
        f"{path} is of no known layout: {shown}; expected those of CompVis "
        "(model.diffusion_model.*, first_stage_model.*, cond_stage_model.*) or of a CLIP text "
        "encoder (text_model.*). Of a diffusers folder give the folder, not one of its files"
    )


def _read_compvis(
    path: Path, tensors: dict[str, Stored], others: list[str], *, ema: bool
) -> Checkpoint:
    """Sort the tensors of a single file by network."""
    facts = names.single_file()
    parts: dict[str, dict[str, Stored]] = {network: {} for network in names.NETWORKS}
    averaged: dict[str, Stored] = {}
    tables: dict[str, Stored] = {}
    strange: dict[str, Stored] = {}
    for key, tensor in tensors.items():
        owner = next((n for n in parts if key.startswith(names.prefix(n))), None)
        if owner:
            parts[owner][key] = tensor
        elif key.startswith(facts["ema"]):
            averaged[key] = tensor
        else:
            (tables if key in facts["schedule"] else strange)[key] = tensor
    check_schedule(tables, str(path))
    networks = {n: _compvis_network(n, own, str(path)) for n, own in parts.items() if own}
    counters = {facts["ema"] + name for name in facts["ema_counters"]}
    copies = {key: tensor for key, tensor in averaged.items() if key not in counters}
    if ema:
        if not copies:
            raise CheckpointError(f"{path} has no averaged weights ({facts['ema']}*)")
        networks["unet"] = _averaged(copies, str(path))
    if strange:
        unet = networks.get("unet") or Network("unet", {}, str(path))
        networks["unet"] = replace(unet, unexpected=[*unet.unexpected, *strange])
    return Checkpoint(
        path,
        COMPVIS,
        networks,
        ema=len(copies),
        uses_ema=ema,
        unread=[*others, *tables, *(key for key in averaged if key in counters)],
    )


def _compvis_network(name: str, own: Mapping[str, Stored], file: str) -> Network:
    """Return a network of a single file."""
    start = names.prefix(name)
    ids = {start + key for key in names.unweighted(name)}
    _check_positions(own, ids, file)
    weights = {key: tensor for key, tensor in own.items() if key not in ids}
    network = _spelt(name, weights, file, lambda n: start + names.compvis_key(name, n))
    return replace(network, unread=sorted(ids & own.keys()))


def _averaged(copies: Mapping[str, Stored], file: str) -> Network:
    """Return the UNet of averaged weights."""
    return _spelt("unet", copies, file, names.ema_key)


def _spelt(
    name: str, own: Mapping[str, Stored], file: str, spelling: Callable[[str], str]
) -> Network:
    """Return a network whose names have one spelling each."""
    known = {spelling(canonical): canonical for canonical in names_of(name)}
    return replace(_named(name, own, file, known.get, []), spelling=spelling)


def _network(name: str, tensors: Mapping[str, Stored], file: str) -> Network:
    """Return the network in a file of transformers or diffusers, of any version."""
    known = set(names_of(name))
    facts = names.facts_of(name)

    def canonical(key: str) -> str | None:
        current = names.current_name(name, key)
        return next((n for n in (current, _PREFIXLESS + current) if n in known), None)

    ids = {key for key in tensors if key.removeprefix(_PREFIXLESS) == _POSITIONS}
    ids = ids if name == "text_encoder" else set()
    _check_positions(tensors, ids, file)
    other = (
        [key for key in tensors if key.startswith(tuple(facts["unread"]))]
        if facts["unread"]
        else []
    )
    own = {k: t for k, t in tensors.items() if k not in ids and k not in other}
    return _named(name, own, file, canonical, [*ids, *other])


def _named(
    name: str,
    own: Mapping[str, Stored],
    file: str,
    canonical: Callable[[str], str | None],
    unread: list[str],
) -> Network:
    """Give tensors their canonical names.

    Raises:
        CheckpointError: Two keys are names of the same weight.
    """
    tensors: dict[str, Stored] = {}
    unexpected = []
    for key, tensor in own.items():
        found = canonical(key)
        if found is None:
            unexpected.append(key)
        elif found in tensors:
            raise CheckpointError(
                f"{file}: {tensors[found].key} and {key} are names of the same weight"
            )
        else:
            tensors[found] = tensor
    return Network(name, tensors, file, unexpected, unread)


def _check_positions(tensors: Mapping[str, Stored], keys: set[str], file: str) -> None:
    """Refuse position ids that are not 0, 1, 2, ...: the embedding is read in order."""
    for key in keys & tensors.keys():
        ids = tensors[key]
        # Read only if they are few: a view of one number may have any shape.
        if ids.size != CONTEXT or ids.float32().ravel().tolist() != [*range(CONTEXT)]:
            raise CheckpointError(f"{file}: {key} are not the numbers 0 to {CONTEXT - 1}")


def _read_folder(path: Path, files: str) -> Checkpoint:
    folder = Folder(path, files)
    alone = folder.component()
    if alone is not None:
        network = _from_folder(alone, folder)
        layout = CLIP if alone == "text_encoder" else DIFFUSERS
        return Checkpoint(path, layout, {alone: network})
    networks = {n: _from_folder(n, folder.inside(n)) for n in reversed(names.NETWORKS)}
    scheduler = folder.scheduler()
    return Checkpoint(path, DIFFUSERS, networks, scheduler=scheduler)


def _from_folder(name: str, folder: Folder) -> Network:
    config = folder.config()
    file = folder.weights(name)
    tensors, _ = read_file(file)
    return replace(_network(name, tensors, str(file)), config=config)
