"""What keeps one client, or many, from taking more than its share: bans, places, rates."""
