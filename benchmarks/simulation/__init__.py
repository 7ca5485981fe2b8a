"""The schedule of a server over devices that are not there."""
