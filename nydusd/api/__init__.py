"""HTTP on the unix socket: routes, bodies, errors (spec api)."""
