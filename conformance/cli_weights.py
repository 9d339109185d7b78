"""Commands about weights: writing the recipe's, looking at files, and judging on them."""

from __future__ import annotations

import argparse
import atexit
import shutil
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conformance import export, spec
from conformance.cache import GOLDENS, cache_folder
from conformance.case import Case
from conformance.checkpoints import FileVariant, cases_on, file_variant
from conformance.cli_common import command, given, selected, split
from conformance.errors import ExitCode, UsageError, unknown_name
from conformance.execution import Execution
from conformance.run_folder import require_room
from conformance.runner import Runner
from conformance.variants import NO_VARIANT, parse_variant, variant_names
from conformance.vocabulary import Vocabulary
from conformance.witness import Witness
from conformance.witness_rows import PUBLISHED_SIZE, check_folder, rows
from sd1_weights import save
from sd1_weights.config_files import read_config, read_json
from sd1_weights.configs import TRAINING, UNSAID, tokenizer_files
from sd1_weights.errors import CheckpointError, listed
from sd1_weights.layouts import COMPVIS, DIFFUSERS, Checkpoint, Network, read_checkpoint
from sd1_weights.pickles import shown
from sd1_weights.sizes import shapes_of, sizes
from sd1_weights.stored import WEIGHTS

_IN_NO_SHAPE = ("num_heads", "norm_num_groups", "scaling_factor")
"""Numbers of a config that no shape could contradict."""
_INDEX = "model_index.json"
NO_SCHEDULER = "none: SD v1's PNDM is meant"
_NAMES = {code: name for name, code in WEIGHTS.items()}


def add_commands(commands: Any) -> None:
    """Declare `weights`."""
    weights = command(commands, "weights", None, "files of weights: write, inspect, convert")
    own = weights.add_subparsers(required=True, metavar="COMMAND")
    written = command(own, "export", _export, "write a variant's synthetic weights")
    written.add_argument("--variant", required=True)
    _add_target(written, DIFFUSERS)
    inspect = command(own, "inspect", _inspect, "say what a file or folder holds")
    inspect.add_argument("path", type=Path, metavar="PATH")
    add_choice(inspect)
    convert = command(own, "convert", _convert, "write a file or folder in another layout")
    convert.add_argument("path", type=Path, metavar="IN")
    _add_target(convert, None)
    add_choice(convert)


def _add_target(parser: argparse.ArgumentParser, layout: str | None) -> None:
    parser.add_argument(
        "--layout",
        choices=export.LAYOUTS,
        default=layout,
        required=layout is None,
        help="compvis: one file, *.safetensors or *.ckpt; diffusers: a folder"
        f"{f'; default {layout}' if layout else ''}",
    )
    default = "that of the files" if layout is None else "float32"
    parser.add_argument("--dtype", choices=WEIGHTS, help=f"of the weights; default {default}")
    parser.add_argument(
        "--out",
        type=given("--out", "a file or folder", Path),
        required=True,
        metavar="OUT",
        help="file or folder; files of the same names are replaced",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Offer the options that choose among the weights of a path."""
    parser.add_argument(
        "--ema", action="store_true", help="the averaged weights (model_ema.*) of a single file"
    )
    parser.add_argument(
        "--files",
        default="",
        metavar="NAME",
        help="of a folder, *.NAME.safetensors: fp16, non_ema; default the plain files",
    )


def _require_room(arguments: argparse.Namespace) -> None:
    """Refuse a folder of files that are no weights.

    Raises:
        UsageError: `--out` is one.
    """
    if arguments.layout == DIFFUSERS:
        require_room(arguments.out, (_INDEX, *spec.FOLDER_COMPONENTS), "no `weights`")


def _export(arguments: argparse.Namespace) -> int:
    if arguments.variant == NO_VARIANT:
        raise unknown_name("variant", NO_VARIANT, variant_names())
    variant = parse_variant(arguments.variant)
    _require_room(arguments)
    dtype = arguments.dtype or "float32"
    networks = export.write_checkpoint(variant, arguments.layout, dtype, arguments.out)
    for name, tensors in networks.items():
        plain = variant.name in variant_names(spec.FOLDER_COMPONENTS[name])
        own = variant.name if plain else variant.name.removesuffix(spec.INPAINT_SUFFIX)
        where = arguments.out / name if arguments.layout == DIFFUSERS else arguments.out
        count = sum(tensor.size for tensor in tensors.values())
        what = "" if arguments.layout == DIFFUSERS else f"{name}, "
        print(f"{where}: {what}{count:,} parameters, {dtype}, {own}")
    return int(ExitCode.CONFORMANT)


def _inspect(arguments: argparse.Namespace) -> int:
    checkpoint = read_checkpoint(arguments.path, ema=arguments.ema, files=arguments.files)
    print(f"{arguments.path}: layout {checkpoint.layout}")
    print(f"ema          {_ema_text(checkpoint)}")
    wrong = 0
    for network in checkpoint.networks.values():
        lines, fault = _described(network)
        print("\n".join(lines))
        wrong += fault
    if checkpoint.layout == DIFFUSERS:
        path = checkpoint.scheduler
        print(f"scheduler    {shown(_scheduler_text(read_json(path))) if path else NO_SCHEDULER}")
    if checkpoint.layout == COMPVIS:
        absent = [name for name in spec.FOLDER_COMPONENTS if name not in checkpoint.networks]
        wrong += len(absent)
        print("\n".join(f"{name:12s} missing" for name in absent), end="\n" if absent else "")
    print(f"not read     {listed('entries', checkpoint.unread)}")
    return int(ExitCode.NONCONFORMANT if wrong else ExitCode.CONFORMANT)


def _scheduler_text(options: dict[str, Any]) -> str:
    """Name a scheduler, and what it says of the training that is not SD v1's."""
    other = [
        f"{key} {options[key]}"
        for key in TRAINING
        if options.get(key, TRAINING[key]) != TRAINING[key]
    ]
    return ", ".join([str(options.get("_class_name")), *other])


def _ema_text(checkpoint: Checkpoint) -> str:
    if not checkpoint.ema:
        return "none"
    chosen = "these are taken" if checkpoint.uses_ema else "left alone; --ema takes them"
    return f"{checkpoint.ema} averaged weights of the UNet: {chosen}"


def _described(network: Network) -> tuple[list[str], bool]:
    """Describe a network in lines, and say whether something is wrong with it."""
    count = sum(tensor.size for tensor in network.tensors.values())
    dtypes = Counter(_NAMES.get(t.dtype, t.dtype) for t in network.tensors.values())
    kinds = ", ".join(f"{name} ({n})" if len(dtypes) > 1 else name for name, n in dtypes.items())
    try:
        size = network.size
        missing, unexpected = network.faults(shapes_of(network.name, size))
        fault = "; ".join(
            listed(kind, names)
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        )
        if not fault:
            network.fitted(shapes_of(network.name, size))
    except CheckpointError as error:
        size, fault = "no known size", str(error)
    text = f"{network.name:12s} {size}: {count:,} parameters in {len(network.tensors)} tensors"
    lines = [f"{text}, {kinds}"]
    if network.config is not None:
        try:
            _architecture(network)
        except CheckpointError as error:
            fault = "; ".join(part for part in (fault, str(error)) if part)
    if fault:
        lines.append(f"{'':12s} {fault}")
    if network.unread:
        lines.append(f"{'':12s} not read: {listed('entries', network.unread)}")
    return lines, bool(fault)


def _convert(arguments: argparse.Namespace) -> int:
    _require_room(arguments)
    checkpoint = read_checkpoint(arguments.path, ema=arguments.ema, files=arguments.files)
    architectures, networks = {}, {}
    for name in spec.FOLDER_COMPONENTS:
        network = checkpoint.network(name)
        size = network.size
        architectures[name] = _architecture(network)
        tensors = network.fitted(shapes_of(name, size))
        for tensor in tensors.values():
            tensor.check_finite()
        code = WEIGHTS.get(arguments.dtype)
        networks[name] = {k: t if code is None else t.cast(code) for k, t in tensors.items()}
    if arguments.layout == COMPVIS:
        _require_single_file(checkpoint)
        save.write_single_file(arguments.out, networks, {}, export.watched)
    else:
        words = Vocabulary.load()
        tokenizer = tokenizer_files(words.ids, words.merges)
        scheduler = read_json(checkpoint.scheduler) if checkpoint.scheduler else None
        if scheduler is not None and not isinstance(scheduler.get("_class_name"), str):
            raise CheckpointError(f"{checkpoint.scheduler}: _class_name is missing")
        save.write_folder(
            arguments.out, networks, architectures, tokenizer, {}, export.watched, scheduler
        )
    notes = [f"{arguments.out}: layout {arguments.layout}, from {checkpoint.layout}"]
    if checkpoint.ema and not checkpoint.uses_ema:
        notes.append("the averaged weights were left out (--ema takes them)")
    if arguments.layout == COMPVIS and checkpoint.scheduler:
        notes.append("the settings of the scheduler were left out")
    print("; ".join(notes))
    return int(ExitCode.CONFORMANT)


def _architecture(network: Network) -> dict[str, Any]:
    """Return the numbers of a network: those of its config, or of the size of its shapes.

    Raises:
        CheckpointError: The config is of other shapes than the weights.
    """
    for key, (own, known) in network.differences().items():
        if key not in _IN_NO_SHAPE:
            raise CheckpointError(
                f"{network.config}: {key} is {own!r}, but the weights have the shapes of {known!r}"
            )
    given = {} if network.config is None else read_config(network.name, network.config)
    return sizes(network.name)[network.size] | given


def _require_single_file(checkpoint: Checkpoint) -> None:
    """Refuse what a single file cannot say: it carries no configuration."""
    scheduler = read_json(checkpoint.scheduler) if checkpoint.scheduler else {}
    for key, fact in TRAINING.items():
        own = scheduler.get(key, UNSAID.get(key, fact)) if scheduler else fact
        if own != fact:
            raise CheckpointError(
                f"{checkpoint.scheduler}: {key} is {own!r}, in Stable Diffusion v1 {fact!r}: "
                f"layout {COMPVIS} has no place for it"
            )
    for network in checkpoint.networks.values():
        for key, (own, known) in network.differences().items():
            raise CheckpointError(
                f"{network.config}: {key} is {own!r}, in size {network.size} it is {known!r}: "
                f"layout {COMPVIS} has no place for it"
            )


def cases_of(arguments: argparse.Namespace) -> tuple[list[Case], FileVariant | None]:
    """Return the selected cases, on the weights of `--weights` where they are given.

    Raises:
        UsageError: The selection leaves none.
    """
    if arguments.weights is None:
        for option in ("ema", "files"):
            if getattr(arguments, option):
                message = f"--{option} chooses among the weights of a path: it needs --weights PATH"
                raise UsageError(message)
        return selected(arguments), None
    try:
        variant = file_variant(
            arguments.weights, _goldens_folder(), ema=arguments.ema, files=arguments.files
        )
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    globs = split(arguments.variant)
    if globs and not any(fnmatchcase(variant.name, glob) for glob in globs):
        message = (
            f"--variant {arguments.variant}: the weights of {arguments.weights} are of size "
            f"{variant.name}; leave --variant out"
        )
        raise UsageError(message)
    _check_witness(arguments, variant)
    arguments.variant = ",".join(dict.fromkeys([variant.name, variant.of(spec.TOKENIZER).name]))
    print(
        f"{variant.text}: layout {variant.layout}, size {variant.size}, "
        f"{', '.join(variant.networks)}"
    )
    return cases_on(variant, selected(arguments)), variant


def _goldens_folder() -> Path:
    """Return where goldens of weights are kept: without a cache, for as long as this process."""
    folder = cache_folder(GOLDENS)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot keep goldens in {folder}: {error.strerror}; SD1_CACHE names another"
            raise UsageError(message) from error
        return folder
    temporary = tempfile.mkdtemp(prefix="sd1-goldens-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _check_witness(arguments: argparse.Namespace, variant: FileVariant) -> None:
    """Refuse `--witness` with weights of another size, or without noise files."""
    if arguments.witness is None or arguments.witness_inputs is None:
        return
    if variant.size != PUBLISHED_SIZE:
        message = (
            f"--witness {arguments.witness}: slices are published of size {PUBLISHED_SIZE}, the "
            f"weights of {arguments.weights} are of size {variant.size}"
        )
        raise UsageError(message)
    check_folder(arguments.witness, arguments.witness_inputs)


def slices_of(
    arguments: argparse.Namespace, runner: Runner, variant: FileVariant | None
) -> tuple[Witness | None, list[tuple[Case, Execution]]]:
    """Return the published slices that `--witness` asks for as cases, and what runs them.

    Raises:
        UsageError: There are no weights or noise files.
    """
    if arguments.witness is None:
        if arguments.witness_inputs is not None:
            message = "--witness-inputs holds the noise of published slices: it needs --witness"
            raise UsageError(message)
        return None, []
    if variant is None or arguments.witness_inputs is None:
        message = (
            f"--witness {arguments.witness} needs your own weights (--weights PATH) and the "
            "published noise files (--witness-inputs DIR); docs/witness.md names them"
        )
        raise UsageError(message)
    device = (split(arguments.device) or ["cpu"])[0]
    witness = Witness(runner.port, variant, variant.weights, arguments.witness_inputs, device)
    globs = split(arguments.component) or ["*"]
    return witness, [
        witness.item(row)
        for row in rows(arguments.witness)
        if any(fnmatchcase(row.component, glob) for glob in globs)
        and all(variant.offers(stage.component) for stage in row.stages)
    ]
