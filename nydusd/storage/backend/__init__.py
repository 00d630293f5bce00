"""Where blobs come from. `base` is the protocol, `open` the one door; each kind is a module.

A kind on HTTP brings URL, headers and the meaning of answers (`registry`), and stands on what all of
them share: `attempts` (bounds, retries, counters; the policy is `retry`), `http_client` (connections),
`http_range` (is this the range?), `http_faults` (what to say), `tls`, `request_headers`. `auth` is the
registry's. `localfs` needs none of it. A new kind: its configuration in `config/model`, a module here,
a line in `open`.
"""
