"""Command lines of nydusd, nydus-image and nydusctl; nothing imported that a command does not need."""
