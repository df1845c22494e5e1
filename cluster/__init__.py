"""What the nodes of a cluster share: the port in `cluster.api` and its implementations."""
