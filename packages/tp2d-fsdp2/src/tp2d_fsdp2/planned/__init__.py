"""What a step of this engine needs, before there is one: memory by kind, and collectives."""
