"""Function calling: how a model is told of functions, and how it says that it wants one."""
