"""Counters of the other rooms, seen from outside: which object a caller means, and its JSON (spec api §4).

A Prometheus view will stand beside `json_views` and read the same `MetricsIndex`.
"""
