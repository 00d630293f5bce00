"""Where blobs come from: one protocol, one module per kind, one place that opens them by configuration."""
