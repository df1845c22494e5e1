"""What operators can see and do, of one node and of the whole cluster."""
