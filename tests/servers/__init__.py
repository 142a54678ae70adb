"""Servers that are none of ours, as Debian packages them."""
