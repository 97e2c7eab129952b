"""Language-model research in JAX: objectives, one train loop, one data path, one mesh."""
