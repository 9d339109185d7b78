"""How much a port holds: predicted without weights, recorded, and judged (docs/memory.md)."""
