"""The one error of files of weights."""


class CheckpointError(ValueError):
    """Files are not those of a Stable Diffusion v1: which file, what in it, what was expected."""


def listed(what: str, names: list[str], most: int = 5) -> str:
    """Count and name: `2 missing (a, b)`."""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
