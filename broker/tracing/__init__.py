"""Following a client, a topic or an address: what it sent and got, and what was decided about it, line by line."""
