"""Which row comes when: the order of an epoch, a rank's share of it, and the position in it."""
