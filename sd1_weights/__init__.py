"""The files that Stable Diffusion v1 weights come in, without torch: containers, names, layouts.

The model and the engine both read and write through this package; it imports neither. In reading
order:

- `layouts` (any layout to networks by canonical names) and `save` (the way back);
- what they ask: `names` (what a layout calls a weight), `sizes` (whose shapes these are),
  `folders`, `config_files` (JSON files, read), `configs` (the same, written), `schedule`;
- the containers, one file each: `safetensors_file`, and `torch_file` with `zip_entries`, `pickles`
  and `torch_names`. Both give `stored.Stored`, one tensor, whose bits are read when asked for.

Files are not trusted: nothing in one is run, and whatever is broken, missing or left over is a
`CheckpointError` that names it.
"""

from sd1_weights.errors import CheckpointError

__all__ = ["CheckpointError"]
