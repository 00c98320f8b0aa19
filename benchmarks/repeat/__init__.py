"""How alike gates of one and the same server are."""
