"""The blob format: chunk records, blob meta (CI array), TOC. Pure: bytes in, values out (spec blob)."""
