"""The audit of an arithmetic: where a port loses precision, and what would win it back."""
