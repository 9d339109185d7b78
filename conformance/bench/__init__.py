"""What the model and the suite cost: measured, kept in a file, compared with an earlier one."""
