"""What runs on a GPU node, inside the Ray task: one step, from memory reading to memory reading. No torch here."""
