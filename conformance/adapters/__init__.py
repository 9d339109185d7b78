"""Adapters: the ports that the suite brings, and the tools to write one."""
