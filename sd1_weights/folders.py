"""The files of a folder in diffusers' layout: which they are, and that none leads out of it."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path

from sd1_weights import names
from sd1_weights.config_files import read_json
from sd1_weights.errors import CheckpointError

_ENDINGS = ("safetensors", "bin")
_DEFAULT_FILES = ("", "fp16")
_KINDS = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "clip_text_model": "text_encoder",
}
"""What a config says of itself, as `_class_name` or `model_type`."""

_EXPECTED = (
    "expected a folder in diffusers' layout, with config.json and weights (*.safetensors or *.bin, "
    "plain or fp16) in text_encoder/, unet/ and vae/; the folder of one network is taken alone"
)


@dataclass(frozen=True)
class Folder:
    """A folder of a whole model, or of one network.

    Attributes:
        path: The folder.
        files: Which of several files of weights: `fp16`, `non_ema`; empty for the plain ones.
        root: Folder that no link may lead out of; None for `path`.
    """

    path: Path
    files: str = ""
    root: Path | None = None

    def inside(self, name: str) -> Folder:
        """Return the folder of a network."""
        return Folder(self.path / name, self.files, self.root or self.path)

    def component(self) -> str | None:
        """Return the network that this folder alone is of, or None."""
        path = self.path / "config.json"
        if not _is_there(path):
            return None
        given = read_json(self._own(path))
        kind = given.get("_class_name", given.get("model_type"))
        if kind not in list(_KINDS):
            raise CheckpointError(
                f"{path}: it is the config of {reprlib.repr(kind)}, no network of SD v1"
            )
        return _KINDS[kind]

    def config(self) -> Path:
        """Return the path of `config.json`.

        Raises:
            CheckpointError: It is missing, or leads out of the folder.
        """
        return self._own(self._present([self.path / "config.json"]))

    def scheduler(self) -> Path | None:
        """Return the path of the scheduler's config, or None where there is none."""
        path = self.path / "scheduler" / "scheduler_config.json"
        return self._own(path) if _is_there(path) else None

    def weights(self, name: str) -> Path:
        """Return the file of weights of a network.

        Raises:
            CheckpointError: There is none, or it leads out of the folder.
        """
        stems = names.facts_of(name)["files"]
        kinds = (self.files,) if self.files else _DEFAULT_FILES
        choices = [
            self.path / ".".join(part for part in (stem, kind, ending) if part)
            for kind in kinds
            for stem in stems
            for ending in _ENDINGS
        ]
        return self._own(self._present(choices))

    def _present(self, choices: list[Path]) -> Path:
        """Return the first of several files that is there."""
        found = next((path for path in choices if _is_there(path)), None)
        if found is None:
            shards = [*self.path.glob("*.index.json")] if self.path.is_dir() else []
            if shards:
                raise CheckpointError(
                    f"{shards[0]}: weights in several files (shards) are not read: save them as one"
                )
            raise CheckpointError(f"{choices[0]} is missing: {_EXPECTED}")
        return found

    def _own(self, path: Path) -> Path:
        """Refuse a link that leads out of the folder.

        The folders of Hugging Face's cache are links into the blobs of the same repository.
        """
        root = (self.root or self.path).resolve()
        revisions = [place for place in (root, *root.parents) if place.parent.name == "snapshots"]
        caches = [place.parents[1] for place in revisions]  # models--*/snapshots/REVISION
        roots = [root, *(cache for cache in caches if cache.name.startswith("models--"))]
        target = path.resolve()
        if not any(target.is_relative_to(allowed) for allowed in roots):
            raise CheckpointError(f"{path} is a link that leads out of the folder, to {target}")
        return path


def _is_there(path: Path) -> bool:
    """Say whether there is a file: what is there and is none is not passed over."""
    try:
        path.lstat()
        is_file = path.is_file()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not is_file:
        raise CheckpointError(f"{path} is no regular file, nor a link to one")
    return True
