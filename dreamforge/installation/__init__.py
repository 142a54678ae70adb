"""Models on their way: from a source to the models' folder, the object store, the registry and the nodes."""
