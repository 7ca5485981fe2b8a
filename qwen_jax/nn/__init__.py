"""The network, and what plugs into its two seams: linear layers and the cache."""
