"""What the counters of the other rooms look like to people and to the snapshotter."""
