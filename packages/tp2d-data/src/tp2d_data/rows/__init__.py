"""From tokens to rows of one length, and from rows to the arrays of a batch."""
