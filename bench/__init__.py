"""Measurements that are run by hand: how this software compares with its peer, and what it costs."""
