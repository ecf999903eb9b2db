"""Pages to share: one HTML file each, with everything inside, that opens from disk and asks the network for nothing."""
