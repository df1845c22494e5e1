"""Who a client is: one file per mechanism."""
