"""What lies in a packed set, as its writer and its readers both know it: manifest, shard index, report dictionary."""
