"""What a run keeps on disk: dead letters, JSON Lines files, locks and claims."""
