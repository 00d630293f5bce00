"""An independent nydusd: mounts RAFS images before their data is there, and fetches it as it is read.

Rooms, from the top: cli → daemon → api → metrics → kernel → storage → rafs → blob → native.
Imports point downwards only (docs/design.md §3; tests/unit/test_rooms.py checks it). `config`,
`errors` and `units` lie below all rooms; `builder` stands beside `kernel` and serves only `cli`.
"""

__version__ = "0.1.0"
