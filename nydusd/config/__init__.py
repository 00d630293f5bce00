"""Configuration: v1 JSON, v2 JSON or TOML → one frozen Config. The only place that knows old spellings."""
