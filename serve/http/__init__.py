"""What stands between a socket and the API: the protocol, keys, limits, the page's files."""
