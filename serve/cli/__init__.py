"""What the terminal chat and the benchmark share: a client, a renderer, workloads."""
