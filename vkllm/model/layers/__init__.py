"""The operations of a layer: a file for each kind of attention, of what stands in its place, of feed-forward layer."""
