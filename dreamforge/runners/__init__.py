"""What computes: the only room with torch. A runner is a process of its own, without credentials or network."""
