"""Thin bindings to the kernel. One interface a file; no policy."""
