"""Files, locks, digests, archives, processes: what every room stands on; it imports no other room."""
