"""Writes images (`nydus-image create`): a directory → data blob and bootstrap. Used by cli only."""
